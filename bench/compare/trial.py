"""One measurement: fresh processes, load, and what it cost each of them."""

import contextlib
import pathlib
import shutil
import signal
import socket
import tempfile
import time

import accounting
import load
import peers
from processes import Failure, Processes, files_max, free_ports

# Of a processor, to other processes; above it, a run is done again, so often at most, and marked at last.
FOREIGN_MAX = 0.06
REPEATS = 2
# More unexpected answers than that, and it is no measurement of what it says. A hot bucket grants a few requests.
WRONG_MAX = 0.005
WARM_S = 1
BEAT_MARGIN_S = 0.2
SETTLE_S = 1.0
# What first requests allocate belongs to no connection.
FIRST_CONNECTIONS = 50
# Files that a proxy needs beside one for each connection that keeps silent.
FILES_SPARE = 300
# What only pace tells.
PACED = ("p90_us", "p999_us", "offered", "achieved", "waited", "late_p50_us", "late_p99_us", "late_max_us")


def idle_connections(wanted):
    return min(wanted, files_max() - FILES_SPARE)


class Bench:
    """What all measurements have in common."""

    def __init__(self, places, programs, tools, seconds):
        """`tools`: the folder of beat and pace."""
        self.places, self.programs, self.seconds = places, programs, seconds
        self.beat, self.pace = tools / "beat", tools / "pace"

    def measure(self, variant, rate=None):
        """A line of raw data; repeated where others were too busy meanwhile."""
        for attempt in range(1, REPEATS + 2):
            line = self.once(variant, rate)
            line.update(attempt=attempt, marked=int(line["foreign"] > FOREIGN_MAX))
            if not line["marked"]:
                break
        return line

    def once(self, variant, rate):
        """`rate`: what the load is a share of, where it is one."""
        place = self.places[variant.place]
        folder = pathlib.Path(tempfile.mkdtemp(prefix="rateguard-bench-"))
        try:
            with Processes(folder) as processes:
                trial = Trial(self, variant, place, processes)
                trial.start()
                return trial.idle() if variant.trial == "idle" else trial.driven(rate)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Trial:
    """One variant while its processes run."""

    def __init__(self, bench, variant, place, processes):
        self.bench, self.variant, self.place, self.processes = bench, variant, place, processes
        self.ports = dict(zip(("proxy", "backend", "redis"), free_ports(3)))

    def start(self):
        proxy, folder = self.variant.proxy, self.processes.folder
        self.processes.start("backend", peers.backend(folder, self.ports), self.ports["backend"], self.place.rest)
        if proxy.redis:
            self.processes.start("redis", peers.redis(folder, self.ports), self.ports["redis"], self.place.store)
        command = peers.command(proxy, folder, self.ports, self.bench.programs)
        self.processes.start("proxy", command, self.ports["proxy"], self.place.proxy)

    def driven(self, rate):
        """Under load: what it cost, and how long requests took."""
        variant, line = self.variant, {}
        if variant.round_trip:
            told = load.round_trip(self.ports["redis"], self.place.proxy).wait().facts
            line["rtt_us"] = float(told["avg_latency_ms"]) * 1e3
        if variant.fill:
            load.fill(self.ports["proxy"], variant.fill)
        with contextlib.ExitStack() as held:
            if variant.idle:
                held.callback(load.Held(self.ports["proxy"], idle_connections(variant.idle)).close)
            self.driver(WARM_S, rate).wait()
            self.fail_store()
            before = self.evalshas()
            line.update(self.loaded(rate))
            if before is not None:
                line["evalsha"] = (self.evalshas() - before) / line["requests"]
        return line

    def driver(self, seconds, rate):
        asked, port, processors = self.variant.load, self.ports["proxy"], self.place.rest
        if asked.share:
            return load.pace(self.bench.pace, asked, port, processors, seconds, asked.share * rate)
        return load.wrk(asked, port, processors, seconds)

    def fail_store(self):
        faults = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
        if self.variant.fault:
            self.processes.signal("redis", faults[self.variant.fault])

    def evalshas(self):
        """Scripts that Redis has run, where it runs."""
        if not self.variant.proxy.redis or self.variant.fault:
            return None
        with socket.create_connection(("127.0.0.1", self.ports["redis"]), 5) as server:
            server.sendall(b"INFO commandstats\r\nQUIT\r\n")
            text = b"".join(iter(lambda: server.recv(65_536), b"")).decode()
        for row in text.splitlines():
            if row.startswith("cmdstat_evalsha:"):
                return int(row.partition("calls=")[2].partition(",")[0])
        return 0

    def loaded(self, rate):
        seconds = self.bench.seconds
        beat = load.beat(self.bench.beat, self.place.proxy, seconds - BEAT_MARGIN_S)
        try:
            window = accounting.Window(self.processes.families())
            driver = self.driver(seconds, rate)
            try:
                told = driver.wait()
            finally:
                driver.end()
            window.close()
            yardstick = beat.wait()
        finally:
            beat.end()
        if not self.processes.alive("proxy"):
            raise Failure("the proxy ended under load")
        return self.costs(window, told, yardstick)

    def costs(self, window, told, yardstick):
        facts, cpu = told.facts, window.cpu
        requests = facts["requests"]
        if not requests:
            raise Failure("no request was answered")
        expected = facts["refused"] if self.variant.load.denied else requests - facts["refused"]
        if (requests - expected + facts["broken"]) / requests > WRONG_MAX:
            raise Failure(f"{requests} answers, {facts['refused']} not of 200 to 399, {facts['broken']} connections failed")
        spent = {"proxy": cpu["proxy"] + yardstick.cpu_ns, "rest": told.cpu_ns + cpu["backend"], "store": cpu.get("redis", 0)}
        foreign, busiest = (ask(self.place.groups(), spent) for ask in (window.foreign, window.busiest))
        each = {name: ns / requests / 1e3 for name, ns in cpu.items()}
        line = {
            "requests": requests, "seconds": facts["duration_us"] / 1e6, "rps": requests / facts["duration_us"] * 1e6,
            **{name: facts[name] for name in ("p50_us", "p99_us", "refused", "broken")},
            **{name: facts.get(name) for name in PACED},
            "cpu_us": each["proxy"], "load_us": told.cpu_ns / requests / 1e3, "backend_us": each["backend"],
            "redis_us": each.get("redis"), "beat_ns": yardstick.facts["median_ns"],
            "share": cpu["proxy"] / (told.cpu_ns + cpu["backend"]),
            "beats": cpu["proxy"] / requests / yardstick.facts["median_ns"],
            "busy": cpu["proxy"] / window.wall_ns, "busiest": busiest, "foreign": foreign,
        }
        if self.variant.load.path != load.PATH:
            line["mb_per_cpu_s"] = requests * peers.BIG_BYTES / 1e6 / (cpu["proxy"] / 1e9)
        return line

    def idle(self):
        """Connections that keep silent: the memory that they hold."""
        members = self.processes.families()["proxy"]
        load.Held(self.ports["proxy"], FIRST_CONNECTIONS).close()
        time.sleep(SETTLE_S)
        empty = accounting.resident_bytes(members)
        count = idle_connections(self.variant.idle)
        held = load.Held(self.ports["proxy"], count)
        try:
            time.sleep(SETTLE_S)
            full = accounting.resident_bytes(members)
        finally:
            held.close()
        # Nothing here that others could disturb: memory is no matter of time.
        return {"idle": count, "rss_mib": full / 2**20, "idle_bytes": (full - empty) / count, "foreign": 0.0}
