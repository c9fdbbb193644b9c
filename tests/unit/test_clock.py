"""Ticks beside the host's clocks."""

from __future__ import annotations

import itertools
import time

from tests.support.waiting import wait_until
from uftrace_agent.recording.clock import Anchor, TickClock


def test_an_anchor_is_now_on_both_clocks() -> None:
    clock = TickClock()
    for _ in range(20):
        before = time.monotonic_ns(), time.time_ns()
        anchor = clock.anchor()
        after = time.monotonic_ns(), time.time_ns()
        assert before[0] <= anchor.monotonic_ns <= after[0]
        assert before[1] <= anchor.realtime_ns <= after[1]


def test_ticks_rise_with_time() -> None:
    clock = TickClock()
    anchors = [clock.anchor() for _ in range(50)]
    for earlier, later in itertools.pairwise(anchors):
        assert later.ticks > earlier.ticks
        assert later.monotonic_ns > earlier.monotonic_ns


def test_the_rate_converts_ticks_to_time() -> None:
    # GIVEN a clock, and its rate after a while
    clock = TickClock()
    first = clock.anchor()
    wait_until(lambda: time.monotonic_ns() - first.monotonic_ns > 200_000_000)
    last = clock.anchor()
    # WHEN the ticks between are converted
    converted = (last.ticks - first.ticks) / last.ticks_per_second * 1e9
    # THEN it is the time that has passed
    passed = last.monotonic_ns - first.monotonic_ns
    assert abs(converted - passed) < passed * 0.001


def test_the_first_rate_is_good_enough_to_show_times() -> None:
    # 2 ms are measured before the first anchor; preemption may spoil one.
    clock = TickClock()
    first = clock.anchor()
    wait_until(lambda: time.monotonic_ns() - first.monotonic_ns > 150_000_000)
    later = clock.anchor()
    assert abs(first.ticks_per_second / later.ticks_per_second - 1) < 0.2


def test_an_anchor_is_a_value() -> None:
    assert Anchor(1, 2, 3, 4.0) == Anchor(1, 2, 3, 4.0)
