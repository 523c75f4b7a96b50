"""The table, and the files of a run: README.md, raw.csv, summary.md, ratios.svg."""

import csv
import datetime

import plot

COLUMNS = (
    "at", "scenario", "variant", "place", "run", "attempt", "marked", "requests", "seconds", "rps", "p50_us", "p90_us",
    "p99_us", "p999_us", "offered", "achieved", "waited", "late_p50_us", "late_p99_us", "late_max_us", "refused", "broken",
    "cpu_us", "share", "beats", "beat_ns", "load_us", "backend_us", "redis_us", "evalsha", "rtt_us",
    "mb_per_cpu_s", "busy", "busiest", "idle", "rss_mib", "idle_bytes", "foreign")
UNITS = {
    "cpu_us": ("CPU us a request", ".1f"), "rps": ("requests/s", ".0f"), "p50_us": ("p50 us", ".0f"),
    "p99_us": ("p99 us", ".0f"),
    "late_p99_us": ("p99 us that pace is late", ".0f"), "redis_us": ("Redis's CPU us a request", ".1f"),
    "evalsha": ("EVALSHAs a request", ".3f"), "mb_per_cpu_s": ("MB a CPU second", ".0f"), "rss_mib": ("RSS MiB", ".1f"),
    "idle_bytes": ("bytes a connection", ".0f")}
HEAD = ("scenario", "of", "figure", "median", "compared with", "its median", "ratio", "least–most", "goal", "", "runs")

COLUMNS_TEXT = """\
- **median**: of the runs. CPU time is user and system time of the proxy's whole process tree, from the kernel's clock of
  each process, divided by the answers that wrk, or pace, has counted.
- **ratio**: median of the ratios within each round. Of CPU time there are two: by *share* / by *beats*. The share is the
  proxy's CPU time over what wrk and the backend have spent in the same run, on work that is the same for all. A beat is a
  send and a receive of 200 bytes on loopback, sampled all through the run on the proxy's processor (`bench/beat.rs`). Both
  stay much the same where the processor changes its speed; microseconds do not. The share favours a proxy that makes wrk or
  the backend work harder, and wrongs one that makes their work lighter. Nothing that a proxy does changes the beat, but what
  slows a processor need not slow a proxy and a beat alike. So a goal is kept where both say so. Of other figures the
  ratio is that of the figures. Of MB a CPU second, above 1 is better.
- **least–most**: of the ratios within each round, by beats where there are two.
- **goal**: with `x` it is the ratio's, otherwise the figure's own. A goal in microseconds was set for a processor on which
  nginx takes about 29 us a request (S1) and 73 us with one connection (S8).
- **runs**: rounds that count. Those in which other processes took more than 6 % of a processor in use were repeated, up to
  twice; ones that stayed disturbed do not count unless there are no others, and are marked `!` then.
- *apart* (`split` in raw.csv): the proxy on one processor; wrk, backend and Redis on others, three at most, for throughput and
  for latency with one connection. With two processors it is wrk and the backend that saturate first beside a fast proxy, so requests/s say
  little there; `busy` in raw.csv is how much of its processor the proxy used. All else is on one processor, which is
  saturated then (`one`, for CPU time), but for S7 (`two`): one worker and two, where the proxy may use two processors; wrk
  and the backend share these with it where the machine has fewer than four.
- *half*, and *S4 apart*: `bench/pace.rs` sends each request at a moment of its own, with exponential gaps, and latency counts from
  that moment, on 64 connections. All are offered the same rate: half of what the first of them reaches by wrk at the start
  of the scenario, or less, so that every processor is idle for about half of the time (`busiest` in raw.csv tells): without batches
  a request costs everybody more, and beyond that a p99 is the length of a queue. Where pace itself is late
  (`late_p99_us`; it shares its processor) by as much as a latency, that latency says little. *Paced* in raw.csv: the proxy on one
  processor, pace and backend on others; Redis with these where they have two at least, else beside the proxy, whose decisions
  it makes: on one processor with pace and backend the three would queue for each other, which no client of a gateway sees.
  *Added* is what a decision of Redis adds, over a round trip to it as redis-benchmark has it (one client, GET, the
  average), measured just before. That client asks again at once, so that nobody has gone to sleep.
- *nginx + Lua + Redis* sends one EVALSHA of the gateway's own script for each request, over connections that are kept. A
  *haproxy stick table* counts requests in a window, which is no token bucket. Of denials nginx and HAProxy send their own
  pages and log nothing; the gateway logs them as it does by default, 100 a second at most.
- S5: nginx *tuned* streams requests and has larger buffers. S6: RSS of all processes of a proxy; bytes above what it was
  before the connections. S4: from the fault on, 1 s after the load had begun; with pace, the requests that meet the fault
  first are those that open its connections, which do not count."""


