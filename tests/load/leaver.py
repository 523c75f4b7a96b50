"""Clients that end in the middle of what they do.

leaver.py PORT COUNT SEED: forks COUNT clients, a few at a time. Most are killed within 30 ms, wherever they are; the
others end by themselves, orderly or with a reset. Prints how many ended how; fails where an orderly one got a wrong
answer. Only the standard library is needed.
"""

import collections
import http.client
import json
import os
import random
import signal
import socket
import struct
import sys
import time

AT_ONCE = 8
LIFE_MAX = 0.030
# An orderly client that takes longer than this hangs.
PATIENCE = 20
# One that takes longer than this is worth a line.
SLOW = 1

PORT, COUNT, SEED = (int(argument) for argument in sys.argv[1:4])
ADDRESS = ("127.0.0.1", PORT)


def expect(condition, what):
    if not condition:
        sys.stderr.write(f"wrong: {what}\n")
        os._exit(1)


def ask(chance, method, path, body=None, **more):
    """One request with http.client; gives the connection and its response."""
    connection = http.client.HTTPConnection(*ADDRESS, timeout=PATIENCE)
    connection.request(method, path, body=body, **more)
    response = connection.getresponse()
    expect(response.status == 200, f"{method} {path}: {response.status}")
    return connection, response


def slow_get(chance):
    connection, response = ask(chance, "GET", f"/slow/{chance.randrange(20)}")
    expect(response.read() == b"ok", "the body of a slow answer")
    return connection.sock


def upload(chance):
    body = chance.randbytes(chance.randrange(200_000))
    connection, response = ask(chance, "POST", "/length", body, headers={"X-Number": "1"})
    expect(response.read() == body, "an upload with a length")
    return connection.sock


def upload_in_chunks(chance):
    pieces = [chance.randbytes(chance.randrange(1, 20_000)) for _ in range(chance.randrange(20))]

    def slowly():
        for piece in pieces:
            yield piece
            time.sleep(chance.random() / 500)

    connection, response = ask(chance, "POST", "/chunked", slowly(), headers={"X-Number": "1"}, encode_chunked=True)
    expect(response.read() == b"".join(pieces), "an upload in chunks")
    return connection.sock


def download_slowly(chance):
    connection, response = ask(chance, "GET", "/large")
    left = int(response.getheader("Content-Length"))
    while left:
        piece = response.read(min(left, 300_000))
        expect(piece == b"x" * len(piece) and piece, "a large download")
        left -= len(piece)
        time.sleep(chance.random() / 500)
    return connection.sock


def pipeline(chance):
    stream = socket.create_connection(ADDRESS, timeout=PATIENCE)
    requests = chance.randrange(1, 40)
    stream.sendall(b"GET /slow/0 HTTP/1.1\r\nHost: h\r\n\r\n" * requests)
    answers = b""
    while answers.count(b"\r\n\r\nok") < requests:
        piece = stream.recv(65536)
        expect(piece, f"the end came after {answers.count(b'HTTP/1.1 200')} of {requests} answers")
        answers += piece
    return stream


def tunnel(chance):
    stream = socket.create_connection(ADDRESS, timeout=PATIENCE)
    stream.sendall(b"GET /tunnel HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        expect(byte, "the answer to an upgrade")
        head += byte
    expect(head.startswith(b"HTTP/1.1 101 "), head)
    for _ in range(chance.randrange(1, 20)):
        sent = chance.randbytes(chance.randrange(1, 5_000))
        stream.sendall(sent)
        got = b""
        while len(got) < len(sent):
            piece = stream.recv(65536)
            expect(piece, "a tunnel that ended")
            got += piece
        expect(got == sent, "bytes from a tunnel")
    return stream


def half_a_head(chance):
    stream = socket.create_connection(ADDRESS, timeout=PATIENCE)
    for byte in b"GET /slow/0 HTTP/1.1\r\nHost: h\r\nX-Long: "[: chance.randrange(40)]:
        stream.sendall(bytes([byte]))
        time.sleep(chance.random() / 1000)
    return stream


ACTIONS = [slow_get, upload, upload_in_chunks, download_slowly, pipeline, tunnel, half_a_head]


def client(seed, ending):
    """What a child does; never returns."""
    chance = random.Random(seed)
    try:
        if ending == "reset":
            # The alarm comes at any point; a handler's exception would be caught by who knows whom.
            signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
            signal.setitimer(signal.ITIMER_REAL, chance.random() * LIFE_MAX + 0.0001)
            socket.socket.connect = reset_at_the_end(socket.socket.connect)
        while True:
            action, start = chance.choice(ACTIONS), time.monotonic()
            stream = action(chance)
            if time.monotonic() - start > SLOW:
                sys.stderr.write(f"slow: {action.__name__} took {time.monotonic() - start:.1f} s\n")
            if ending == "orderly":
                if stream is not None:
                    stream.close()
                os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    os._exit(1)


def reset_at_the_end(connect):
    """Sockets that are connected this way end with a reset, also when their process is gone."""

    def connecting(stream, address):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return connect(stream, address)

    return connecting


def main():
    chance = random.Random(SEED)
    alive, counts, started, failed = {}, collections.Counter(), 0, 0
    while started < COUNT or alive:
        while started < COUNT and len(alive) < AT_ONCE:
            ending = chance.choices(["kill", "reset", "orderly"], [7, 2, 1])[0]
            seed, life = chance.getrandbits(64), chance.random() * LIFE_MAX
            child = os.fork()
            if child == 0:
                client(seed, ending)
            alive[child] = (ending, time.monotonic() + (life if ending == "kill" else PATIENCE))
            counts[ending] += 1
            started += 1
        now = time.monotonic()
        for child, (ending, until) in list(alive.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                failed += status != 0
                del alive[child]
            elif now >= until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                failed += ending != "kill"
                del alive[child]
        time.sleep(0.001)
    print(json.dumps({"seed": SEED, "failed": failed, **counts}))
    sys.exit(1 if failed else 0)


main()
