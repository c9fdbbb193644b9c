"""Who goes on, and when all go back: the pure part of a coordinated change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uftrace_remote.errors import ConnectionFailedError, UsageError
from uftrace_remote.fleet.rollout import Rollout, RolloutPolicy, Step, uneven_refusals

GONE = ConnectionFailedError("gone")


def test_one_failure_is_enough_by_default():
    rollout = Rollout(RolloutPolicy(), 3)
    rollout.passed(0, Step.ATTACHED)
    assert rollout.goes_on
    rollout.failed(1, GONE)
    assert not rollout.goes_on and not rollout.is_done
    assert rollout.failures[1].step is Step.NONE


def test_so_many_may_fail_but_not_all():
    some, any_number = Rollout(RolloutPolicy(1), 3), Rollout(RolloutPolicy(None), 3)
    for place, (goes_on, also) in enumerate([(True, True), (False, True), (False, False)]):
        some.failed(place, GONE)
        any_number.failed(place, GONE)
        assert (some.goes_on, any_number.goes_on) == (goes_on, also)


def test_it_is_done_when_all_that_are_left_are_confirmed():
    rollout = Rollout(RolloutPolicy(1), 2)
    rollout.failed(0, GONE)
    for step in (Step.ATTACHED, Step.PREPARED, Step.ARMED, Step.ENABLED, Step.CONFIRMED):
        assert not rollout.is_done
        rollout.passed(1, step)
    assert rollout.is_done
    assert list(rollout.going(Step.CONFIRMED)) == [1]


def test_no_step_is_left_out_and_nobody_comes_back():
    rollout = Rollout(RolloutPolicy(None), 2)
    with pytest.raises(ValueError, match="PREPARED is not next"):
        rollout.passed(0, Step.PREPARED)
    rollout.failed(0, GONE)
    with pytest.raises(ValueError, match="member 0"):
        rollout.passed(0, Step.ATTACHED)


@given(
    st.integers(1, 500),
    st.integers(0, 600),
    st.floats(0, 1),
    st.integers(0, 600),
)
def test_waves_take_everyone_once_and_in_order(count, canary, share, batch):
    waves = RolloutPolicy(canary=canary, canary_share=share, batch=batch).waves(count)
    assert [place for wave in waves for place in wave] == list(range(count))
    assert all(waves)
    first = min(max(canary, share * count), count)
    if first:
        assert len(waves[0]) == -int(-first // 1)
    if batch:
        assert all(len(wave) <= batch for wave in waves[1 if first else 0 :])
    elif not first:
        assert len(waves) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"most_failures": -1},
        {"canary": -1},
        {"canary_share": 1.5},
        {"batch": -2},
        {"watch_seconds": -1},
        {"watch_seconds": float("nan")},
    ],
)
def test_policies_that_make_no_sense(wrong):
    with pytest.raises(UsageError):
        RolloutPolicy(**wrong)


def test_what_is_refused_everywhere_is_nobodys_failure():
    ready = [frozenset({"a", "b"}), frozenset({"a"}), frozenset({"a", "b"})]
    refused = [frozenset({"c"}), frozenset({"b", "c"}), frozenset({"c"})]
    assert uneven_refusals(ready, refused) == [frozenset(), frozenset({"b"}), frozenset()]
    assert uneven_refusals([], []) == []
