"""RateGuard beside other proxies, measured on this machine: `bench/run` prepares what this needs and starts it."""

import argparse
import contextlib
import os
import pathlib
import shlex
import signal
import sys
import time
from dataclasses import replace

import figures
import machine
import report
import scenarios
from processes import Failure, files_max
from trial import WARM_S, Bench, idle_connections

QUICK_RUNS, QUICK_SECONDS = 1, 1
OWN = "rateguard"
INTERRUPTED = 130
# The fewer requests, the more processor time each of them takes: one step would not do.
CALM_STEPS = 3


def options():
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("--only", default="", metavar="S1,S2b", help=", ".join(one.name for one in scenarios.ALL))
    parser.add_argument("--runs", type=int, default=5, help="of each variant, in turn (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="of each run (default %(default)s)")
    parser.add_argument("--program", action="append", default=[], metavar="NAME=PATH",
                        help=f"another build of the gateway, in turn with {OWN} (which may be given itself)")
    parser.add_argument("--quick", action="store_true", help="one run of a second: to see that all works")
    parser.add_argument("--out", type=pathlib.Path, help="folder to write into (default bench/runs/<date>-<processor>)")
    parser.add_argument("--built", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.runs, given.seconds = QUICK_RUNS, QUICK_SECONDS
    if given.runs < 1 or given.seconds < 1:
        parser.error("--runs and --seconds are 1 at least")
    names = [one.name for one in scenarios.ALL]
    given.only = [name for name in given.only.split(",") if name] or names
    unknown = [name for name in given.only if name not in names]
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(names)}")
    given.programs = programs(parser, given)
    return given


def programs(parser, given):
    """Builds of the gateway by name; what is built from here comes first."""
    found = {OWN: given.built / OWN}
    for text in given.program:
        name, _, path = text.partition("=")
        taken = name in found and name != OWN
        if not name.isidentifier() or taken or name.startswith(("nginx", "haproxy")):
            parser.error(f"--program {text}: NAME=PATH, with a name of letters and digits that nobody else has")
        found[name] = pathlib.Path(path).resolve()
    for name, path in found.items():
        if not os.access(path, os.X_OK):
            parser.error(f"{name}: there is no program {path}")
    return found


def plan(given, places, notes):
    """The scenarios that can be measured here; what cannot is noted."""
    peers = machine.installed()
    missing = {"haproxy": "haproxy", "nginx-lua": "nginx's Lua module (libnginx-mod-http-lua)", "nginx": "nginx"}
    notes += [f"{what}: not installed" for kind, what in missing.items() if kind not in peers]
    notes += [f"placement {name}: too few processors" for name in ("split", "paced", "two") if name not in places]
    if idle_connections(scenarios.IDLE) < scenarios.IDLE:
        notes.append(f"{scenarios.IDLE} idle connections: {files_max()} files may be open, so there are fewer")
    chosen = [one for one in scenarios.ALL if one.name in given.only]
    chosen = [scenarios.with_programs(one, list(given.programs)) for one in chosen]
    chosen = [scenarios.without(scenarios.placed(one, places), peers) for one in chosen]
    return [one for one in chosen if one.rows]


def say(text):
    print(text, file=sys.stderr, flush=True)


def measured(bench, scenario, variant, run, rate):
    line = {"at": int(time.time()), "scenario": scenario.name, "variant": variant.name, "place": variant.place}
    line["run"] = run
    line.update(bench.measure(variant, rate))
    if variant.trial == "idle":
        told = f"{line['rss_mib']:.1f} MiB, {line['idle_bytes']:.0f} bytes a connection"
    else:
        told = f"{line['cpu_us']:.1f} us, {line['beats']:.2f} beats, {line['rps']:.0f}/s, p99 {line['p99_us']:.0f} us"
    say(f"{scenario.name:7} {run:2} {variant.name:34} {told}{' (disturbed)' if line['marked'] else ''}")
    return line


def full_rate(bench, scenario):
    """What the scenario's loads are shares of: the rate that the first of those variants reaches by wrk; less, where its
    share of that would keep a processor busy for more than half of the time."""
    first = next((variant for variant in scenario.variants if variant.load.share), None)
    if first is None:
        return None
    rate = bench.once(replace(first, load=replace(first.load, share=0.0)), None)["rps"]
    for _ in range(CALM_STEPS):
        calm = figures.calm(rate, bench.once(first, rate)["busiest"])
        if calm == rate:
            break
        rate = calm
    return rate


def interleaved(bench, scenario, runs, raw):
    """Every variant once, then all of them again; gives what failed."""
    failures = {}
    try:
        rate = full_rate(bench, scenario)
    except (Failure, OSError) as failure:
        return [f"{scenario.name}: {failure}"]
    for run in range(1, min(runs, scenario.runs_max) + 1):
        for variant in scenario.variants:
            try:
                raw.write(measured(bench, scenario, variant, run, rate))
            except (Failure, OSError) as failure:
                failures[variant.name] = f"{scenario.name}, {variant.name}, run {run}: {failure}"
                say(failures[variant.name])
    return list(failures.values())


def break_off(*_):
    """Ctrl-C or SIGTERM: what runs is ended on the way out, and a second one must not come in between."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def measure_all(bench, chosen, runs, raw):
    """What failed, and whether all of it was measured."""
    failures = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, break_off)
    try:
        for scenario in chosen:
            failures += interleaved(bench, scenario, runs, raw)
    except KeyboardInterrupt:
        return failures, False
    return failures, True


def new_folder(given):
    if given.out:
        return report.folder(given.out.resolve().parent, given.out.name)
    return report.folder(machine.HOUSE / "bench" / "runs", f"{report.today()}-{machine.slug(machine.model())}")


def main():
    given = options()
    start, notes = time.monotonic(), []
    places = machine.places(os.sched_getaffinity(0))
    chosen = plan(given, places, notes)
    path = new_folder(given)
    bench = Bench(places, given.programs, given.built / "examples", given.seconds)
    raw, awake = report.Raw(path / "raw.csv"), machine.Awake()
    failures, whole = measure_all(bench, chosen, given.runs, raw)
    awake.close()
    raw.close()
    notes += failures if whole else [*failures, "broken off: what would have followed"]
    results = figures.results(raw.lines, chosen)
    report.write(path, results, {
        "title": path.name, "command": shlex.join(["bench/run", *shown_arguments()]),
        "took": "{} min {} s".format(*divmod(round(time.monotonic() - start), 60)), "seconds": given.seconds,
        "warm_s": WARM_S, "machine": machine.description(), "awake": awake.permitted,
        "versions": machine.versions(given.programs)}, notes)
    print(report.table(results))
    for note in notes:
        say(f"not measured: {note}")
    say(f"written: {path}")
    return INTERRUPTED if not whole else int(bool(failures))


def shown_arguments():
    """What bench/run was given: it puts its own in front."""
    return sys.argv[3:]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
