"""The moment of a commit: nobody's turn is waited for, and nobody is kept from theirs after."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from uftrace_agent.engine.preparation import Barrier
from uftrace_agent.session.coordination import Coordination
from uftrace_agent.session.punctuality import MOST_AT_ONCE, before_others
from uftrace_agent.session.tracepoint_set import TracepointSet
from uftrace_agent.session.types import PatchOrder, PatchOutcome

_T = TypeVar("_T")


class Tracepoints:
    """Nothing is changed; how the thread was scheduled meanwhile is kept."""

    def __init__(self, functions: int) -> None:
        self._functions = functions
        self.passed: list[bool] = []
        self.policies: list[int] = []

    def prepare(self, order: PatchOrder) -> tuple[Any, PatchOutcome]:
        preparation = SimpleNamespace(stands=True, tracepoints=[None] * self._functions)
        return SimpleNamespace(preparation=preparation), PatchOutcome([])

    def commit(self, prepared: Any, in_ns: int, barrier: Barrier) -> tuple[PatchOutcome, int]:
        with barrier() as is_wanted:
            self.policies.append(os.sched_getscheduler(0))
        self.passed.append(is_wanted)
        self.policies.append(os.sched_getscheduler(0))
        return PatchOutcome([]), time.monotonic_ns()


class Resting:
    """Nothing is urgent."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def rest(self, until_ns: int) -> None:
        self._woken.wait(max(until_ns - time.monotonic_ns(), 0) / 1e9)

    def wake(self) -> None:
        self._woken.set()


def on_a_thread(operation: Callable[[], _T]) -> Coroutine[None, None, _T]:
    return asyncio.to_thread(operation)


async def commit(tracepoints: Tracepoints, delay_ns: int, give_up: bool = False) -> int:
    """How late a commit was."""
    coordination = Coordination(1, cast("TracepointSet", tracepoints), on_a_thread, Resting())
    preparation = await coordination.prepare(
        PatchOrder(("f",), "somebody"), 0, lambda name, ready, outcome: name
    )
    at_ns = time.monotonic_ns() + delay_ns
    coordination.commit(preparation, at_ns, 10 * 10**9)
    if give_up:
        coordination.give_up()
    return (await coordination.outcome(preparation)).passed_ns - at_ns


@pytest.mark.parametrize("delay_ns", [0, 30_000_000, 150_000_000])
@pytest.mark.parametrize(("functions", "meanwhile"), [(1, os.SCHED_FIFO), (10_000, os.SCHED_OTHER)])
async def test_the_thread_is_before_others_until_few_functions_are_changed(
    delay_ns: int, functions: int, meanwhile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    really = os.sched_setscheduler

    def set_scheduler(pid: int, policy: int, param: os.sched_param) -> None:
        asked.append(policy)
        really(pid, policy, param)

    monkeypatch.setattr(os, "sched_setscheduler", set_scheduler)
    tracepoints = Tracepoints(functions)
    assert await commit(tracepoints, delay_ns) >= 0
    assert tracepoints.passed == [True]
    assert asked == [os.SCHED_FIFO, os.SCHED_OTHER]
    assert tracepoints.policies == [meanwhile, os.SCHED_OTHER]


async def test_where_that_is_forbidden_the_moment_comes_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    tracepoints = Tracepoints(1)
    assert await commit(tracepoints, 60_000_000) >= 0
    assert tracepoints.passed == [True]


async def test_who_gives_up_does_not_wait_for_the_moment() -> None:
    tracepoints = Tracepoints(1)
    since = time.monotonic()
    await commit(tracepoints, 50 * 10**9, give_up=True)
    assert tracepoints.passed == [False] and time.monotonic() - since < 30


def test_few_threads_of_an_agent_are_before_others() -> None:
    policies = list[int]()
    all_are_in = threading.Barrier(MOST_AT_ONCE + 2)

    def be_there() -> None:
        with before_others():
            policies.append(os.sched_getscheduler(0))
            all_are_in.wait(30)

    threads = [threading.Thread(target=be_there) for _ in range(MOST_AT_ONCE + 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(policies) == [os.SCHED_OTHER] * 2 + [os.SCHED_FIFO] * MOST_AT_ONCE
