"""Times of another host on our clock: in order for ever, and as near as the bound says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from uftrace_remote.fleet.clock_offset import ClockOffset
from uftrace_remote.fleet.source_clock import DRIFT, SmoothOffset, SourceClock
from uftrace_remote.values import ClockAnchor

SECOND = 1_000_000_000
START = 10**15


def measured(offset: int, bound: int = 1000) -> ClockOffset:
    return ClockOffset(offset, bound, 2 * bound)


def test_the_first_measurement_counts_at_once():
    offset = SmoothOffset(measured(5 * SECOND), START)
    assert offset.to_ours(START + 5 * SECOND) == START
    assert offset.to_ours(START) == START - 5 * SECOND
    assert offset.bound_ns(START) == 1000


def test_a_new_measurement_is_reached_in_small_steps():
    offset = SmoothOffset(measured(0), START)
    assert offset.measured(measured(100_000), START)
    # Not at once: time goes on, a little slower.
    assert offset.to_ours(START) == START
    assert offset.bound_ns(START) == 101_000
    assert abs(offset.to_ours(START + 5 * SECOND) - (START + 5 * SECOND - 50_000)) <= 1
    assert offset.to_ours(START + 20 * SECOND) == START + 20 * SECOND - 100_000
    drift = int(DRIFT * 20 * SECOND)
    assert offset.bound_ns(START + 20 * SECOND) == 1000 + drift
    # What was said before is still said.
    assert offset.to_ours(START) == START


def test_a_worse_measurement_is_left_alone_until_the_better_one_is_old():
    offset = SmoothOffset(measured(0, 1000), START)
    assert not offset.measured(measured(300_000, 400_000), START + SECOND)
    assert offset.measured(measured(300_000, 400_000), START + 20 * SECOND)


def test_a_clock_that_jumped_is_followed():
    offset = SmoothOffset(measured(0), START)
    # A host that was suspended for an hour: its time is behind, ours jumps ahead.
    assert offset.measured(measured(-3600 * SECOND, 50_000), START + SECOND)
    later = START + SECOND
    assert offset.to_ours(later) == later + 3600 * SECOND
    # We were suspended: time may not run backwards, so that it stands nearly still.
    back = SmoothOffset(measured(0), START)
    assert back.measured(measured(3600 * SECOND, 50_000), START + SECOND)
    assert back.bound_ns(START + SECOND) > 3599 * SECOND


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 20 * SECOND),
            st.integers(-(10**10), 10**10),
            st.integers(1, 10**8),
        ),
        max_size=20,
    ),
    st.data(),
)
def test_no_measurement_changes_the_order_of_events(measurements, data):
    offset = SmoothOffset(measured(0), START)
    asked: list[tuple[int, int]] = []
    now = START
    for passed, found, bound in measurements:
        for _ in range(3):
            agent_ns = now + data.draw(st.integers(-SECOND, passed))
            asked.append((agent_ns, offset.to_ours(agent_ns)))
        now += passed
        offset.measured(measured(found, bound), now)
    for agent_ns, ours in asked[-30:]:
        assert offset.to_ours(agent_ns) == ours
    asked.sort()
    assert [ours for _, ours in asked] == sorted(ours for _, ours in asked)


def anchor(ticks: int, monotonic_ns: int, rate: float = 3e9) -> ClockAnchor:
    return ClockAnchor(ticks, monotonic_ns, 0, rate)


def test_ticks_become_our_nanoseconds():
    clock = SourceClock(SmoothOffset(measured(1000), START))
    assert not clock.is_set
    assert clock.nanosecond(77) == 77
    clock.add(anchor(3_000_000, START + 1000))
    assert clock.is_set
    assert clock.nanosecond(3_000_000) == START
    assert clock.nanosecond(0) == START - 1_000_000
    assert clock.nanosecond(6_000_000) == START + 1_000_000
    # The ticks run faster than they said.
    clock.add(anchor(6_000_000, START + 901_000))
    assert clock.nanosecond(4_500_000) == START + 450_000
    assert clock.nanoseconds(np.array([0, 4_500_000, 9_000_000])).tolist() == [
        START - 1_000_000,
        START + 450_000,
        START + 1_900_000,
    ]
    # One that contradicts is passed over.
    clock.add(anchor(7_000_000, START))
    assert clock.nanosecond(9_000_000) == START + 1_900_000


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0.99, 1.01)), min_size=1, max_size=20),
    st.lists(st.floats(0, 1), max_size=50),
)
def test_moments_are_in_order_and_the_same_however_they_are_asked_for(anchors, shares):
    clock = SourceClock(SmoothOffset(measured(0), START))
    ticks = 0
    for passed, speed in anchors:
        ticks += passed
        clock.add(anchor(ticks, START + int(ticks / 3 * speed)))
    asked = np.sort(np.array([int(share * ticks) for share in shares], np.int64))
    found = clock.nanoseconds(asked)
    assert bool((np.diff(found) >= 0).all())
    assert [clock.nanosecond(each) for each in asked.tolist()] == found.tolist()
