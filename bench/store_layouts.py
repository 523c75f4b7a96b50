#!/usr/bin/env python3
"""CPU time that Redis spends on a decision, by the layout of a bucket's state.

Every layout is `bench/plain_bucket.lua`, which is lua/token_bucket.lua without leases, with its two places exchanged that read
and write state; `product` is lua/token_bucket.lua itself. Starts a redis-server of its own on a free port of 127.0.0.1 and ends it.
Python's standard library only. Runs are interleaved: each round has every layout once, every other round backwards.

    bench/store_layouts.py [--rounds 7] [--scale 1.0] [--out DIRECTORY]

Writes raw.csv, one line a run, and summary.md into the directory (bench/runs/<date>-store-layouts).
"""

import argparse
import csv
import hashlib
import os
import pathlib
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HOUSE = pathlib.Path(__file__).resolve().parent.parent
PRODUCT = HOUSE / "lua" / "token_bucket.lua"
SCRIPT = HOUSE / "bench" / "plain_bucket.lua"

USERS = 10_000
KEYS = (1, 3)
# Decisions of one run by depth: shallow ones cost several times as much.
DECISIONS = {1: 3_000, 8: 8_000, 32: 16_000}
OUTCOMES = ("allowed", "denied")

# 5/s with a burst of 5000: 1000 s from empty to full, longer than a whole measurement.
REFILL, TOKEN = 1, 200_000
CAPACITY = 5_000 * TOKEN
# An allowed request takes a token of a bucket that is half full: a fuller one would vanish between two requests. A denied
# one asks for a full bucket, where the preparation has emptied it.
COST = {"allowed": TOKEN, "denied": CAPACITY}
PREPARED = {"allowed": CAPACITY // 2, "denied": CAPACITY}

LIMITS = ("per-user", "per-user-total", "per-ip-total")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

READ = """  local stored = redis.call('GET', key)
  if stored then
    local u, l, t = string.match(stored, '^(%d+) (%d+) ([1-9]%d*)$')
    if not u then
      return redis.error_reply('WRONGTYPE ' .. key .. ' does not hold a token bucket')
    end
    units, last, t = u + 0, l + 0, t + 0
"""
READ_AFTER = READ + """    if t ~= token then
      units = math.floor(units / t) * token
    end
    if units > capacity then
      units = capacity
    end
    if now > last then
      local gained = (now - last) * refill
      last = now
      if gained >= capacity - units then
        units = capacity
      else
        units = units + gained
      end
    end
"""
WRITE = """    redis.call('SET', key, string.format('%.0f %.0f %s', units, lasts[i], ARGV[at + 3]), 'PX', \
string.format('%.0f', full_in_ms))
"""

HASH_READ = """  local stored = redis.call('HMGET', key, 'units', 'last', 'token')
  if stored[1] then
    local t
    units, last, t = stored[1] + 0, stored[2] + 0, stored[3] + 0
"""
HASH_WRITE = """    redis.call('HSET', key, 'units', string.format('%.0f', units), 'last', string.format('%.0f', lasts[i]), \
'token', ARGV[at + 3])
    redis.call('PEXPIRE', key, string.format('%.0f', full_in_ms))
"""
PACKED_READ = """  local stored = redis.call('GET', key)
  if stored then
    if #stored ~= 24 then
      return redis.error_reply('WRONGTYPE ' .. key .. ' does not hold a token bucket')
    end
    local t
    units, last, t = struct.unpack('<ddd', stored)
"""
PACKED_WRITE = """    redis.call('SET', key, struct.pack('<ddd', units, lasts[i], ARGV[at + 3] + 0), 'PX', \
string.format('%.0f', full_in_ms))
"""
# The microsecond at which the bucket is full: no units, no clock of its own, no token.
NUMBER_READ = """  local stored = redis.call('GET', key)
  if stored then
    local full_at = tonumber(stored)
    if not full_at then
      return redis.error_reply('WRONGTYPE ' .. key .. ' does not hold a token bucket')
    end
    if full_at > now then
      units = capacity - (full_at - now) * refill
      if units < 0 then
        units = 0
      end
    end
"""
NUMBER_WRITE = """    redis.call('SET', key, string.format('%.0f', now + math.ceil((ARGV[at + 1] - units) / ARGV[at + 2])), 'PX', \
string.format('%.0f', full_in_ms))
"""
# Reads and writes nothing: what any script costs that is asked the same and answers as much.
FLOOR = """local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local levels = {}
for i, key in ipairs(KEYS) do
  levels[i] = ARGV[(i - 1) * 5 + 4] == ARGV[(i - 1) * 5 + 1] and -1 or now
end
return levels
"""


def exchanged(text, *pairs):
    for old, new in pairs:
        if text.count(old) != 1:
            sys.exit(f"{SCRIPT} has changed: this is not in it once, so the layouts must be written anew:\n{old}")
        text = text.replace(old, new)
    return text


def layouts():
    """Name, what it is, the script's text, and whether it is a function."""
    text = SCRIPT.read_text()
    function = "#!lua name=bench\nredis.register_function('take', function(KEYS, ARGV)\n" + text + "\nend)\n"
    return [
        ("string", "`units last token`, the plain script", text, False),
        ("product", "the same in `lua/token_bucket.lua`, which knows leases too", PRODUCT.read_text(), False),
        ("brief", "`string`, the same bytes written by %d instead of %.0f",
         exchanged(text, (WRITE, WRITE.replace("%.0f", "%d"))), False),
        ("hash", "HMGET, HSET, PEXPIRE", exchanged(text, (READ, HASH_READ), (WRITE, HASH_WRITE)), False),
        ("packed", "three doubles by struct.pack, GET, SET PX",
         exchanged(text, (READ, PACKED_READ), (WRITE, PACKED_WRITE)), False),
        ("number", "one number (GCRA), GET, SET PX",
         exchanged(text, (READ_AFTER, NUMBER_READ), (WRITE, NUMBER_WRITE)), False),
        ("function", "`string` as a Redis function (FCALL)", function, True),
        ("floor", "TIME and an answer, no state at all", FLOOR, False),
    ]


def command(*parts):
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        part = part if isinstance(part, bytes) else str(part).encode()
        out.append(b"$%d\r\n%s\r\n" % (len(part), part))
    return b"".join(out)


class Redis:
    """A server of our own and one connection to it."""

    def __init__(self, processor):
        self.folder = tempfile.mkdtemp(prefix="store-layouts-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--dir", self.folder, "--logfile", os.path.join(self.folder, "log")])
        if processor is not None:
            os.sched_setaffinity(self.process.pid, {processor})
        deadline = time.monotonic() + 10
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    self.stop()
                    sys.exit("redis-server does not start")
                time.sleep(0.02)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(30)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *parts):
        """One command that answers a bulk string, a number or a status."""
        self.socket.sendall(command(*parts))
        data = b""
        while b"\r\n" not in data:
            data += self.socket.recv(65536)
        head, _, rest = data.partition(b"\r\n")
        if head.startswith(b"-") or head == b"$-1":
            sys.exit(f"{parts[:2]}: {head.decode()}")
        if not head.startswith(b"$"):
            return head[1:].decode()
        length = int(head[1:])
        while len(rest) < length + 2:
            rest += self.socket.recv(65536)
        return rest[:length].decode()

    def numbers(self, batch, lines):
        """Sends commands at once and gives the text of all replies, so many lines."""
        self.socket.sendall(batch)
        data = self.socket.recv(65536)
        while data.count(b"\r\n") < lines:
            more = self.socket.recv(65536)
            if not more:
                sys.exit("the server closed the connection")
            data += more
        return data

    def cpu(self):
        """Microseconds of the main thread, of the process as INFO says, of the process as the kernel says."""
        fields = dict(line.split(":", 1) for line in self.ask("INFO", "cpu").split("\r\n") if ":" in line)
        whole = float(fields["used_cpu_user"]) + float(fields["used_cpu_sys"])
        main = whole
        if "used_cpu_user_main_thread" in fields:
            main = float(fields["used_cpu_user_main_thread"]) + float(fields["used_cpu_sys_main_thread"])
        return main * 1e6, whole * 1e6, ticks(self.process.pid) * TICK_S * 1e6


