"""From records to calls: the rules, one by one, and on random input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trace_support import Tape, TreeMaker, by_begin, pair
from uftrace_remote.enums import RecordKind
from uftrace_remote.trace._nested import pair_nested
from uftrace_remote.trace.model import CallFlag
from uftrace_remote.trace.pairing import ThreadPairer
from uftrace_remote.trace.records import decode_records

A, B, C, D = 1, 2, 3, 4
FAR = 1 << 21


def calls(tape: Tape) -> list[tuple[int, int, int, int, CallFlag]]:
    """(function, start, end, depth, flags) of the finished calls, by begin."""
    rows = by_begin(pair(tape.data)[0])
    return [
        (each["function"], each["start"], each["end"], each["depth"], CallFlag(int(each["flags"])))
        for each in rows
    ]


def test_nested_calls():
    tape = Tape(0).entry(A, 100).entry(B, 90).exit(B, 90).entry(C, 80).exit(C, 80).exit(A, 100)
    assert calls(tape) == [
        (A, 10, 60, 0, CallFlag.NONE),
        (B, 20, 30, 1, CallFlag.NONE),
        (C, 40, 50, 1, CallFlag.NONE),
    ]


def test_recursion():
    tape = Tape(0).entry(A, 100).entry(A, 90).entry(A, 80)
    tape.exit(A, 80).exit(A, 90).exit(A, 100)
    assert [(start, end, depth) for _, start, end, depth, _ in calls(tape)] == [
        (10, 60, 0),
        (20, 50, 1),
        (30, 40, 2),
    ]


def test_children_add_up():
    tape = Tape(0).entry(A, 100).entry(B, 90).entry(C, 80).exit(C, 80).exit(B, 90)
    tape.entry(C, 90).exit(C, 90).exit(A, 100)
    finished = by_begin(pair(tape.data)[0])
    assert finished["children"].tolist() == [30 + 10, 10, 0, 0]


def test_h38_longjmp_ends_what_it_skips_at_the_next_exit():
    # C jumped back into A, which returns later.
    tape = Tape(0).entry(A, 100).entry(B, 90).entry(C, 80).exit(A, 100)
    assert calls(tape) == [
        (A, 10, 40, 0, CallFlag.NONE),
        (B, 20, 40, 1, CallFlag.SKIPPED),
        (C, 30, 40, 2, CallFlag.SKIPPED),
    ]


def test_longjmp_ends_what_it_skips_when_a_new_frame_overwrites_it():
    # After the jump, A calls D, whose frame lies where B's was.
    tape = Tape(0).entry(A, 100).entry(B, 90).entry(C, 80).entry(D, 85).exit(D, 85).exit(A, 100)
    assert calls(tape) == [
        (A, 10, 60, 0, CallFlag.NONE),
        (B, 20, 60, 1, CallFlag.SKIPPED),
        (C, 30, 40, 2, CallFlag.SKIPPED),
        (D, 40, 50, 2, CallFlag.NONE),
    ]


def test_a_frame_at_the_same_place_overwrites_as_well():
    tape = Tape(0).entry(A, 100).entry(B, 90).entry(C, 90).exit(C, 90).exit(A, 100)
    assert calls(tape)[1] == (B, 20, 30, 1, CallFlag.SKIPPED)
    assert calls(tape)[2] == (C, 30, 40, 1, CallFlag.NONE)


def test_tail_calls_exit_with_their_frame():
    tape = Tape(0).entry(A, 100).tail(B, 100).entry(D, 90).exit(D, 90).tail(C, 100).exit(A, 100)
    assert calls(tape) == [
        (A, 10, 60, 0, CallFlag.NONE),
        (B, 20, 60, 1, CallFlag.TAIL),
        (D, 30, 40, 2, CallFlag.NONE),
        (C, 50, 60, 2, CallFlag.TAIL),
    ]
    finished = pair(tape.data)[0]
    order = finished[np.argsort(finished["end_seq"])]["function"].tolist()
    assert order == [D, C, B, A]


def test_a_call_whose_exit_is_not_traced():
    tape = Tape(0).entry(A, 100).only(B, 90).entry(C, 80).exit(C, 80).exit(A, 100)
    assert calls(tape) == [
        (A, 10, 50, 0, CallFlag.NONE),
        (B, 20, 20, 1, CallFlag.ENTRY_ONLY),
        (C, 30, 40, 1, CallFlag.NONE),
    ]


def test_a_tail_call_into_a_function_whose_exit_is_not_traced_leaves_its_caller_open():
    tape = Tape(0).entry(A, 100).only(B, 100).exit(A, 100)
    assert calls(tape) == [(A, 10, 30, 0, CallFlag.NONE), (B, 20, 20, 1, CallFlag.ENTRY_ONLY)]


def test_exits_of_functions_that_were_entered_before_the_trace_are_counted():
    tape = Tape(0).exit(C, 80).exit(B, 90).entry(A, 85).exit(A, 85).exit(D, 100)
    finished, still_open, orphans = pair(tape.data)
    assert len(finished) == 1
    assert len(still_open) == 0
    assert orphans == 3


def test_h49_calls_that_never_end_stay_open():
    tape = Tape(0).entry(A, 100).entry(B, 90).entry(C, 80).exit(C, 80)
    finished, still_open, _ = pair(tape.data)
    assert finished["function"].tolist() == [C]
    assert still_open["function"].tolist() == [A, B]
    assert still_open["flags"].tolist() == [CallFlag.OPEN, CallFlag.OPEN]
    assert still_open["children"].tolist() == [0, 10]


def test_h44_fibers_leave_the_other_stack_alone():
    # A runs fiber F, which calls B and yields to A; A calls C; then F goes on.
    main, fiber = 100, 100 + FAR
    tape = Tape(0).entry(A, main).entry(B, fiber).entry(C, main - 10).exit(C, main - 10)
    tape.entry(D, fiber - 10).exit(D, fiber - 10).exit(B, fiber).exit(A, main)
    assert calls(tape) == [
        (A, 10, 80, 0, CallFlag.NONE),
        (B, 20, 70, 1, CallFlag.NONE),
        (C, 30, 40, 1, CallFlag.NONE),
        (D, 50, 60, 2, CallFlag.NONE),
    ]


def test_a_new_call_of_the_scheduler_is_not_nested_in_a_fiber_that_sleeps():
    main, fiber = 100, 100 + FAR
    tape = Tape(0)
    for _ in range(50):
        tape.entry(A, main)
        tape.entry(B, fiber)
        tape.exit(A, main)
        fiber += FAR
    depths = pair(tape.data)[0]["depth"].tolist()
    assert set(depths) == {0}


def test_a_signal_handler_on_its_own_stack():
    tape = Tape(0).entry(A, 100).entry(B, 100 + FAR).exit(B, 100 + FAR).exit(A, 100)
    assert [(function, depth) for function, _, _, depth, _ in calls(tape)] == [(A, 0), (B, 1)]


def test_a_stack_deeper_than_the_limit_between_stacks_is_still_one():
    # longjmp over 32 MiB of frames
    step = 1 << 19
    tape = Tape(0)
    for level in range(8):
        tape.entry(A, (1 << 30) - level * step)
    tape.exit(A, 1 << 30)
    finished, still_open, orphans = pair(tape.data)
    assert (len(finished), len(still_open), orphans) == (8, 0, 0)


# -- random input ---------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**9), count=st.integers(1, 600), cut=st.integers(1, 700))
def test_random_call_trees_come_back_exactly(seed, count, cut):
    maker = TreeMaker(seed)
    wanted = [
        (node.function, node.start, node.end, node.depth)
        for root in maker.grow(count)
        for node in root.walk()
    ]
    data = maker.tape.data
    pairer = ThreadPairer()
    chunks = [
        pairer.feed(decode_records(data[at : at + cut * 16]))
        for at in range(0, len(data), cut * 16)
    ]
    rows = by_begin(np.concatenate([chunk.finished for chunk in chunks]))
    found = rows[["function", "start", "end", "depth"]].tolist()
    assert found == wanted
    assert pairer.orphan_exits == 0
    assert len(pairer.open_calls()) == 0
    assert not (rows["flags"] & int(CallFlag.SKIPPED)).any()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**9), count=st.integers(1, 600), cut=st.integers(0, 600))
def test_both_ways_of_pairing_agree_on_trees(seed, count, cut):
    maker = TreeMaker(seed)
    maker.grow(count)
    # Cut off at any record: calls stay open.
    data = maker.tape.data[: cut * 16]
    records = decode_records(data)
    nested = pair_nested([], records, 0)
    assert nested is not None
    slow = ThreadPairer()
    chunk = slow._feed_one_by_one(records)
    assert by_begin(nested[0].finished).tolist() == by_begin(chunk.finished).tolist()
    assert nested[0].opened.tolist() == chunk.opened.tolist()
    assert nested[2] == slow._sequence


_PAIRED = [kind for kind in RecordKind if kind is not RecordKind.STRAND]
KINDS = st.sampled_from([RecordKind.ENTRY, RecordKind.ENTRY, RecordKind.EXIT, *_PAIRED])
SOUP = st.lists(
    st.tuples(
        KINDS, st.integers(1, 3), st.sampled_from([10, 11, 12, 13, 10 + FAR, 11 + FAR]),
        st.integers(0, 2),
    ),
    max_size=40,
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(soup=SOUP)
def test_whatever_comes_each_call_begins_and_ends_once(soup):
    tape = Tape(0)
    for kind, function, key, wait in soup:
        tape.write(kind, function, key, wait)
    finished, still_open, orphans = pair(tape.data, one_by_one=True)
    entries = sum(kind is not RecordKind.EXIT for kind, *_ in soup)
    assert len(finished) + len(still_open) == entries
    assert orphans <= len(soup) - entries
    assert (finished["end"] >= finished["start"]).all()
    assert (finished["end_seq"] > finished["begin_seq"]).all()
    numbers = [*finished["begin_seq"], *finished["end_seq"], *still_open["begin_seq"]]
    assert sorted(numbers) == list(range(len(numbers)))


@settings(deadline=None, max_examples=300)
@given(soup=SOUP, cut=st.integers(0, 40))
def test_the_fast_way_never_contradicts_the_state_machine(soup, cut):
    tape = Tape(0)
    for kind, function, key, wait in soup:
        tape.write(kind, function, key, wait)
    first, rest = decode_records(tape.data[: cut * 16]), decode_records(tape.data[cut * 16 :])
    slow, fast = ThreadPairer(), ThreadPairer()
    slow._feed_one_by_one(first)
    fast._feed_one_by_one(first)
    if len(fast._stacks) > 1:
        return
    carried = fast._stacks[0] if fast._stacks else []
    nested = pair_nested(carried, rest, fast._sequence)
    if nested is None:
        return
    chunk = slow._feed_one_by_one(rest)
    assert by_begin(nested[0].finished).tolist() == by_begin(chunk.finished).tolist()
    assert nested[0].opened.tolist() == chunk.opened.tolist()
    assert nested[2] == slow._sequence
    # ... and what it leaves open goes on in the same way.
    fast._stacks = [nested[1]] if nested[1] else []
    assert fast.open_calls().tolist() == slow.open_calls().tolist()


@pytest.mark.parametrize("special", [False, True])
def test_events_give_the_order_of_the_records_back(special):
    maker = TreeMaker(5, special=special)
    maker.grow(500)
    pairer = ThreadPairer()
    data = maker.tape.data
    for at in range(0, len(data), 16 * 300):
        chunk = pairer.feed(decode_records(data[at : at + 16 * 300]))
        rows = np.concatenate([chunk.finished, chunk.opened])
        begins, places = chunk.event_order()
        times = np.where(begins, rows["start"][places], rows["end"][places])
        assert (np.diff(times) >= 0).all()
        numbers = np.where(begins, rows["begin_seq"][places], rows["end_seq"][places])
        assert numbers.tolist() == list(range(chunk.first_seq, chunk.first_seq + len(numbers)))
