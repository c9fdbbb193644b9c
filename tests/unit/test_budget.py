"""The budget by itself: samples in, functions that have to go out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from uftrace_agent.session.budget import NO_LIMITS, Budget, Excess, LimitChange, LimitKind, Limits

CALL_NS, ENTRY_NS = 50.0, 20.0
STEP = 0.05
# Calls per second that take all of one processor.
WHOLE = 1e9 / CALL_NS
CPU_ONLY = Limits(0.05, math.inf)


def budget(*function_ids: int, limits: Limits = CPU_ONLY) -> Budget:
    made = Budget(limits, CALL_NS, ENTRY_NS)
    for function_id in function_ids:
        made.watch(function_id, has_exit=True)
    return made


def step(judged: Budget, rates: Mapping[int, float], seconds: float = STEP) -> list[Excess]:
    calls = np.zeros(max(rates, default=0) + 1)
    for function_id, rate in rates.items():
        calls[function_id] = rate * seconds
    return judged.judge(seconds, calls)


def run(judged: Budget, rates: Mapping[int, float], seconds: float) -> list[tuple[float, Excess]]:
    """(when, what) of all that had to go; what is out calls no probe any more."""
    found: list[tuple[float, Excess]] = []
    for turn in range(round(seconds / STEP)):
        out = {excess.function_id for _, excess in found}
        now = {each: rate for each, rate in rates.items() if each not in out}
        found += [((turn + 1) * STEP, excess) for excess in step(judged, now)]
    return found


def ids(excesses: Iterable[Excess]) -> list[int]:
    return [excess.function_id for excess in excesses]


def test_what_is_within_the_budget_stays() -> None:
    judged = budget(1, 2)
    assert run(judged, {1: 0.02 * WHOLE, 2: 0.029 * WHOLE}, 20) == []
    assert abs(judged.cpu() - 0.049) < 1e-9


def test_a_storm_is_found_in_less_than_half_a_second() -> None:
    judged = budget(1, 2)
    assert run(judged, {1: 0.01 * WHOLE}, 10) == []
    ((when, excess),) = run(judged, {1: 0.01 * WHOLE, 2: WHOLE}, 1)
    assert (excess.function_id, excess.limit, excess.allowed) == (2, LimitKind.CPU, 0.05)
    assert when <= 0.35
    assert 0.4 < excess.cpu <= 1


def test_the_excess_of_a_hair_is_found_within_a_second() -> None:
    judged = budget(1)
    run(judged, {1: 0.049 * WHOLE}, 10)
    ((when, _),) = run(judged, {1: 0.051 * WHOLE}, 2)
    assert when <= 0.6


def test_a_burst_of_a_fifth_of_a_second_does_not_matter() -> None:
    judged = budget(1)
    # It may lie across five samples.
    assert run(judged, {1: WHOLE}, 0.25) == []
    assert run(judged, {1: 0.0}, 10) == []
    assert run(judged, {1: WHOLE}, 0.25) == []


def test_bursts_again_and_again_do() -> None:
    judged = budget(1)
    for _ in range(10):
        if run(judged, {1: WHOLE}, 0.2):
            return
        run(judged, {1: 0.0}, 0.5)
    raise AssertionError("two bursts in three seconds take 29 % of a processor")


def test_the_hottest_go_first_and_no_more_than_needed() -> None:
    judged = budget(1, 2, 3, 4)
    rates = {1: 0.02 * WHOLE, 2: 0.5 * WHOLE, 3: 0.025 * WHOLE, 4: 0.2 * WHOLE}
    found = run(judged, rates, 5)
    assert ids(excess for _, excess in found) == [2, 4]


def test_exits_cost() -> None:
    judged = Budget(CPU_ONLY, CALL_NS, ENTRY_NS)
    judged.watch(1, has_exit=False)
    assert run(judged, {1: 0.05 * 1e9 / ENTRY_NS * 0.99}, 5) == []
    judged.watch(1, has_exit=True)
    assert ids(e for _, e in run(judged, {1: 0.05 * 1e9 / ENTRY_NS * 0.99}, 5)) == [1]


def test_one_function_may_not_be_called_too_often() -> None:
    judged = budget(1, 2, limits=Limits(math.inf, 1000.0))
    found = run(judged, {1: 999.0, 2: 1010.0}, 5)
    assert [(e.function_id, e.limit, e.allowed) for _, e in found] == [(2, LimitKind.RATE, 1000.0)]


def test_limits_of_its_own() -> None:
    judged = budget(1, 2)
    judged.set_own(1, LimitChange(cpu=0.5))
    # It does not count for the session,
    assert run(judged, {1: 0.4 * WHOLE, 2: 0.045 * WHOLE}, 5) == []
    # and not even without end.
    ((_, excess),) = run(judged, {1: 0.6 * WHOLE, 2: 0.045 * WHOLE}, 5)
    assert (excess.function_id, excess.limit, excess.allowed) == (1, LimitKind.CPU, 0.5)
    judged.watch(1, has_exit=True)
    judged.set_own(1, LimitChange(math.inf, math.inf))
    assert run(judged, {1: 8 * WHOLE}, 5) == []


def test_what_is_out_is_forgotten_until_it_is_watched_again() -> None:
    judged = budget(1)
    assert len(run(judged, {1: WHOLE}, 1)) == 1
    assert all(step(judged, {1: WHOLE}) == [] for _ in range(40))
    judged.watch(1, has_exit=True)
    assert [step(judged, {1: WHOLE}) for _ in range(5)] == [[]] * 5
    assert ids(step(judged, {1: WHOLE})) == [1]


def test_a_sample_that_took_long_is_one_that_lasted() -> None:
    judged = budget(1)
    assert ids(step(judged, {1: WHOLE}, 0.4)) == [1]


def test_without_limits_there_is_nothing_to_do() -> None:
    judged = budget(1, limits=NO_LIMITS)
    assert judged.is_idle
    assert run(judged, {1: 100 * WHOLE}, 5) == []
    judged.set_own(1, LimitChange(rate=5.0))
    assert not judged.is_idle
    assert ids(e for _, e in run(judged, {1: 6.0}, 5)) == [1]


def test_the_measured_cost_takes_the_place_of_the_assumed_one() -> None:
    judged = budget(1)
    judged.set_costs(CALL_NS / 2, ENTRY_NS)
    assert run(judged, {1: 0.09 * WHOLE}, 5) == []
    judged.set_costs(CALL_NS, ENTRY_NS)
    assert ids(step(judged, {1: 0.09 * WHOLE})) == [1]


_RATES = st.dictionaries(st.integers(1, 12), st.floats(0, 2 * WHOLE), min_size=1, max_size=12)


@given(st.lists(st.tuples(_RATES, st.integers(1, 40)), min_size=1, max_size=8))
def test_nothing_passes_a_second_and_nothing_goes_without_reason(
    phases: list[tuple[dict[int, float], int]],
) -> None:
    """Whatever is called how often: what is left over the limit is never so for a second,
    and what goes had been over it."""
    judged = budget(*range(1, 13))
    watched = set(range(1, 13))
    over = 0.0
    latest: list[float] = []
    for rates, steps in phases:
        for _ in range(steps):
            now = {each: rate for each, rate in rates.items() if each in watched}
            load = sum(now.values()) / WHOLE
            latest = [*latest[-99:], load]
            over = over + STEP if load > 0.05 else 0.0
            excesses = step(judged, now)
            if excesses:
                assert max(latest) > 0.05
                shares = [excess.cpu for excess in excesses]
                assert shares == sorted(shares, reverse=True)
                watched -= set(ids(excesses))
            assert over < 1.0, "over the limit for a second"