def goal_text(goal):
    if goal is None:
        return ""
    if goal.value_max is not None:
        return f"<= {goal.value_max:g}"
    return f"<= {goal.ratio_max:.2f} x" if goal.ratio_max is not None else f">= {goal.ratio_min:.2f} x"


def cells(result):
    row = result.row
    unit, form = UNITS[row.figure]
    against = row.against
    if row.form == "added":
        unit, against = f"{unit} added to {row.against}", "a round trip to Redis, us"
    ratios = " / ".join(f"{one:.2f}" for one in result.ratios)
    return (result.scenario, row.subject, unit, format(result.value, form), against, format(result.other, form), ratios,
            f"{result.least:.2f}–{result.most:.2f}", goal_text(row.goal), result.verdict,
            f"{result.runs}{' !' if result.marked else ''}")


def table(results):
    """In Markdown, in columns that are even to the eye too."""
    lines = [HEAD, *map(cells, results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def bars(results):
    """Those that the plot shows: CPU time in comparison with another proxy, the smaller the better."""
    shown = []
    for result in results:
        row = result.row
        if row.form != "cost" or not row.against.startswith("nginx") or row.subject.startswith("nginx, "):
            continue
        shown.append({
            "label": f"{result.scenario}  {row.subject} : {row.against}", "ratios": result.ratios,
            "goal": row.goal.ratio_max if row.goal else None, "own": not row.subject.startswith(("nginx", "haproxy"))})
    return shown


def folder(root, name):
    """A new folder: a second run of the same day has -2 at its end."""
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


class Raw:
    """raw.csv, written line by line, so that a run which is broken off leaves what it has."""

    def __init__(self, path):
        self.file = open(path, "w", newline="")
        self.csv = csv.DictWriter(self.file, COLUMNS, lineterminator="\n")
        self.csv.writeheader()
        self.lines = []

    def write(self, line):
        self.lines.append(line)
        self.csv.writerow({column: f"{value:.6g}" if isinstance(value, float) else value
                           for column, value in line.items() if column in COLUMNS})
        self.file.flush()

    def close(self):
        self.file.close()


def readme(facts, notes, is_drawn):
    """`facts`: title, command, took, seconds, warm_s, machine, awake, versions."""
    plot_of_it = "its ratios of CPU time are drawn in [ratios.svg](ratios.svg), and " if is_drawn else "and "
    versions = "\n".join(f"- {name}: {version}" for name, version in facts["versions"])
    awake = "held" if facts["awake"] else "not permitted"
    missing = "\n".join(f"- {note}" for note in notes) or "- nothing"
    return f"""# {facts["title"]}

`{facts["command"]}`, {facts["took"]}. Each run has processes of its own, and load for {facts["warm_s"]} s to get warm and for
{facts["seconds"]} s that are measured; all variants of a scenario take turns. The table is [summary.md](summary.md),
{plot_of_it}[raw.csv](raw.csv) has a line for each run.

- machine: {facts["machine"]}
- /dev/cpu_dma_latency at 0, so that idle processors stay awake: {awake}
{versions}

Not measured, or not as it should be:

{missing}

What the columns of the table mean:

{COLUMNS_TEXT}

In raw.csv, `_us` is microseconds and what has no other unit is a number or a share of 1; CPU times are for each request;
`busy` is the proxy's CPU time over time;
`attempt` above 1 is a repeated run, `marked` = 1 one that stayed disturbed, `foreign` the largest share of a processor that
others took; `refused` are answers other than 200 to 399, `broken` connections that failed.
"""


def today():
    return datetime.date.today().isoformat()


def write(path, results, facts, notes):
    drawn = bars(results)
    (path / "summary.md").write_text(table(results) + "\n")
    (path / "README.md").write_text(readme(facts, notes, is_drawn=bool(drawn)))
    if drawn:
        title = "CPU time of a request, as a ratio to nginx in the same run"
        subtitle = f"by share (pale) and by beats; 1 = nginx as named; shorter is better; red: the goal; {facts['title']}"
        (path / "ratios.svg").write_text(plot.svg(title, subtitle, drawn))
