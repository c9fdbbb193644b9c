# SPDX-License-Identifier: Apache-2.0
"""Load of memcached: clients that check every reply."""

from __future__ import annotations

import random
import sys
import threading

from loadlib import Client, Tally, run

PORT = int(sys.argv[2])
CLIENTS = 6
CONNECTED = threading.Barrier(CLIENTS + 1)


def get(cache: Client, keys: list[bytes], command: bytes = b"get") -> dict[bytes, bytes]:
    cache.send(command + b" " + b" ".join(keys) + b"\r\n")
    found: dict[bytes, bytes] = {}
    while (line := cache.line()) != b"END":
        words = line.split(b" ")
        if words[0] != b"VALUE":
            raise AssertionError(f"memcached said {line!r}")
        found[words[1]] = cache.take(int(words[3]) + 2)[:-2]
        if command == b"gets":
            found[b"cas"] = words[4]
    return found


def check_once(cache: Client, tally: Tally, index: int, number: int, chance: random.Random) -> None:
    def ask(want: bytes, request: bytes) -> None:
        cache.send(request + b"\r\n")
        tally.check(str(request[:40]), cache.line(), want)

    def store(command: bytes, key: bytes, value: bytes, more: bytes = b"") -> bytes:
        return b"%s %s 0 0 %d%s\r\n%s" % (command, key, len(value), more, value)

    key = b"k%d.%d" % (index, number % 40)
    value = chance.randbytes(chance.choice((1, 30, 700, 12000)))
    ask(b"STORED", store(b"set", key, value))
    tally.check("get", get(cache, [key]), {key: value})
    ask(b"NOT_STORED", store(b"add", key, b"no"))
    ask(b"STORED", store(b"append", key, b"tail"))
    ask(b"STORED", store(b"prepend", key, b"head"))
    found = get(cache, [key], b"gets")
    tally.check("gets", found[key], b"head" + value + b"tail")
    ask(b"STORED", store(b"cas", key, b"new", b" " + found[b"cas"]))
    ask(b"EXISTS", store(b"cas", key, b"old", b" " + found[b"cas"]))
    ask(b"TOUCHED", b"touch %s 100" % key)
    counter = b"n%d" % index
    ask(b"STORED", store(b"set", counter, b"%d" % number))
    ask(b"%d" % (number + 7), b"incr %s 7" % counter)
    ask(b"%d" % (number + 4), b"decr %s 3" % counter)
    many = [b"m%d.%d" % (index, i) for i in range(10)]
    for i, name in enumerate(many):
        ask(b"STORED", store(b"set", name, b"v%d" % (number + i)))
    want = {name: b"v%d" % (number + i) for i, name in enumerate(many)}
    tally.check("multi-get", get(cache, [*many, b"absent"]), want)
    ask(b"DELETED", b"delete %s" % key)
    tally.check("deleted", get(cache, [key]), {})
    # The meta protocol.
    ask(b"HD", b"ms meta%d 3\r\nabc" % index)
    cache.send(b"mg meta%d v\r\n" % index)
    tally.check("mg", (cache.line(), cache.line()), (b"VA 3", b"abc"))


def client(index: int, tally: Tally, stop: threading.Event) -> None:
    cache, chance, number = Client(PORT), random.Random(index), 0
    CONNECTED.wait(30)
    while not stop.is_set():
        check_once(cache, tally, index, number, chance)
        number += 1


if __name__ == "__main__":
    clients = [lambda tally, stop, i=i: client(i, tally, stop) for i in range(CLIENTS)]
    run(clients, connected=CONNECTED)
