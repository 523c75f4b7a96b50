"""What drives a proxy: wrk, pace, connections that are held, a store that is filled; and the yardstick beside it."""

import contextlib
import json
import os
import selectors
import socket
import subprocess
import threading
from dataclasses import dataclass

from machine import HOUSE
from processes import Failure, spawn

SCRIPT = HOUSE / "bench" / "load.lua"
PATH = "/api/items"
SLACK_S = 20
ROUND_TRIPS = 20_000
# Connections, and requests on their way on each of them, while a store is filled.
FILL_CONNECTIONS, FILL_DEPTH, FILL_S = 32, 100, 120
RECEIVE_BYTES = 1 << 18


@dataclass(frozen=True)
class Load:
    """Requests as wrk sends them, one after the other on each connection; or as pace does, at a rate."""

    mode: str = "key"  # key, users, fresh, upload
    users: int = 1
    path: str = PATH
    connections: int = 64
    threads: int = 1
    share: float = 0.0  # of the rate that the scenario's first such variant reaches by wrk: then it is pace's
    denied: bool = False  # answers are 429, not 200


@dataclass(frozen=True)
class Told:
    """What a command printed, and the CPU time that it took."""

    facts: dict
    cpu_ns: int


def object_of(lines):
    """A JSON object in the last line."""
    return json.loads(lines[-1])


def table_of(lines):
    """Names and values between commas, in the last two lines."""
    names, values = (line.replace('"', "").split(",") for line in lines[-2:])
    return dict(zip(names, values))


class Command:
    """One that runs to its end and tells its figures in its last lines."""

    def __init__(self, command, processors, seconds_max, read=object_of):
        self.name, self.read = os.path.basename(command[0]), read
        self.process = spawn(command, processors, subprocess.PIPE, stderr=subprocess.STDOUT)
        self.guard = threading.Timer(seconds_max, self.process.kill)
        self.guard.start()

    def wait(self):
        try:
            text = self.process.stdout.read().decode()
            _, status, usage = os.wait4(self.process.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            self.end()
        try:
            facts = self.read(text.strip().splitlines())
        except (ValueError, IndexError):
            raise Failure(f"{self.name}: {text[-300:].strip() or self.process.returncode}") from None
        return Told(facts, int((usage.ru_utime + usage.ru_stime) * 1e9))

    def end(self):
        self.guard.cancel()
        self.process.stdout.close()
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()


def wrk(load, port, processors, seconds):
    shape = [f"-t{load.threads}", f"-c{load.connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(SCRIPT)]
    asked = [f"http://127.0.0.1:{port}{load.path}", "--", load.mode, str(load.users)]
    return Command(["wrk", *shape, *asked], processors, seconds + SLACK_S)


def pace_command(program, load, port, seconds, rate):
    return [str(program), "--port", str(port), "--rate", f"{rate:.0f}", "--seconds", str(seconds), "--path", load.path,
            "--connections", str(load.connections), "--users", str(load.users)]


def pace(program, load, port, processors, seconds, rate):
    return Command(pace_command(program, load, port, seconds, rate), processors, seconds + SLACK_S)


def beat(program, processors, seconds):
    return Command([str(program), str(seconds)], processors, seconds + SLACK_S)


def round_trip(port, processors):
    """How long one command to Redis takes there and back, alone, as redis-benchmark has it."""
    command = ["redis-benchmark", "-p", str(port), "-c", "1", "-n", str(ROUND_TRIPS), "--csv", "-t", "get"]
    return Command(command, processors, SLACK_S, table_of)


def request(path, user):
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: user-{user}\r\n\r\n".encode()


class Held:
    """Connections that have had an answer each and keep silent since."""

    def __init__(self, port, count):
        self.sockets = contextlib.ExitStack()
        asked = request(PATH, 1)
        try:
            for _ in range(count):
                one = self.sockets.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                one.sendall(asked)
                if not one.recv(4096).startswith(b"HTTP/1.1 200"):
                    raise Failure("a connection that is to be held gets no answer")
        except OSError as error:
            self.close()
            raise Failure(f"connections to be held: {error}") from None

    def close(self):
        self.sockets.close()


class Filler:
    """One connection that asks for its share of the users, so many at once."""

    MARK = b"HTTP/1.1 308"

    def __init__(self, port, users):
        self.users = iter(users)
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.missing, self.tail = 0, b""

    def ask(self):
        """Sends the next requests; False where none is left."""
        batch = [request("/fill", user) for user, _ in zip(self.users, range(FILL_DEPTH))]
        self.missing = len(batch)
        self.socket.sendall(b"".join(batch))
        return bool(batch)

    def answered(self):
        """Takes what has come; True where all that was asked is answered."""
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise Failure("a connection was closed while the store was filled")
        data = self.tail + data
        self.missing -= data.count(self.MARK)
        self.tail = data[-len(self.MARK) + 1:]
        return self.missing == 0


def fill(port, users):
    """One allowed request of each user, answered by the gateway itself."""
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as sockets:
        for first in range(FILL_CONNECTIONS):
            filler = Filler(port, range(1 + first, users + 1, FILL_CONNECTIONS))
            sockets.enter_context(filler.socket)
            if filler.ask():
                selector.register(filler.socket, selectors.EVENT_READ, filler)
        while selector.get_map():
            ready = selector.select(FILL_S)
            if not ready:
                raise Failure("the store is not filled in time")
            for key, _ in ready:
                if key.data.answered() and not key.data.ask():
                    selector.unregister(key.fileobj)
