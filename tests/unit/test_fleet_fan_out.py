"""Asking many hosts at once: order, bounds, deadlines, and what failures mean."""

from __future__ import annotations

import asyncio

import pytest

from uftrace_remote.errors import (
    AuthenticationError,
    ConnectionFailedError,
    SomeHostsFailedError,
    UftraceError,
)
from uftrace_remote.fleet.fan_out import Outcome, failure_of, fan_out


async def test_outcomes_are_in_the_order_of_the_hosts():
    release = asyncio.Event()

    async def ask(host: int) -> str:
        if host == 0:
            await release.wait()
        if host == 9:
            release.set()
        return f"answer {host}"

    arrived: list[int] = []
    outcomes = await fan_out(
        range(10), ask, deadline=30, on_outcome=lambda each: arrived.append(each.host)
    )
    assert [each.value for each in outcomes] == [f"answer {host}" for host in range(10)]
    assert arrived[-1] == 0


async def test_who_does_not_answer_is_called_what_the_caller_calls_it():
    async def ask(host: int) -> None:
        await asyncio.Event().wait()

    (outcome,) = await fan_out([7], ask, deadline=0.01, name=lambda host: f"web{host}:50051")
    assert outcome.host == 7 and isinstance(outcome.error, ConnectionFailedError)
    assert outcome.error.message == "the agent at web7:50051 did not answer in 0.01 s"


async def test_no_more_than_allowed_are_asked_at_once():
    now = most = 0

    async def ask(host: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    outcomes = await fan_out(range(1000), ask, deadline=30, most_at_once=7)
    assert len(outcomes) == 1000 and most == 7


async def test_a_host_that_never_answers_delays_nobody():
    answered: list[int] = []

    async def ask(host: int) -> int:
        if host == 3:
            await asyncio.Event().wait()
        answered.append(host)
        return host

    def check(outcome: Outcome[int, int]) -> None:
        if outcome.host == 3:
            # All others were through by then, though only two were asked at once.
            assert len(answered) == 99

    outcomes = await fan_out(range(100), ask, deadline=1.0, most_at_once=2, on_outcome=check)
    failed = [each for each in outcomes if each.error]
    assert [each.host for each in failed] == [3]
    error = failed[0].error
    assert isinstance(error, ConnectionFailedError)
    assert error.reason == "DEADLINE_EXCEEDED" and error.hint
    assert failed[0].seconds >= 1.0


async def test_the_deadline_begins_with_the_turn():
    async def ask(host: int) -> int:
        if host < 3:
            await asyncio.Event().wait()
        return host

    outcomes = await fan_out(range(6), ask, deadline=0.2, most_at_once=1)
    assert [each.error is None for each in outcomes] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("kind", [ZeroDivisionError, TimeoutError])
async def test_what_is_no_error_of_a_host_is_raised(kind):
    async def ask(host: int) -> None:
        if host == 5:
            raise kind("a bug")
        await asyncio.Event().wait()

    with pytest.raises(kind, match="a bug"):
        await fan_out(range(10), ask, deadline=60)


async def test_cancelling_cancels_all():
    started = asyncio.Event()
    cancelled = 0

    async def ask(host: int) -> None:
        nonlocal cancelled
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    task = asyncio.ensure_future(fan_out(range(10), ask, deadline=60))
    await started.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == 10


def outcomes_of(*errors: UftraceError | None) -> list[Outcome[str, int]]:
    return [Outcome(f"h{number}", 1, error, 0.0) for number, error in enumerate(errors)]


def test_what_failures_mean():
    dead = ConnectionFailedError("no agent at h0", reason="CONNECTION_REFUSED", hint="start it")
    denied = AuthenticationError("no token for h1")
    assert failure_of(outcomes_of()) is None
    assert failure_of(outcomes_of(None, None)) is None
    partial = failure_of(outcomes_of(None, dead, denied))
    assert isinstance(partial, SomeHostsFailedError) and partial.exit_code == 14
    assert partial.message == "2 of 3 hosts failed"
    assert failure_of(outcomes_of(dead)) is dead
    total = failure_of(outcomes_of(denied, dead, dead))
    assert total is not None
    assert (total.exit_code, total.reason) == (3, "CONNECTION_REFUSED")
    assert total.message == "all 3 hosts failed"


async def test_nobody_to_ask():
    async def ask(host: int) -> int:
        return host

    assert await fan_out([], ask, deadline=1) == ()
