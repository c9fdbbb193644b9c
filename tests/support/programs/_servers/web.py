# SPDX-License-Identifier: Apache-2.0
"""An HTTP server on the interpreter's own modules; _loads/runtimes.py knows its answers."""

import hashlib
import http.server
import urllib.parse


def chain(seed: int, count: int) -> list[int]:
    values = []
    for _ in range(count):
        seed = (seed * 1664525 + 1013904223) % 2**32
        values.append(seed)
    return values


def tree(depth: int) -> object:
    return None if depth == 0 else (tree(depth - 1), tree(depth - 1), depth)


def total(node: object) -> int:
    if not isinstance(node, tuple):
        return 0
    left, right, depth = node
    return total(left) + total(right) + int(depth)


def fail(depth: int) -> None:
    if depth == 0:
        raise ValueError("bottom")
    try:
        fail(depth - 1)
    finally:
        str(depth)


def failures(number: int) -> int:
    caught = 0
    for turn in range(10):
        try:
            fail(turn)
        except ValueError:
            caught += turn
    return number + caught


ANSWERS = {
    "/hash": lambda n: hashlib.sha256(f"{n},".encode() * 200).hexdigest(),
    "/sort": lambda n: ",".join(map(str, sorted(chain(n, 100)))),
    "/tree": lambda n: str(n + total(tree(8))),
    "/fail": lambda n: str(failures(n)),
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        number = int(urllib.parse.parse_qs(url.query)["n"][0])
        self.answer(ANSWERS[url.path](number).encode())

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"]))[::-1])

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print("port", server.server_address[1], flush=True)
    server.serve_forever()
