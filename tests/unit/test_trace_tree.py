"""The tree of `live` and `replay`."""

from __future__ import annotations

import pytest

from tests.unit.trace_support import Tape, TreeMaker, batches_of
from uftrace_remote.cli._lines import LineFormatter
from uftrace_remote.enums import EndReason, RecordKind
from uftrace_remote.trace.tree import CallTree, LineKind, TreeFilter
from uftrace_remote.values import ClockAnchor, EventBatch, ThreadRecords

A, B, C = 1, 2, 3
NAMES = {A: "parent", B: "child(int)", C: "leaf"}
# One tick is one microsecond.
ANCHOR = ClockAnchor(0, 0, 0, 1e6)


def batch(*threads: ThreadRecords, watermark: int = 0, end: EndReason = EndReason.NONE):
    return EventBatch(1, threads, watermark, anchors=(ANCHOR,), end=end)


def lines_of(tree: CallTree, *batches: EventBatch) -> list[str]:
    formatter = LineFormatter(NAMES.__getitem__, color=False)
    found = []
    for each in batches:
        found += formatter.format_all(tree.feed(each))
    return found + formatter.format_all(tree.finish())


def test_it_looks_like_uftrace():
    tape = Tape(0).entry(A, 100).entry(B, 90).exit(B, 90, 1500).entry(C, 80)
    tape.exit(C, 80, 2_000_000).only(C, 80).exit(A, 100)
    assert lines_of(CallTree(), batch(ThreadRecords(1234, tape.data))) == [
        "            [  1234] | parent() {",
        "   1.500 ms [  1234] |   child(int);",
        "   2.000  s [  1234] |   leaf();",
        "            [  1234] |   leaf();",
        "   2.002  s [  1234] | } /* parent */",
    ]


def test_colours_mark_long_calls():
    formatter = LineFormatter(NAMES.__getitem__, color=True)
    tape = Tape(0).entry(C, 80).exit(C, 80, 2_000_000).entry(C, 80).exit(C, 80, 2000)
    slow, fast = map(formatter.format, CallTree().feed(batch(ThreadRecords(7, tape.data))))
    assert slow.startswith(" \x1b[33m  2.000  s\x1b[0m [")
    assert fast.startswith(" \x1b[32m  2.000 ms\x1b[0m [")


def test_a_call_that_is_left_by_longjmp_says_so():
    tape = Tape(0).entry(A, 100).entry(B, 90).entry(C, 80).exit(A, 100)
    assert lines_of(CallTree(), batch(ThreadRecords(7, tape.data)))[2:] == [
        "  10.000 us [     7] |     leaf(); /* skipped */",
        "  20.000 us [     7] |   } /* child(int) (skipped) */",
        "  30.000 us [     7] | } /* parent */",
    ]


def test_threads_are_merged_by_time():
    one = Tape(0).entry(C, 80, 10).exit(C, 80, 100).entry(C, 80, 100).exit(C, 80, 100)
    two = Tape(0).entry(C, 80, 10).exit(C, 80, 200)
    records = batch(ThreadRecords(1, one.data), ThreadRecords(2, two.data))
    assert [line.tid for line in CallTree().feed(records)] == [1, 2, 1]


def test_records_behind_the_watermark_wait_for_those_of_other_threads():
    tree = CallTree()
    late = Tape(0).entry(C, 80, 10).exit(C, 80, 200)
    early = Tape(0).entry(C, 80, 10).exit(C, 80, 100)
    assert tree.feed(batch(ThreadRecords(1, late.data), watermark=50)) == []
    lines = tree.feed(batch(ThreadRecords(2, early.data), watermark=500))
    assert [line.tid for line in lines] == [2, 1]


