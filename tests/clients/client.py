"""What Python's http.client does, through a gateway before the tests' own backend: client.py PORT."""

import http.client
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)


def ask(method, path, body=None, **more):
    connection.request(method, path, body=body, **more)
    response = connection.getresponse()
    assert response.status == 200, f"{method} {path}: {response.status}"
    return response, response.read()


# One connection for all of them.
_, data = ask("GET", "/")
stream = connection.sock
for number in range(100):
    _, data = ask("GET", f"/bytes/{number}")
    assert data == bytes(at % 251 for at in range(number)), f"the body of request {number}"

pieces = [b"piece %d\n" % number * number for number in range(1, 200)]
_, data = ask("POST", "/echo", iter(pieces), encode_chunked=True)
assert data == b"".join(pieces), "a body in chunks"

response, data = ask("HEAD", "/bytes/1000")
assert data == b"" and response.getheader("Content-Length") == "1000", "a HEAD"

# A body after the HEAD would be taken for this answer.
_, data = ask("POST", "/echo", b"x" * 200_000)
assert data == b"x" * 200_000, "a body with a length"

assert stream is not None and connection.sock is stream, "the connection was not kept"
