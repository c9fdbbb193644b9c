"""Ticks to nanoseconds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uftrace_remote.trace.clock import Clock
from uftrace_remote.values import ClockAnchor

REALTIME = 1_700_000_000_000_000_000


def anchor(ticks: int, ns: int, rate: float = 3e9) -> ClockAnchor:
    return ClockAnchor(ticks, ns, REALTIME + ns, rate)


def test_between_anchors_it_interpolates_and_outside_it_goes_on():
    clock = Clock([anchor(3000, 1000), anchor(6000, 3000), anchor(9000, 4000, 1e9)])
    ticks = np.array([3000, 4500, 6000, 7500, 9000, 9010, 2990], np.int64)
    assert clock.nanoseconds(ticks).tolist() == [1000, 2000, 3000, 3500, 4000, 4010, 990]
    assert clock.realtime_offset_ns == REALTIME


def test_without_anchors_a_tick_is_a_nanosecond():
    assert Clock().nanosecond(1234) == 1234


def test_a_host_that_runs_for_months_keeps_its_nanoseconds():
    months = 200 * 86_400
    first = anchor(months * 3_000_000_000, months * 1_000_000_000)
    clock = Clock([first])
    assert clock.nanosecond(first.ticks + 3) == first.monotonic_ns + 1
    assert clock.nanosecond(first.ticks + 3_000_000_003) == first.monotonic_ns + 1_000_000_001


def test_anchors_that_contradict_others_are_passed_over():
    clock = Clock([anchor(100, 100), anchor(200, 90), anchor(300, 300), anchor(300, 400)])
    assert [each.ticks for each in clock.anchors] == [100, 300]
    assert clock.nanosecond(200) == 200


def test_anchors_may_come_late_and_in_any_order():
    whole = Clock([anchor(0, 0), anchor(3000, 1100), anchor(9000, 3100)])
    late = Clock([anchor(9000, 3100)])
    late.add([anchor(0, 0)])
    late.add([anchor(3000, 1100)])
    assert late.anchors == whole.anchors


def test_a_live_clock_keeps_the_latest_anchors_only():
    clock = Clock(keep=2)
    for turn in range(5):
        clock.add([anchor(turn * 3000, turn * 1000)])
    assert [each.ticks for each in clock.anchors] == [9000, 12000]


@given(
    steps=st.lists(
        st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)), min_size=1, max_size=20
    ),
    ticks=st.lists(st.integers(0, 10**13), min_size=2, max_size=50),
)
def test_time_never_runs_backwards(steps, ticks):
    anchors, at, ns = [], 0, 0
    for more_ticks, more_ns in steps:
        at, ns = at + more_ticks, ns + more_ns
        anchors.append(anchor(at, ns))
    times = Clock(anchors).nanoseconds(np.array(sorted(ticks), np.int64))
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_an_anchor_without_a_rate_is_no_anchor(rate):
    assert Clock([anchor(5, 5, rate)]).anchors == ()