def test_a_call_that_goes_on_for_long_is_shown_before_it_ends():
    tree = CallTree()
    tape = Tape(0).entry(A, 100)
    assert tree.feed(batch(ThreadRecords(1, tape.data), watermark=200_000)) == []
    (line,) = tree.feed(batch(watermark=400_000))
    assert (line.kind, line.function_id) == (LineKind.BEGIN, A)
    rest = Tape(500_000).exit(A, 100)
    (line,) = tree.feed(batch(ThreadRecords(1, rest.data), watermark=600_000))
    assert (line.kind, line.duration_ns) == (LineKind.END, 500_000_000)


def test_only_long_calls_with_their_callers():
    tape = Tape(0).entry(A, 100).entry(B, 90).exit(B, 90, 5).entry(B, 90).entry(C, 80)
    tape.exit(C, 80, 50).exit(B, 90).exit(A, 100).entry(C, 100).exit(C, 100, 49)
    tree = CallTree(TreeFilter(min_duration_ns=50_000))
    assert [(each.kind, each.function_id) for each in tree.feed(
        batch(ThreadRecords(1, tape.data))
    )] == [
        (LineKind.BEGIN, A),
        (LineKind.BEGIN, B),
        (LineKind.LEAF, C),
        (LineKind.END, B),
        (LineKind.END, A),
    ]  # fmt: skip


def test_depth_threads_and_functions_can_be_chosen():
    tape = Tape(0).entry(A, 100).entry(B, 90).entry(C, 80).exit(C, 80).exit(B, 90).exit(A, 100)
    records = batch(ThreadRecords(1, tape.data), ThreadRecords(2, tape.data))

    def shown(**wanted):
        lines = CallTree(TreeFilter(**wanted)).feed(records)
        return [(each.tid, each.function_id, each.depth) for each in lines]

    assert shown(tids=frozenset({2}), max_depth=2) == [(2, A, 0), (2, B, 1), (2, A, 0)]
    # What is hidden does not indent what it calls.
    assert shown(tids=frozenset({1}), function_ids=frozenset({A, C})) == [
        (1, A, 0),
        (1, C, 1),
        (1, A, 0),
    ]


def test_what_is_open_at_the_end_gets_its_first_line():
    tape = Tape(0).entry(A, 100).entry(B, 90)
    assert lines_of(CallTree(), batch(ThreadRecords(7, tape.data))) == [
        "            [     7] | parent() {",
        "            [     7] |   child(int) {",
    ]


@pytest.mark.parametrize("room", [0, 1, 50, 10**6])
def test_dropped_calls_are_counted_and_the_rest_is_well_formed(room):
    maker = TreeMaker(3)
    roots = maker.grow(2000)
    total = sum(1 for root in roots for _ in root.walk())
    tree = CallTree()
    stack: list[tuple[int, int]] = []
    for each in batches_of({5: maker.tape.data}, piece=16 * 300):
        for line in tree.feed(each, room):
            if line.kind is LineKind.BEGIN:
                assert line.depth == len(stack)
                stack.append((line.function_id, line.depth))
            elif line.kind is LineKind.END:
                assert stack.pop() == (line.function_id, line.depth)
            else:
                assert line.depth == len(stack)
    assert not stack
    assert tree.calls_shown + tree.calls_dropped == total
    assert (tree.calls_dropped == 0) == (room == 10**6)


def test_a_clock_that_is_set_right_later_does_not_lose_calls():
    tree = CallTree()
    begin = Tape(1000).entry(C, 80)
    tree.feed(batch(ThreadRecords(1, begin.data)))
    # The second anchor makes the past shorter than it seemed.
    end = Tape(1015).exit(C, 80, 5)
    second = EventBatch(
        2, (ThreadRecords(1, end.data),), anchors=(ClockAnchor(1012, 900_000, 0, 1e6),)
    )
    (line,) = tree.feed(second)
    assert line.duration_ns is not None
    assert line.duration_ns >= 0
    assert tree.open_count == 0


def test_kinds_of_records_are_those_of_the_wire():
    assert [int(kind) for kind in RecordKind] == [1, 2, 3, 4, 6]