def ticks(process):
    stat = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(stat[11]) + int(stat[12])


def busy_ticks():
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    # user, nice, system, irq, softirq, steal
    return fields[0] + fields[1] + fields[2] + fields[5] + fields[6] + fields[7]


def key(layout, user, limit):
    digest = hashlib.sha256(f"user {user}".encode()).hexdigest()[:16]
    return f"bench_{layout[:3]}:{{key:{digest}}}:/api/data:{limit}"


def commands(layout, digest, count, cost):
    name, _, _, is_function = layout
    verb = ("FCALL", "take") if is_function else ("EVALSHA", digest)
    arguments = [CAPACITY, REFILL, TOKEN, cost, 1] * count
    return [command(*verb, count, *(key(name, user, limit) for limit in LIMITS[:count]), *arguments)
            for user in range(USERS)]


def run(redis, asked, start, depth, count, decisions, outcome):
    """So many decisions from this user on, in turn; gives what they cost."""
    batches = []
    for first in range(start, start + decisions, depth):
        batches.append(b"".join(asked[user % USERS] for user in range(first, first + depth)))
    short = count if outcome == "denied" else 0
    lines = depth * (1 + count)
    own = os.times()
    busy, wall = busy_ticks(), time.monotonic()
    before = redis.cpu()
    for batch in batches:
        data = redis.numbers(batch, lines)
        if data.count(b":-") != short * depth or data.count(b"-ERR"):
            sys.exit(f"not {outcome}: {data[:200]!r}")
    after = redis.cpu()
    wall = time.monotonic() - wall
    now = os.times()
    own = (now.user - own.user) + (now.system - own.system)
    others = (busy_ticks() - busy) * TICK_S - own - (after[1] - before[1]) / 1e6
    done = len(batches) * depth
    costs = [(b - a) / done for a, b in zip(before, after)]
    return done, costs, max(0.0, others / wall), wall


