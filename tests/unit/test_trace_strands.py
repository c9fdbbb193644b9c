"""Goroutines: their records, spread over threads, become calls of their own."""

from __future__ import annotations

import random

import numpy as np

from tests.unit.trace_support import Tape
from uftrace_remote.enums import EndReason, RecordKind
from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.model import CallArray
from uftrace_remote.trace.paired import StreamPairer, paired_chunks
from uftrace_remote.trace.records import RECORD_DTYPE, encode_record
from uftrace_remote.trace.strands import FIRST_STRAND
from uftrace_remote.trace.tree import CallTree, LineKind, TreeFilter
from uftrace_remote.values import ClockAnchor, EventBatch, ThreadRecords

A, B, C = 1, 2, 3
ONE, TWO = 0xC000_0083, 0xC000_00AB


def strand(tape: Tape, name: int) -> Tape:
    tape.data += encode_record(tape.ticks, RecordKind.STRAND, 0, name)
    return tape


def batch(*threads: tuple[int, bytes], watermark: int = 0, end: bool = False) -> EventBatch:
    return EventBatch(
        sequence=1,
        threads=[ThreadRecords(tid, data) for tid, data in threads],
        watermark_ticks=watermark,
        anchors=[ClockAnchor(0, 0, 0, 1e9)],
        end=EndReason.DETACHED if end else EndReason.NONE,
    )


def calls(*batches: EventBatch) -> dict[int, list[tuple[int, int, int, int]]]:
    """(function, start, end, depth) of the finished calls, by goroutine or thread."""
    found: dict[int, list[CallArray]] = {}
    for number, chunk in paired_chunks(batches, StreamPairer()):
        found.setdefault(number, []).append(chunk.finished)
    rows = {number: np.concatenate(pieces) for number, pieces in found.items()}
    return {
        number: sorted(
            (int(r["start"]), int(r["function"]), int(r["end"]), int(r["depth"])) for r in each
        )
        for number, each in rows.items()
        if len(each)
    }


def test_a_call_that_changes_its_thread_is_one_call():
    first = strand(Tape(0), ONE).entry(A, 100).entry(B, 90)  # 10, 20
    strand(first, 0)
    second = strand(Tape(100), ONE).exit(B, 90).exit(A, 100)  # 110, 120
    strand(second, 0)
    assert calls(batch((7, second.data), (8, first.data))) == {
        FIRST_STRAND + 1: [(10, A, 120, 0), (20, B, 110, 1)]
    }


def test_goroutines_that_take_turns_on_a_thread_are_kept_apart():
    tape = strand(Tape(0), ONE).entry(A, 100)  # 10
    strand(tape, TWO).entry(A, 100)  # 20
    strand(tape, ONE).exit(A, 100)  # 30
    strand(tape, TWO).exit(A, 100)  # 40
    # AND what the thread does itself, C called by Go for example
    strand(tape, 0).entry(C, 50).exit(C, 50)  # 50, 60
    assert calls(batch((7, tape.data))) == {
        7: [(50, C, 60, 0)],
        FIRST_STRAND + 1: [(10, A, 30, 0)],
        FIRST_STRAND + 2: [(20, A, 40, 0)],
    }


def test_what_a_later_batch_may_have_before_it_is_waited_for():
    """Rings are read one after the other: thread 8's exit comes before thread 7's entry."""
    late = strand(Tape(0), ONE).entry(A, 100)
    early = strand(Tape(100), ONE).exit(A, 100)
    tree = CallTree()
    assert tree.feed(batch((8, early.data), watermark=5)) == []
    lines = tree.feed(batch((7, late.data), watermark=500))
    assert [(line.kind, line.tid, line.duration_ns) for line in lines] == [
        (LineKind.LEAF, FIRST_STRAND + 1, 100)
    ]
    assert tree.pairer.orphan_exits == 0


def test_the_end_of_the_stream_waits_for_nothing():
    tape = strand(Tape(0), ONE).entry(A, 100).exit(A, 100)
    tree = CallTree()
    assert len(tree.feed(batch((7, tape.data), watermark=5, end=True))) == 1
    unfinished = CallTree()
    unfinished.feed(batch((7, tape.data), watermark=5))
    assert len(unfinished.finish()) == 1


def test_a_goroutine_can_be_asked_for():
    tape = strand(Tape(0), ONE).entry(A, 100).exit(A, 100)
    strand(tape, TWO).entry(B, 100).exit(B, 100)
    wanted = TreeFilter(tids=frozenset({FIRST_STRAND + 2}))
    tree = CallTree(wanted, Clock([ClockAnchor(0, 0, 0, 1e9)]))
    lines = tree.feed(batch((7, tape.data), watermark=1000, end=True))
    assert [line.function_id for line in lines] == [B]


def test_any_schedule_gives_the_same_calls():
    """Many goroutines, moved between threads at random, in batches cut at random."""
    chance = random.Random(42)
    threads = {tid: Tape(0) for tid in range(4)}
    last = dict.fromkeys(threads, 0)
    depth = dict.fromkeys(range(1, 20), 0)
    wanted: dict[int, list[tuple[int, int, int]]] = {name: [] for name in depth}
    opened: dict[int, list[int]] = {name: [] for name in depth}
    ticks = 0
    log: list[tuple[int, int]] = []  # (tid, length of its data) over time
    for _ in range(5000):
        ticks += chance.randint(1, 9)
        name, tid = chance.choice(list(depth)), chance.randrange(4)
        tape = threads[tid]
        tape.ticks = ticks
        if last[tid] != name:
            strand(tape, name)
            last[tid] = name
        if depth[name] < 9 and (not depth[name] or chance.random() < 0.5):
            tape.entry(A, 100 - depth[name], 0)
            opened[name].append(ticks)
            depth[name] += 1
        else:
            depth[name] -= 1
            tape.exit(A, 100 - depth[name], 0)
            wanted[name].append((opened[name].pop(), ticks, depth[name]))
        log.append((tid, ticks))
    batches = []
    done = dict.fromkeys(threads, 0)
    for watermark in [*sorted(chance.sample(range(ticks), 12)), ticks + 1]:
        pieces = []
        for tid, tape in threads.items():
            rows = np.frombuffer(tape.data, RECORD_DTYPE)
            # All from before the watermark, and some more.
            count = int((rows["ticks"] < watermark).sum())
            count = max(min(len(rows), count + chance.randint(0, 30)), done[tid])
            if watermark > ticks:
                count = len(rows)
            before = rows[: done[tid]]
            marks = before[(before["word"] >> np.uint64(1) & np.uint64(7)) == RecordKind.STRAND]
            # As the agent does: each piece says anew whose records it begins with.
            head = marks[-1:].tobytes()
            pieces.append((tid, head + rows[done[tid] : count].tobytes()))
            done[tid] = count
        batches.append(batch(*pieces, watermark=watermark))
    pairer = StreamPairer()
    found: list[list[tuple[int, int, int]]] = []
    by_number: dict[int, list[tuple[int, int, int]]] = {}
    for one in batches:
        for tid, data in [(t.tid, t.records) for t in one.threads]:
            assert not len(pairer.feed(tid, data).finished)
        for number, chunk in pairer.release(one.watermark_ticks):
            rows_of = by_number.setdefault(number, [])
            rows_of += [(int(r["start"]), int(r["end"]), int(r["depth"])) for r in chunk.finished]
    found = [sorted(each) for each in by_number.values()]
    assert sorted(found) == sorted(sorted(each) for each in wanted.values())
    assert pairer.orphan_exits == 0 and not pairer.held
