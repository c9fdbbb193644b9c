# SPDX-License-Identifier: Apache-2.0
"""Load of redis: clients that check every reply, and redis-benchmark."""

from __future__ import annotations

import random
import subprocess
import sys
import threading

from loadlib import Client, Tally, run

PORT = int(sys.argv[2])
CLIENTS = 4
BENCHMARK_REQUESTS = 1000
CONNECTED = threading.Barrier(CLIENTS + 1)
SCRIPT = "local s=0 for i=1,tonumber(ARGV[1]) do s=s+i end return {s, redis.sha1hex(KEYS[1])}"
BENCHMARK = "ping,set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,zadd,zpopmin,lrange_100,mset"


class Redis(Client):
    """Commands and replies of RESP2."""

    def write(self, *words: object) -> None:
        """Sends a command without reading its reply."""
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        body = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self.send(b"*%d\r\n" % len(parts) + body)

    def reply(self) -> object:
        """Reads one reply."""
        line = self.line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return None if rest == b"-1" else self.take(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return int(rest) if kind == b":" else line

    def ask(self, *words: object) -> object:
        """Sends a command and reads its reply."""
        self.write(*words)
        return self.reply()


def check_once(redis: Redis, tally: Tally, prefix: str, number: int, chance: random.Random) -> None:
    def ask(want: object, *words: object) -> None:
        tally.check(str(words[:3]), redis.ask(*words), want)

    key, value = f"{prefix}:{number % 50}", chance.randbytes(chance.choice((1, 20, 500, 9000)))
    ask(b"+OK", "SET", key, value)
    ask(value, "GET", key)
    ask(len(value), "STRLEN", key)
    ask(1, "DEL", key)
    ask(None, "GET", key)
    ask(number + 1, "INCR", f"{prefix}:count")
    # A pipeline: all commands, then all replies.
    words = [f"w{number}-{i}".encode() for i in range(20)]
    for word in words:
        redis.write("RPUSH", f"{prefix}:list", word)
    for length, _ in enumerate(words, 1):
        tally.check("RPUSH", redis.reply(), length)
    ask(words, "LRANGE", f"{prefix}:list", 0, -1)
    ask(sorted(words), "SORT", f"{prefix}:list", "ALPHA")
    ask(1, "DEL", f"{prefix}:list")
    scores = {f"m{i}".encode(): chance.randrange(1000) * 2 + i % 2 for i in range(30)}
    pairs = [item for member, score in scores.items() for item in (score, member)]
    ask(len(scores), "ZADD", f"{prefix}:zset", *pairs)
    ordered = sorted(scores, key=lambda member: (scores[member], member))
    ask(ordered, "ZRANGE", f"{prefix}:zset", 0, -1)
    ask(1, "DEL", f"{prefix}:zset")
    ask(2, "HSET", f"{prefix}:hash", "a", value, "b", number)
    ask([value, str(number).encode()], "HMGET", f"{prefix}:hash", "a", "b")
    ask(1, "DEL", f"{prefix}:hash")
    count = number % 500
    sha1 = b"a9993e364706816aba3e25717850c26c9cd0d89d"  # of "abc"
    ask([count * (count + 1) // 2, sha1], "EVAL", SCRIPT, 1, "abc", count)
    ask(b"+OK", "MULTI")
    ask(b"+QUEUED", "INCRBYFLOAT", f"{prefix}:float", "0.5")
    ask(b"+QUEUED", "BITCOUNT", f"{prefix}:float")
    replies = redis.ask("EXEC")
    want = f"{(number + 1) * 0.5:g}".encode()
    tally.check("EXEC", isinstance(replies, list) and replies[0], want)


def client(index: int, tally: Tally, stop: threading.Event) -> None:
    redis, chance, prefix = Redis(PORT), random.Random(index), f"check{index}"
    redis.ask("DEL", f"{prefix}:count", f"{prefix}:float")
    CONNECTED.wait(30)
    number = 0
    while not stop.is_set():
        check_once(redis, tally, prefix, number, chance)
        number += 1


def benchmark(tally: Tally, stop: threading.Event) -> None:
    command = ["redis-benchmark", "-p", str(PORT), "-q", "-n", str(BENCHMARK_REQUESTS)]
    while not stop.is_set():
        done = subprocess.run(
            [*command, "-c", "8", "-P", "4", "-r", "1000", "-t", BENCHMARK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or "rror" in done.stdout + done.stderr:
            tally.error(f"redis-benchmark {done.returncode}: {done.stdout}{done.stderr}")
        tally.add(BENCHMARK_REQUESTS * len(BENCHMARK.split(",")))


if __name__ == "__main__":
    clients = [lambda tally, stop, i=i: client(i, tally, stop) for i in range(CLIENTS)]
    run([*clients, benchmark], connected=CONNECTED)
