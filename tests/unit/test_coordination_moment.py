"""The moment of a commit: nobody's turn is waited for, and nobody is kept from theirs after."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from uftrace_agent.session.coordination import Coordination
from uftrace_agent.session.tracepoint_set import TracepointSet
from uftrace_agent.session.types import PatchOrder, PatchOutcome

_T = TypeVar("_T")


class Tracepoints:
    """Nothing is changed; how the barrier was passed is kept."""

    def __init__(self) -> None:
        self.passed: list[bool] = []
        self.policies: list[int] = []

    def prepare(self, order: PatchOrder) -> tuple[Any, PatchOutcome]:
        return SimpleNamespace(preparation=SimpleNamespace(stands=True)), PatchOutcome([])

    def commit(
        self, prepared: Any, in_ns: int, barrier: Callable[[], bool]
    ) -> tuple[PatchOutcome, int]:
        self.passed.append(barrier())
        self.policies.append(os.sched_getscheduler(0))
        return PatchOutcome([]), time.monotonic_ns()


async def on_a_thread(operation: Callable[[], _T]) -> _T:
    return await asyncio.to_thread(operation)


async def commit(tracepoints: Tracepoints, delay_ns: int, give_up: bool = False) -> int:
    """How late a commit was."""
    coordination = Coordination(1, cast("TracepointSet", tracepoints), on_a_thread, lambda: None)
    preparation = await coordination.prepare(
        PatchOrder(("f",), "somebody"), 0, lambda name, ready, outcome: name
    )
    at_ns = time.monotonic_ns() + delay_ns
    coordination.commit(preparation, at_ns, 10 * 10**9)
    if give_up:
        coordination.give_up()
    return (await coordination.outcome(preparation)).passed_ns - at_ns


@pytest.mark.parametrize("delay_ns", [0, 30_000_000, 150_000_000])
async def test_the_thread_is_before_others_until_the_moment_has_come(
    monkeypatch: pytest.MonkeyPatch, delay_ns: int
) -> None:
    asked: list[int] = []
    really = os.sched_setscheduler

    def set_scheduler(pid: int, policy: int, param: os.sched_param) -> None:
        asked.append(policy)
        really(pid, policy, param)

    monkeypatch.setattr(os, "sched_setscheduler", set_scheduler)
    tracepoints = Tracepoints()
    assert await commit(tracepoints, delay_ns) >= 0
    assert tracepoints.passed == [True]
    assert asked[0] == os.SCHED_FIFO
    # Not while the code is changed: that may take long.
    assert tracepoints.policies == [os.SCHED_OTHER]


async def test_where_that_is_forbidden_the_moment_comes_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    tracepoints = Tracepoints()
    assert await commit(tracepoints, 60_000_000) >= 0
    assert tracepoints.passed == [True]


async def test_who_gives_up_does_not_wait_for_the_moment() -> None:
    tracepoints = Tracepoints()
    since = time.monotonic()
    await commit(tracepoints, 50 * 10**9, give_up=True)
    assert tracepoints.passed == [False] and time.monotonic() - since < 30
