"""Synthetic call trees, the records that a target would write of them, and traces on disk."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uftrace_remote.enums import EndReason, RecordKind
from uftrace_remote.trace.model import CALL_DTYPE, CallArray
from uftrace_remote.trace.pairing import ThreadPairer
from uftrace_remote.trace.records import decode_records, encode_record
from uftrace_remote.trace.store import TraceReader, TraceWriter
from uftrace_remote.values import (
    ClockAnchor,
    EventBatch,
    Loss,
    MappedModule,
    ThreadRecords,
    TracedFunction,
)

TICKS_PER_SECOND = 2_000_000_000
STACK_TOP = 1 << 33


class Tape:
    """Records of one thread, written one after the other."""

    def __init__(self, start: int = 1000) -> None:
        self.ticks = start
        self.data = b""

    def write(self, kind: RecordKind, function: int, key: int, wait: int = 10) -> Tape:
        self.ticks += wait
        self.data += encode_record(self.ticks, kind, function, key)
        return self

    def entry(self, function: int, key: int, wait: int = 10) -> Tape:
        return self.write(RecordKind.ENTRY, function, key, wait)

    def exit(self, function: int, key: int, wait: int = 10) -> Tape:
        return self.write(RecordKind.EXIT, function, key, wait)

    def tail(self, function: int, key: int, wait: int = 10) -> Tape:
        return self.write(RecordKind.TAIL_ENTRY, function, key, wait)

    def only(self, function: int, key: int, wait: int = 10) -> Tape:
        return self.write(RecordKind.ENTRY_ONLY, function, key, wait)


def pair(data: bytes, *, one_by_one: bool = False) -> tuple[CallArray, CallArray, int]:
    """Pair all records of a thread: finished, open, orphan exits."""
    pairer = ThreadPairer()
    records = decode_records(data)
    chunk = pairer._feed_one_by_one(records) if one_by_one else pairer.feed(records)
    return chunk.finished, pairer.open_calls(), pairer.orphan_exits


def by_begin(rows: CallArray) -> CallArray:
    return rows[np.argsort(rows["begin_seq"], kind="stable")]


def empty_calls() -> CallArray:
    return np.zeros(0, CALL_DTYPE)


@dataclass
class Node:
    """A call of a tree: what should come out again."""

    function: int
    start: int
    end: int
    depth: int
    kind: RecordKind
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.walk()


class TreeMaker:
    """Grows a random tree of calls of one thread and writes its records.

    A tail call is a child that exits at the moment its parent does.
    """

    def __init__(
        self,
        seed: int,
        functions: int = 6,
        depth: int = 12,
        start: int = 5000,
        special: bool = True,
    ) -> None:
        self._random = random.Random(seed)
        self._functions = functions
        self._depth = depth
        self._special = special
        self._left = 0
        self.tape = Tape(start)

    def grow(self, calls: int) -> list[Node]:
        self._left = calls
        roots = []
        while self._left > 0:
            roots.append(self._call(STACK_TOP - self._random.randint(0, 50), 0))
        return roots

    def _wait(self) -> int:
        # Sometimes none: two records of one tick are in order all the same.
        return self._random.choice([0, 1, 7, 100, 5000])

    def _call(self, key: int, depth: int) -> Node:
        self._left -= 1
        function = self._random.randint(1, self._functions)
        if self._special and self._random.random() < 0.1:
            self.tape.only(function, key, self._wait())
            at = self.tape.ticks
            return Node(function, at, at, depth, RecordKind.ENTRY_ONLY)
        self.tape.entry(function, key, self._wait())
        node = Node(function, self.tape.ticks, 0, depth, RecordKind.ENTRY)
        inner = self._body(node, key, depth)
        self.tape.exit(function, key, self._wait())
        for each in (node, *inner):
            each.end = self.tape.ticks
        return node

    # Calls of a function, then perhaps a jump into another, whose body follows.
    def _body(self, node: Node, key: int, depth: int) -> list[Node]:
        while self._left > 0 and depth < self._depth and self._random.random() < 0.6:
            node.children.append(self._call(key - self._random.randint(1, 400), depth + 1))
        if not self._special or self._left <= 0 or self._random.random() > 0.15:
            return []
        self._left -= 1
        function = self._random.randint(1, self._functions)
        self.tape.tail(function, key, self._wait())
        jump = Node(function, self.tape.ticks, 0, depth + 1, RecordKind.TAIL_ENTRY)
        node.children.append(jump)
        return [jump, *self._body(jump, key, depth + 1)]


BASE = 0x400000
LIBRARY = 0x7F0000000000

FUNCTIONS = (
    TracedFunction(1, "main", "", "app", BASE + 0x1000, 64),
    TracedFunction(2, "ns::Worker::run(int)", "_ZN2ns6Worker3runEi", "app", BASE + 0x1040, 64),
    TracedFunction(3, "parse", "", "app", BASE + 0x1080, 64),
    TracedFunction(4, "lookup", "", "libdata.so", LIBRARY + 0x500, 64),
    TracedFunction(5, "store", "", "libdata.so", LIBRARY + 0x540, 64),
    TracedFunction(6, "idle", "", "app", BASE + 0x10C0, 64, has_exit=False),
)

# What uftrace makes of the names by itself.
UFTRACE_NAMES = {
    1: "main",
    2: "ns::Worker::run",
    3: "parse",
    4: "lookup",
    5: "store",
    6: "idle",
}

MODULES = (
    MappedModule("/opt/app/app", "ab" * 20, BASE, BASE + 0x1000, BASE),
    MappedModule("/opt/app/app", "ab" * 20, BASE + 0x1000, BASE + 0x3000, BASE),
    MappedModule("/opt/app/libdata.so", "cd" * 20, LIBRARY, LIBRARY + 0x2000, LIBRARY),
)

# One tick is half a nanosecond, so that every tick has its place in ns.
ANCHORS = (ClockAnchor(0, 1_000_000_000_000, 1_700_000_000_000_000_000, float(TICKS_PER_SECOND)),)

METADATA = {
    "process": {
        "reference": {"pid": 4321, "start_time_ticks": 7, "boot_id": "b"},
        "command_name": "app",
        "command_line": ["/opt/app/app", "--serve", "a b"],
        "executable": "/opt/app/app",
    },
    "agent": {"hostname": "web1"},
    "recorded_unix_ns": 1_700_000_000_000_000_000,
}


def to_ns(ticks: int) -> int:
    return 1_000_000_000_000 + round(ticks / 2)


def batches_of(
    threads: dict[int, bytes], piece: int = 16 * 1000, losses: Sequence[Loss] = ()
) -> Iterator[EventBatch]:
    """Batches as an agent would send them, a piece of each thread in each."""
    longest = max(map(len, threads.values()), default=0)
    sequence = total = 0
    for start in range(0, max(longest, 1), piece):
        sequence += 1
        parts = tuple(
            ThreadRecords(tid, data[start : start + piece], f"worker{tid}")
            for tid, data in threads.items()
            if start < len(data)
        )
        total += sum(len(part.records) for part in parts) // 16
        first = sequence == 1
        yield EventBatch(
            sequence,
            parts,
            functions=FUNCTIONS if first else (),
            anchors=ANCHORS if first else (),
            modules=MODULES if first else (),
            losses=losses,
            records_total=total,
        )
    yield EventBatch(
        sequence + 1, records_total=total, losses=losses, end=EndReason.DETACHED, end_detail="done"
    )


def make_trace(directory: Path, threads: dict[int, bytes], piece: int = 16 * 1000) -> TraceReader:
    """A trace directory of some threads' records."""
    with TraceWriter(directory, METADATA) as writer:
        for batch in batches_of(threads, piece):
            writer.write(batch)
        writer.finish({"end": "stopped"})
    return TraceReader(directory)
