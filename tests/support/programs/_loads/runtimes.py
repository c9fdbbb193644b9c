# SPDX-License-Identifier: Apache-2.0
"""Load of the web servers in _servers: clients that know every answer."""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from http.client import HTTPConnection

from loadlib import REPLY_DEADLINE, Tally, run

PORT = int(sys.argv[2])
CLIENTS = 6
CONNECTED = threading.Barrier(CLIENTS + 1)
# Requests on one connection; then there is a new one.
KEPT = 50
# Sum of the depths of all nodes of a full binary tree of depth 8, and of 0 to 9.
TREE = sum(2 ** (8 - depth) * depth for depth in range(1, 9))
FAILURES = 45


def sorted_chain(seed: int) -> str:
    values = []
    for _ in range(100):
        seed = (seed * 1664525 + 1013904223) % 2**32
        values.append(seed)
    return ",".join(map(str, sorted(values)))


def ask(server: HTTPConnection, method: str, path: str, body: bytes | None = None) -> bytes:
    server.request(method, path, body)
    answer = server.getresponse()
    got = answer.read()
    if answer.status != 200:
        raise AssertionError(f"{path}: status {answer.status}: {got[:200]!r}")
    return got


def check_once(server: HTTPConnection, tally: Tally, n: int, chance: random.Random) -> None:
    digest = hashlib.sha256(f"{n},".encode() * 200).hexdigest()
    wanted = {"hash": digest, "sort": sorted_chain(n), "tree": TREE + n, "fail": FAILURES + n}
    for name, want in wanted.items():
        tally.check(name, ask(server, "GET", f"/{name}?n={n}"), str(want).encode())
    body = chance.randbytes(chance.choice((1, 100, 5000, 60000)))
    tally.check("reverse", ask(server, "POST", "/reverse", body), body[::-1])


def client(index: int, tally: Tally, stop: threading.Event) -> None:
    chance, number = random.Random(index), index
    is_first = True
    while not stop.is_set():
        server = HTTPConnection("127.0.0.1", PORT, timeout=REPLY_DEADLINE)
        for _ in range(KEPT // 5):
            check_once(server, tally, number, chance)
            number += CLIENTS
            if is_first:
                CONNECTED.wait(30)
                is_first = False
            if stop.is_set():
                break
        server.close()


if __name__ == "__main__":
    clients = [lambda tally, stop, i=i: client(i, tally, stop) for i in range(CLIENTS)]
    run(clients, connected=CONNECTED)
