#!/usr/bin/env python3
"""Redis's CPU time of a decision, one EVALSHA for each and many in one: lua/token_bucket.lua beside many.lua of this folder.

many.py FOLDER_OF_THE_HOUSE [ROUNDS]: starts a redis-server on a port of its own, ends it, prints one CSV line a run.
"""
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

HOUSE, ROUNDS = pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 7
DECISIONS, WINDOW, USERS = 60_000, 256, 10_000
ARGUMENTS = [1_000_000_000, 1, 1_000_000, 1_000_000, 1]


def command(*parts):
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"".join([b"*%d\r\n" % len(parts)] + [b"$%d\r\n%s\r\n" % (len(part), part) for part in parts])


def read(stream):
    line = stream.readline()
    if line[:1] == b"*":
        return [read(stream) for _ in range(int(line[1:]))]
    return stream.read(int(line[1:]) + 2)[:-2] if line[:1] == b"$" else line.strip()


def load(connection, stream, text):
    connection.sendall(command("SCRIPT", "LOAD", text))
    return read(stream)


def run(connection, stream, process, together, count, digest):
    """Microseconds of Redis for a decision: so many in a group, as one call or as calls that follow each other."""
    chance = random.Random(1)
    groups = []
    for _ in range(USERS // count + 1):
        keys = [b"rate_limit:{key:user-%d}:/:limit" % chance.randrange(USERS) for _ in range(count)]
        if together:
            arguments = [argument for _ in keys for argument in [1, -1, *ARGUMENTS]]
            groups.append(command("EVALSHA", digest, count, *keys, *arguments))
        else:
            groups.append(b"".join(command("EVALSHA", digest, 1, key, *ARGUMENTS) for key in keys))
    spent = lambda: int(open(f"/proc/{process}/schedstat").read().split()[0]) / 1e3
    before, done, window = spent(), 0, max(1, WINDOW // count)
    while done < DECISIONS:
        first = done // count
        connection.sendall(b"".join(groups[(first + number) % len(groups)] for number in range(window)))
        for _ in range(window if together else window * count):
            read(stream)
        done += window * count
    return (spent() - before) / done


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    redis = subprocess.Popen(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                              "--appendonly", "no"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                connection = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.05)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = connection.makefile("rb")
        single = load(connection, stream, (HOUSE / "lua" / "token_bucket.lua").read_bytes())
        many = load(connection, stream, pathlib.Path(__file__).with_name("many.lua").read_bytes())
        print("count,round,call,us")
        for count in (1, 2, 4, 8, 18, 32):
            for number in range(ROUNDS):
                for name, digest in (("single", single), ("many", many)):
                    spent = run(connection, stream, redis.pid, name == "many", count, digest)
                    print(f"{count},{number},{name},{spent:.2f}", flush=True)
    finally:
        redis.terminate()
        redis.wait()


main()
