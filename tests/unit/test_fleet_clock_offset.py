"""How far another clock is: never further from the estimate than the bound says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uftrace_remote.errors import ConnectionFailedError
from uftrace_remote.fleet.clock_offset import ClockOffset, ClockSample, estimate

DELAYS = st.integers(0, 10**9)
NOW = 1_700_000_000 * 10**9


@given(
    st.integers(-(10**18), 10**18),
    st.lists(st.tuples(DELAYS, DELAYS, st.integers(0, 10**10)), min_size=1, max_size=9),
)
def test_the_truth_lies_within_the_bound(offset, trips):
    samples, moment = [], NOW
    for there, back, pause in trips:
        samples.append(ClockSample(moment, moment + there + offset, moment + there + back))
        moment += there + back + pause
    found = estimate(samples)
    assert abs(found.offset_ns - offset) <= found.bound_ns
    assert found.round_trip_ns == min(there + back for there, back, _ in trips)
    assert found.bound_ns <= (found.round_trip_ns + 1) // 2
    assert found.to_ours(found.to_agent(NOW)) == NOW


def test_the_shortest_round_trip_decides():
    # The second answer was held up on its way back alone: its middle is far off.
    samples = [ClockSample(0, 105, 10), ClockSample(100, 205, 1100), ClockSample(2000, 2107, 2012)]
    assert estimate(samples) == ClockOffset(100, 5, 10, 3)


def test_a_clock_that_was_set_back_says_nothing():
    back = ClockSample(1000, 500, 900)
    assert estimate([back, ClockSample(0, 105, 10)]).sample_count == 1
    with pytest.raises(ConnectionFailedError, match="set back"):
        estimate([back])
