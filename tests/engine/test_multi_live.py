"""Several instructions moved while threads are among them, or in handlers that interrupted
them there."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.engine.live import Live, attached
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.targets.build import build
from uftrace_agent.engine.model import Form, Writer

NAMES = ["movable_nops", "movable_flags", "movable_fault", "movable_long"]
LONG = "movable_long"
FAULT = "movable_fault"
IN_THE_MIDDLE = 2  # bytes of two pushes
SECONDS = 8.0
TOGGLES = 2000


@pytest.fixture
def target() -> Iterator[TargetProcess]:
    with TargetProcess(build("movable", "nopie")) as started:
        yield started
        assert_text_unchanged(started.pid)
        assert_not_traced(started.pid)
        started.quit()


def enable(live: Live, names: list[str]) -> None:
    live.enable(names, allow_multi=True)
    for name in names:
        plan = live.tracepoint(name).plan
        assert (plan.form, plan.writer) == (Form.MULTI, Writer.STOP)


def place_of(live: Live, name: str, offset: int) -> int:
    """Where an instruction of a function is while it is patched."""
    plan = live.tracepoint(name).plan
    return dict(plan.moves)[plan.function + offset]


def test_h1_threads_among_the_instructions_move_both_ways(target: TargetProcess) -> None:
    """One thread is in the middle instruction nearly all the time: it takes tens of
    milliseconds, and goes on where it was each time."""
    tid = int(target.command("who").split()[1])
    with attached(target.pid) as live:
        moved = set_back = 0
        for _ in range(25):
            enable(live, [LONG])
            function = live.tracepoint(LONG).plan.function
            there = place_of(live, LONG, IN_THE_MIDDLE)
            # Whoever was in the middle is in the middle still, at the other place; one
            # that began since goes there by the jump.
            moved += live.counter_of(tid) == there
            live.disable()
            set_back += live.counter_of(tid) == function + IN_THE_MIDDLE
        assert moved > 15 and set_back > 15
        target.wait_iterations(20)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["own stack", "alternate stack", "both"])
def test_h1_a_handler_returns_to_the_moved_instructions(target: TargetProcess, kind: int) -> None:
    """A thread has faulted in the middle, and waits in its handler: what its signal frame
    holds moves along. `both`: in another handler on an alternate stack, on top of it."""
    with attached(target.pid) as live:
        for _ in range(5):
            # GIVEN a handler that was entered before the function is patched
            parked = int(target.command(f"fault {kind}").split()[1], 16)
            enable(live, [FAULT])
            assert parked == live.tracepoint(FAULT).plan.function + IN_THE_MIDDLE
            # WHEN it returns
            # THEN the function does what it would have done
            assert target.command("release") == "returned 42"
            # GIVEN one that was entered while it is patched
            parked = int(target.command(f"fault {kind}").split()[1], 16)
            assert parked == place_of(live, FAULT, IN_THE_MIDDLE)
            # WHEN it returns after that
            live.disable()
            assert target.command("release") == "returned 42"


@pytest.mark.parametrize("kind", [0, 1], ids=["own stack", "alternate stack"])
def test_h1_forth_and_back_while_the_handler_waits(target: TargetProcess, kind: int) -> None:
    with attached(target.pid) as live:
        for times in range(1, 6):
            target.command(f"fault {kind}")
            for _ in range(times):
                enable(live, [FAULT])
                live.disable()
            if times % 2:
                enable(live, [FAULT])
            assert target.command("release") == "returned 42"
            live.disable()


def test_h1_thousands_of_toggles_under_signals(target: TargetProcess) -> None:
    """Every result is checked by the program; a timer interrupts it everywhere, and its
    handler is slow to return now and then."""
    toggles = 0
    until = time.monotonic() + SECONDS
    with attached(target.pid) as live:
        while toggles < TOGGLES and time.monotonic() < until:
            enable(live, NAMES)
            assert text_differences(target.pid)
            live.disable()
            toggles += 2 * len(NAMES)
        assert toggles >= 100
    counters = target.counters()
    assert counters["calls_on_profile"] > 100 and counters["calls_on_late"] > 10


def test_an_interrupted_agent_leaves_moved_instructions_whole(target: TargetProcess) -> None:
    """Whoever is in the moved copy stays there, and it stays: what is set back later is the
    jump alone."""
    tid = int(target.command("who").split()[1])
    with attached(target.pid) as live:
        enable(live, [LONG])
        there = place_of(live, LONG, IN_THE_MIDDLE)
        for _ in range(200):
            if live.counter_of(tid) == there:
                break
        else:
            raise AssertionError("the thread is never where it always is")
    target.wait_iterations(20)
