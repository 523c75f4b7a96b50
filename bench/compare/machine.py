"""The machine: which processors take part, how they are kept awake, what is installed, what it is called."""

import contextlib
import os
import pathlib
import platform
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass

HOUSE = pathlib.Path(__file__).resolve().parents[2]
LUA_MODULES = ("/usr/lib/nginx/modules/ndk_http_module.so", "/usr/lib/nginx/modules/ngx_http_lua_module.so")
# Processors for load, backend and Redis, where the proxy has one of its own.
REST_MAX = 3
DMA_LATENCY = "/dev/cpu_dma_latency"


@dataclass(frozen=True)
class Place:
    """On which processors the proxy runs, on which the load and the backend, and on which Redis."""

    proxy: frozenset
    rest: frozenset
    store: frozenset

    def groups(self):
        """Sets of processors, each with who runs on it."""
        found = {}
        for who in ("proxy", "rest", "store"):
            found.setdefault(getattr(self, who), []).append(who)
        return list(found.items())


def places(processors):
    """The placements that these processors allow, by name."""
    ordered = sorted(processors)
    last = frozenset(ordered[-1:])
    found = {"one": Place(last, last, last)}
    if len(ordered) >= 2:
        rest = frozenset(ordered[:-1][:REST_MAX])
        found["split"] = Place(last, rest, rest)
        # The load and the backend fill one processor sooner than the proxy does its own; with Redis there too it would be
        # their queue that is measured. Redis is the proxy's burden then, as it is the proxy that asks for it.
        found["paced"] = Place(last, rest, rest if len(rest) > 1 else last)
        two, other = frozenset(ordered[-2:]), frozenset(ordered[:2])
        rest = other if len(ordered) >= 4 else two
        found["two"] = Place(two, rest, rest)
    return found


class Awake:
    """Where permitted, idle processors do not sleep while this is held: waking one costs whoever wakes it, in a virtual
    machine tens of microseconds, and that is no work of any proxy."""

    def __init__(self):
        self.file, self.permitted = None, False
        with contextlib.suppress(OSError):
            self.file = open(DMA_LATENCY, "wb", buffering=0)
            self.file.write(struct.pack("i", 0))
            self.permitted = True

    def close(self):
        if self.file:
            self.file.close()


def installed():
    """The peers that can take part."""
    found = {"rateguard"}
    if shutil.which("nginx"):
        found.add("nginx")
        if all(os.path.exists(module) for module in LUA_MODULES):
            found.add("nginx-lua")
    if shutil.which("haproxy"):
        found.add("haproxy")
    return found


def model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def slug(name):
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "").replace("(tm)", "")).strip("-")


def first_line(*command):
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=HOUSE)
    except OSError:
        return "not installed"
    lines = (said.stdout + said.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def versions(programs):
    """(what, its version) of everything that takes part."""
    told = [(name, first_line(str(path), "--version")) for name, path in programs.items()]
    changed = " and changes" if subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=HOUSE, capture_output=True, text=True,
        check=False).stdout.strip() else ""
    told += [("source", first_line("git", "rev-parse", "HEAD") + changed), ("rustc", first_line("rustc", "--version"))]
    told += [("nginx", first_line("nginx", "-v")), ("haproxy", first_line("haproxy", "-v")),
             ("redis-server", first_line("redis-server", "--version")), ("wrk", first_line("wrk", "-v"))]
    told += [("Python", platform.python_version()), ("kernel", f"{platform.system()} {platform.release()}")]
    return told


def description():
    memory_kib = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1])
    guest = "hypervisor" in pathlib.Path("/proc/cpuinfo").read_text()
    kind = "a virtual machine" if guest else "no virtual machine"
    return f"{model()}, {len(os.sched_getaffinity(0))} processors, {memory_kib / 2**20:.1f} GiB, {kind}"
