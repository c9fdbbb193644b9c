"""The longest stop of each thread, over several operations."""

from __future__ import annotations

import ctypes

import pytest

from uftrace_agent.process.pauses import Pauses
from uftrace_agent.runtime.host_library import CPause


def test_the_longest_stop_of_each_thread_counts() -> None:
    pauses = Pauses()
    for nanoseconds, tid in ((5, 1), (3, 1), (9, 2), (7, 1)):
        pauses.add(nanoseconds, tid)
    assert pauses.by_thread == {1: 7, 2: 9}
    assert (pauses.longest_ns, pauses.tid) == (9, 2)


def test_without_a_stop_there_is_nothing() -> None:
    assert (Pauses().longest_ns, Pauses().tid) == (0, 0)
    empty = Pauses()
    empty.add(0, 17)
    assert empty.by_thread == {}


def test_operations_are_merged_not_added_up() -> None:
    first, second = Pauses({1: 5, 2: 8}), Pauses({1: 6, 3: 1})
    first.merge(second)
    assert first.by_thread == {1: 6, 2: 8, 3: 1}
    assert second.by_thread == {1: 6, 3: 1}


def test_rows_of_a_native_operation_are_taken() -> None:
    pause, pauses = CPause(), Pauses({1: 5})
    with pauses.collect(pause):
        assert pause.capacity >= 1024
        for row, (tid, nanos) in enumerate(((1, 4), (2, 6))):
            pause.rows[row].tid, pause.rows[row].nanos = tid, nanos
        pause.count = 2
    assert pauses.by_thread == {1: 5, 2: 6}


def test_rows_are_taken_of_an_operation_that_failed_too() -> None:
    pause, pauses = CPause(), Pauses()
    with pytest.raises(KeyError), pauses.collect(pause):
        pause.rows[0].tid, pause.rows[0].nanos = 4, 44
        pause.count = 1
        raise KeyError
    assert pauses.by_thread == {4: 44}


def test_the_rows_are_those_of_the_native_side() -> None:
    pause = CPause()
    with Pauses().collect(pause):
        first, second = (ctypes.addressof(pause.rows[row]) for row in (0, 1))
        assert second - first == 16
