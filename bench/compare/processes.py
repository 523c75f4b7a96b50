"""Processes that a measurement starts, on ports that the kernel gives; none outlives it."""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time

READY_S = 15
STOP_S = 1
PAUSE_S = 0.01
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class Failure(Exception):
    """A measurement that cannot be made, and why."""


def files_max():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def free_ports(count):
    """So many ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def family(process):
    """A process and all that descend from it."""
    children = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as stat:
            parent = int(stat.read().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found, left = [], [process]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def spawn(command, processors, output=subprocess.DEVNULL, **options):
    """Starts a command on these processors. It ends with us, whatever becomes of us, and Ctrl-C is ours alone."""
    # nginx ends its workers where it is asked to end; what may be stopped hears of nothing but SIGKILL.
    last = signal.SIGTERM if command[0] == "nginx" else signal.SIGKILL

    def prepare():
        os.setsid()
        LIBC.prctl(PR_SET_PDEATHSIG, last)
        os.sched_setaffinity(0, processors)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max(), files_max()))

    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, preexec_fn=prepare,
                            **{"stderr": output, **options})


class Processes:
    """Those of one measurement; all are ended with it."""

    def __init__(self, folder):
        self.folder = folder
        self.started = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for name in reversed(list(self.started)):
            self.stop(name)

    def start(self, name, command, port, processors):
        """Starts a server and waits until it accepts connections."""
        log = self.folder / f"{name}.log"
        with open(log, "ab") as output:
            process = spawn(command, processors, output, cwd=self.folder)
        self.started[name] = process
        end = time.monotonic() + READY_S
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            time.sleep(PAUSE_S)
        raise Failure(f"{name} does not start: {log.read_text()[-300:].strip()}")

    def signal(self, name, number):
        self.started[name].send_signal(number)
        if number == signal.SIGKILL:
            self.started[name].wait()

    def alive(self, name):
        return self.started[name].poll() is None

    def families(self):
        return {name: family(process.pid) for name, process in self.started.items()}

    def stop(self, name):
        process = self.started.pop(name)
        if process.poll() is not None:
            return
        members = family(process.pid)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        for member in members:
            # Its session is ours, so the id has not been given to somebody else meanwhile.
            with contextlib.suppress(OSError):
                if os.getsid(member) == process.pid:
                    os.kill(member, signal.SIGKILL)
        process.wait()