def measure(redis, rounds, scale, note):
    rows = []
    choice = layouts()
    digests = {}
    for name, _, text, is_function in choice:
        digests[name] = redis.ask("FUNCTION", "LOAD", text) if is_function else redis.ask("SCRIPT", "LOAD", text)
    sizes = {}
    for outcome in OUTCOMES:
        for count in KEYS:
            redis.ask("FLUSHALL")
            asked = {}
            for layout in choice:
                name = layout[0]
                asked[name] = commands(layout, digests[name], count, COST[outcome])
                prepare = commands(layout, digests[name], count, PREPARED[outcome])
                for first in range(0, USERS, 100):
                    redis.numbers(b"".join(prepare[first:first + 100]), 100 * (1 + count))
                if name != "floor":
                    sizes[name] = int(redis.ask("MEMORY", "USAGE", key(name, 7, LIMITS[0])))
            for depth, decisions in DECISIONS.items():
                decisions = max(depth, int(decisions * scale) // depth * depth)
                note(f"{outcome}, {count} keys, depth {depth}")
                for number in range(rounds):
                    order = choice if number % 2 == 0 else choice[::-1]
                    for place, (name, *_) in enumerate(order):
                        done, costs, others, wall = run(
                            redis, asked[name], number * decisions, depth, count, decisions, outcome)
                        rows.append({
                            "outcome": outcome, "keys": count, "depth": depth, "round": number, "place": place,
                            "layout": name, "decisions": done, "main_us": round(costs[0], 3),
                            "info_us": round(costs[1], 3), "stat_us": round(costs[2], 3),
                            "others": round(others, 3), "wall_s": round(wall, 3)})
    return rows, sizes


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def summary(rows, sizes, facts):
    names = [layout[0] for layout in layouts()]
    out = ["CPU time of Redis's main thread a decision, in microseconds: median (least–most) of the rounds.", ""]
    head = "| outcome | keys | depth |" + "".join(f" {name} |" for name in names)
    line = "|---" * (3 + len(names)) + "|"
    cells = sorted({(row["outcome"], row["keys"], row["depth"]) for row in rows})

    def values(cell, name):
        found = [row for row in rows if (row["outcome"], row["keys"], row["depth"]) == cell and row["layout"] == name]
        return [row["main_us"] for row in sorted(found, key=lambda row: row["round"])]

    out += [head, line]
    for cell in cells:
        costs = "".join(f" {spread(values(cell, name))} |" for name in names)
        out.append("| {} | {} | {} |".format(*cell) + costs)
    out += ["", "In pairs: each layout over `string` in the same round.", "", head, line]
    pooled = {name: [] for name in names}
    for cell in cells:
        text = ""
        for name in names:
            ratios = [a / b for a, b in zip(values(cell, name), values(cell, "string"))]
            pooled[name] += ratios
            text += f" {spread(ratios)} |"
        out.append("| {} | {} | {} |".format(*cell) + text)
    out.append("| all | | |" + "".join(f" {spread(pooled[name])} |" for name in names))
    out += ["", "| layout | what | bytes a bucket (MEMORY USAGE) |", "|---|---|---|"]
    out += [f"| {name} | {what} | {sizes.get(name, '')} |" for name, what, *_ in layouts()]
    main, info, stat = (sum(row[field] * row["decisions"] for row in rows) / 1e6
                        for field in ("main_us", "info_us", "stat_us"))
    others = [row["others"] for row in rows]
    out += ["", f"All runs together: main thread {main:.2f} s, INFO cpu {info:.2f} s, /proc/pid/stat {stat:.2f} s.",
            f"Processors that others kept busy meanwhile: {spread(others)} of {os.cpu_count()}.", ""] + facts
    return "\n".join(out) + "\n"


def version(*command_line):
    return subprocess.run(command_line, capture_output=True, text=True, check=True).stdout.strip().split("\n")[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="of the decisions in a run")
    parser.add_argument("--out", type=pathlib.Path,
                        default=HOUSE / "bench" / "runs" / f"{time.strftime('%Y-%m-%d')}-store-layouts")
    options = parser.parse_args()
    began = time.monotonic()

    def note(text):
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr)

    processors = sorted(os.sched_getaffinity(0))
    # The client and the server each on a processor of its own, so that neither is moved about.
    if len(processors) > 1:
        os.sched_setaffinity(0, {processors[0]})
    redis = Redis(processors[-1] if len(processors) > 1 else None)
    try:
        rows, sizes = measure(redis, options.rounds, options.scale, note)
    finally:
        redis.stop()
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "raw.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    model = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    facts = [
        f"`bench/store_layouts.py --rounds {options.rounds} --scale {options.scale}`, {time.strftime('%Y-%m-%d')}, "
        f"{time.monotonic() - began:.0f} s.",
        f"{version('redis-server', '--version').split(' sha')[0]}; Python {platform.python_version()}; "
        f"{platform.system()} {platform.release().split('-')[0]}; {len(model)} × {model[0]}.",
        f"plain_bucket.lua: SHA-1 {hashlib.sha1(SCRIPT.read_bytes()).hexdigest()}; "
        f"token_bucket.lua: SHA-1 {hashlib.sha1(PRODUCT.read_bytes()).hexdigest()}.",
    ]
    text = summary(rows, sizes, facts)
    (options.out / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
