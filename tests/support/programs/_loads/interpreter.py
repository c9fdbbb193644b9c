# SPDX-License-Identifier: Apache-2.0
"""What the traced interpreter runs: a bit of everything, checked against its first results.

Speaks the protocol of tests/targets/harness.h on stdin and stdout.
"""

import asyncio
import collections
import datetime
import decimal
import fractions
import functools
import gc
import hashlib
import heapq
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import struct
import sys
import threading
import zlib

WORKERS = 3


def text() -> object:
    words = [f"{i:05d}-{i * i:x}-\u00fc{i % 7}" for i in range(300)]
    joined = ",".join(words).upper().replace("7", "\u20ac").encode("utf-8")
    found = re.findall(r"(\d+)-([0-9A-F]+)-(\S)", joined.decode())
    return hashlib.sha256(joined).hexdigest(), len(found), zlib.crc32(zlib.compress(joined))


def numbers() -> object:
    floats = [math.sin(i) * math.exp(i / 100) for i in range(200)]
    big = pow(3, 2000, 10**300 + 7) // 12345678901234567890
    with decimal.localcontext() as context:
        context.prec = 50
        root = str(decimal.Decimal(2).sqrt() / 3)
    fraction = sum((fractions.Fraction(1, i) for i in range(1, 40)), fractions.Fraction())
    return math.fsum(floats), hash(big), root, str(fraction), struct.pack("<dqf", floats[3], 5, 0.5)


def containers() -> object:
    chance = random.Random(5)
    values = [chance.random() for _ in range(500)]
    heap = list(values)
    heapq.heapify(heap)
    counts = collections.Counter(int(value * 10) for value in values)
    grouped = {k: len(list(v)) for k, v in itertools.groupby(sorted(int(v * 9) for v in values))}
    return sorted(values)[250], heapq.nsmallest(5, heap), sorted(counts.items()), grouped


def failures() -> object:
    caught = []
    for i in range(60):
        try:
            try:
                {}[i] if i % 3 else 1 / 0
            except KeyError as error:
                raise ValueError(i) from error
            finally:
                caught.append(i)
        except (ValueError, ZeroDivisionError) as error:
            caught.append(type(error).__name__)
    return caught


def recursion() -> object:
    @functools.cache
    def ways(n: int, k: int) -> int:
        return 1 if k in (0, n) else ways(n - 1, k - 1) + ways(n - 1, k)

    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + depth(n - 1)

    def overflow() -> int:
        return 1 + overflow()

    try:
        overflow()
    except RecursionError:
        return ways(60, 30), depth(400)
    return None


def objects() -> object:
    def build(n: int) -> type:
        return type(f"C{n}", (dict,), {"n": property(lambda self: n), "__slots__": ("a",)})

    made = [build(i)(x=i) for i in range(20)]
    for one in made:
        one.a = one  # a cycle
    total = sum(one.n + one["x"] for one in made)
    del made
    gc.collect()
    return total


def documents() -> object:
    data = {"list": [1, 2.5, None, True, "x" * 50], "nested": [{"k": i} for i in range(80)]}
    again = json.loads(json.dumps(data, indent=1))
    copy = pickle.loads(pickle.dumps(again))
    out = io.StringIO()
    print(copy == data, file=out)
    when = datetime.datetime(2024, 2, 29, 12) + datetime.timedelta(days=365)
    return json.dumps(copy, sort_keys=True), out.getvalue(), when.isoformat()


def coroutines() -> object:
    async def producer(queue: "asyncio.Queue[int]") -> None:
        for i in range(20):
            await queue.put(i)
            await asyncio.sleep(0)
        await queue.put(-1)

    async def consume() -> int:
        queue: asyncio.Queue[int] = asyncio.Queue(3)
        task = asyncio.ensure_future(producer(queue))
        total = 0
        while (value := await queue.get()) >= 0:
            total += value
        await task
        return total

    def generator() -> "collections.abc.Generator[int, int, None]":
        got = 0
        while True:
            got = yield got * 2

    running = generator()
    next(running)
    return asyncio.run(consume()), [running.send(i) for i in range(30)]


def source() -> object:
    code = "def f(x):\n" + "".join(f"    if x == {i}: return {i} ** 2\n" for i in range(50))
    scope: dict[str, object] = {}
    exec(compile(code, "made-up", "exec"), scope)
    return [scope["f"](i) for i in range(50)]  # type: ignore[operator]


PARTS = (
    text,
    numbers,
    containers,
    failures,
    recursion,
    objects,
    documents,
    coroutines,
    source,
)


class Workload:
    """Threads that run all parts, and can be paused."""

    def __init__(self) -> None:
        self.wants = [part() for part in PARTS]
        self.changed = threading.Condition()
        self.paused = self.stopped = False
        self.parked = self.iterations = 0

    def say(self, line: str) -> None:
        os.write(1, f"{line}\n".encode())

    def go_on(self) -> bool:
        with self.changed:
            self.parked += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.stopped or not self.paused)
            self.parked -= 1
            self.changed.notify_all()
            return not self.stopped

    def work(self, first: int) -> None:
        turn = first
        while self.go_on():
            index = turn % len(PARTS)
            turn += 1
            try:
                got = PARTS[index]()
            except BaseException as error:  # any at all is a wrong result
                got = repr(error)
            if got != self.wants[index]:
                self.say(f"BAD {PARTS[index].__name__} got {str(got)[:200]} want what it was")
                os._exit(3)
            with self.changed:
                self.iterations += 1

    def pause(self, paused: bool) -> None:
        with self.changed:
            self.paused = paused
            self.changed.notify_all()
            if paused:
                self.changed.wait_for(lambda: self.parked == WORKERS)

    def main(self) -> None:
        threads = [threading.Thread(target=self.work, args=(i,)) for i in range(WORKERS)]
        for thread in threads:
            thread.start()
        self.say(f"ready {os.getpid()}")
        for line in sys.stdin:
            command = line.strip()
            if command == "quit":
                break
            if command in ("pause", "resume"):
                self.pause(command == "pause")
                self.say(f"{command}d")
            elif command == "calls":
                self.say(f"calls iterations={self.iterations}")
            else:
                self.say(f"unknown {command}")
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        for thread in threads:
            thread.join()
        self.say(f"ok {self.iterations}")


if __name__ == "__main__":
    Workload().main()
