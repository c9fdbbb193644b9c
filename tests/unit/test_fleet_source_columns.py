"""What one agent sends becomes columns: each record once, each thread in order."""

from __future__ import annotations

import numpy as np

from tests.unit.trace_support import Tape
from uftrace_remote.enums import EndReason, LossStage, RecordKind
from uftrace_remote.fleet.clock_offset import ClockOffset
from uftrace_remote.fleet.source_clock import SmoothOffset
from uftrace_remote.fleet.source_columns import Columns, SourceColumns
from uftrace_remote.trace.records import encode_record
from uftrace_remote.trace.strands import FIRST_STRAND
from uftrace_remote.values import ClockAnchor, EventBatch, Loss, ThreadRecords, TracedFunction

OFFSET = 1000
GOROUTINE = 0xC000_0083


def source() -> SourceColumns:
    return SourceColumns(SmoothOffset(ClockOffset(OFFSET, 1, 2), 0))


def batch(*threads: tuple[int, bytes], watermark: int = 0, end: bool = False) -> EventBatch:
    """Ticks are nanoseconds of the agent's clock."""
    return EventBatch(
        sequence=1,
        threads=[ThreadRecords(tid, data, f"thread {tid}") for tid, data in threads],
        watermark_ticks=watermark,
        anchors=[ClockAnchor(10_000, 10_000, 0, 1e9)],
        end=EndReason.DETACHED if end else EndReason.NONE,
    )


def calls(*ticks: int) -> bytes:
    return b"".join(encode_record(each, RecordKind.ENTRY, 5, 77) for each in ticks)


def rows(columns: Columns) -> list[tuple[int, int]]:
    return list(zip(columns.tid.tolist(), columns.time_ns.tolist(), strict=True))


def test_times_are_ours_and_threads_in_order():
    found = source().take(batch((7, calls(2000, 2500)), (8, calls(1900)), watermark=3000))
    assert rows(found) == [(7, 1000), (7, 1500), (8, 900)]
    assert found.watermark_ns == 2000
    assert found.word.tolist() == [RecordKind.ENTRY << 1 | 5 << 4 | 77 << 28] * 3


def test_a_record_that_was_stored_late_comes_to_its_place():
    # A signal handler's, between another's clock and its store; within a batch and
    # across two.
    columns = source()
    found = columns.take(batch((7, calls(2000, 2600, 2500, 2700)), (8, calls(1900, 1800))))
    assert rows(found) == [(7, 1000), (7, 1500), (7, 1600), (7, 1700), (8, 800), (8, 900)]
    assert rows(columns.take(batch((7, calls(2690, 2800))))) == [(7, 1700), (7, 1800)]


def test_a_batch_without_records_is_a_watermark():
    columns = source()
    found = columns.take(batch(watermark=5000))
    assert len(found.time_ns) == 0 and found.watermark_ns == 4000
    assert columns.take(batch()).watermark_ns == 0


def test_goroutines_are_threads_of_their_own_once_they_are_complete():
    columns = source()
    tape = Tape(2000)
    tape.data += encode_record(tape.ticks, RecordKind.STRAND, 0, GOROUTINE)
    tape.entry(1, 100)  # 2010
    tape.data += encode_record(tape.ticks, RecordKind.STRAND, 0, 0)
    tape.entry(2, 200)  # 2020
    found = columns.take(batch((7, tape.data)))
    assert rows(found) == [(7, 1020)]
    assert columns.held == 1 and columns.markers == 2 and columns.records == 4
    assert rows(columns.take(batch(watermark=2011))) == [(FIRST_STRAND + 1, 1010)]
    assert columns.held == 0
    assert columns.thread_names[FIRST_STRAND + 1].startswith("goroutine")
    # What comes at the very end is complete.
    assert rows(columns.take(batch((7, tape.data), end=True)))[-1][0] == FIRST_STRAND + 1


def test_what_is_said_beside_the_records():
    columns = source()
    columns.take(
        EventBatch(
            sequence=1,
            functions=[TracedFunction(5, "leaf")],
            losses=[
                Loss(LossStage.RING, 3, 7),
                Loss(LossStage.RING, 4, 8),
                Loss(LossStage.STREAM, 2),
            ],
        )
    )
    columns.take(batch((7, calls(2000))))
    assert columns.losses == {LossStage.RING: 7, LossStage.STREAM: 2}
    assert columns.functions[5].name == "leaf"
    assert columns.thread_names == {7: "thread 7"}


def test_threads_that_come_and_go_are_forgotten():
    columns = source()
    for number in range(0, 20_000, 1000):
        threads = [(number + each, calls(2000 + number)) for each in range(1000)]
        columns.take(batch(*threads, watermark=2001 + number))
    assert len(columns._latest) <= 5000
    assert columns.records == 20_000


def test_many_batches_of_many_threads_keep_every_record():
    generator = np.random.default_rng(3)
    columns = source()
    seen: dict[int, list[int]] = {}
    sent: dict[int, int] = {}
    now = 2000
    for _ in range(50):
        threads = []
        for tid in generator.integers(1, 9, 4).tolist():
            ticks = np.sort(now + generator.integers(0, 500, 20))
            if tid not in dict(threads):
                threads.append((tid, calls(*ticks.tolist())))
                sent[tid] = sent.get(tid, 0) + 20
        now += 500
        for tid, at in rows(columns.take(batch(*threads, watermark=now))):
            seen.setdefault(tid, []).append(at)
    assert {tid: len(times) for tid, times in seen.items()} == sent
    assert all(times == sorted(times) for times in seen.values())
