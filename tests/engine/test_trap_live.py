"""The `trap` writer on sites that straddle words, cache lines and pages, under threads that
run through them; and on threads that stand in the middle of things."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.engine.live import Live, attached
from tests.support.target_process import DEADLINE, TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, thread_states
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_agent.engine.model import Form, Refusal, Status, Writer

WORDS = ("straddle_5_12", "straddle_5_13", "straddle_5_14", "straddle_5_15", "straddle_7_10",
         "straddle_7_11")  # fmt: skip
LINES = ("straddle_5_60", "straddle_5_61", "straddle_5_62", "straddle_5_63", "straddle_7_58",
         "straddle_7_59")  # fmt: skip
PAGES = ("straddle_5_4092", "straddle_5_4093", "straddle_5_4094", "straddle_5_4095",
         "straddle_7_4090", "straddle_7_4091", "straddle_7_4095")  # fmt: skip
BLOCKS = {"words": (WORDS, 8), "lines": (LINES, 64), "pages": (PAGES, 4096)}
SECONDS = 4.0


@pytest.fixture
def target() -> Iterator[TargetProcess]:
    with TargetProcess(build("straddle", "nopie")) as started:
        yield started
        assert_text_unchanged(started.pid)
        assert_not_traced(started.pid)
        started.quit()


def trapped(live: Live, names: list[str]) -> None:
    """Enable by traps; while a thread is kept from leaving libc that may have to wait."""
    functions = live.attachment.program.select(names)
    options = live.options(Writer.TRAP)
    for _ in range(50):
        report = live.attachment.engine.enable(functions, options)
        refused = {o.detail for o in report.outcomes if o.status is Status.REFUSED}
        if not refused:
            assert {o.writer for o in report.outcomes if o.writer} <= {Writer.TRAP}
            return
        assert all("blocks SIGTRAP" in detail for detail in refused), refused
    raise AssertionError("no moment without a thread in libc")


@pytest.mark.parametrize("block", list(BLOCKS))
def test_h15_sites_that_straddle(target: TargetProcess, block: str) -> None:
    """Half of such an instruction is fetched before the other half has changed."""
    names, size = BLOCKS[block]
    toggles = 0
    with attached(target.pid) as live:
        until = time.monotonic() + SECONDS
        # On a loaded machine it takes longer to do as much.
        while time.monotonic() < until or toggles < 50:
            assert time.monotonic() < until + DEADLINE
            trapped(live, list(names))
            for name in names:
                head = live.tracepoint(name).plan.head
                assert live.tracepoint(name).plan.form is Form.NEAR
                assert head.address // size != (head.end - 1) // size, "it does straddle"
            live.disable(Writer.TRAP)
            toggles += 2 * len(names)


def test_h15_all_of_them_in_one_batch(target: TargetProcess) -> None:
    with attached(target.pid) as live:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            trapped(live, ["straddle_*_*"])
            target.wait_iterations(10)
            live.disable(Writer.TRAP)


def test_a_stop_and_traps_take_turns(target: TargetProcess) -> None:
    """One site, changed by one writer and set back by the other."""
    with attached(target.pid) as live:
        for turn in range(40):
            if turn % 2:
                trapped(live, ["straddle_*_*"])
            else:
                live.enable(["straddle_*_*"], Writer.STOP)
            live.disable(Writer.STOP if turn % 2 else Writer.TRAP)
            assert_text_unchanged(target.pid)


def test_h21_a_foreign_byte_in_the_middle_of_a_batch_is_left_alone(target: TargetProcess) -> None:
    with attached(target.pid) as live:
        functions = live.attachment.program.select(["straddle_*_*"])
        live.enable(["straddle_*_*"], Writer.STOP)
        live.disable(Writer.STOP)
        # GIVEN a site that has changed since it was planned: a breakpoint that is met by
        # nobody, since all workers are parked
        target.pause()
        site = live.tracepoint("straddle_5_62").plan.head.address
        memory = live.attachment.memory
        original = memory.read(site, 1)
        memory.write(site, b"\xcc")
        # WHEN it is to be changed with the others
        report = live.attachment.engine.enable(functions, live.options(Writer.TRAP))
        # THEN it alone is refused
        by_status = {o.status: o for o in report.outcomes}
        refused = [o for o in report.outcomes if o.status is Status.REFUSED]
        assert [o.function.symbol.linkage_name for o in refused] == ["straddle_5_62"]
        assert refused[0].refusal is Refusal.FOREIGN_PATCH
        assert by_status.keys() == {Status.ENABLED, Status.REFUSED}
        assert memory.read(site, 1) == b"\xcc"
        live.disable(Writer.TRAP)
        memory.write(site, original)
        target.resume()


def test_h67_a_stopped_process_is_changed_and_stays_stopped(target: TargetProcess) -> None:
    with attached(target.pid) as live:
        os.kill(target.pid, signal.SIGSTOP)
        wait_until(lambda: {s for s, _ in thread_states(target.pid).values()} == {"T"})
        try:
            trapped(live, ["straddle_5_61", "straddle_5_4094"])
            wait_until(lambda: {s for s, _ in thread_states(target.pid).values()} == {"T"})
        finally:
            os.kill(target.pid, signal.SIGCONT)
        target.wait_iterations(50)
        live.disable(Writer.TRAP)


def test_h70_a_deadline_that_cannot_be_kept_changes_nothing(target: TargetProcess) -> None:
    """A stop is given no time at all: every function says so, and nothing has changed."""
    with attached(target.pid) as live:
        functions = live.attachment.program.select(["straddle_*_*"])
        options = live.options(Writer.STOP)
        impossible = type(options)(plan=options.plan, stop_deadline_ns=1)
        report = live.attachment.engine.enable(functions, impossible)
        assert {o.refusal for o in report.outcomes} <= {Refusal.STOP_TIMED_OUT, None}
        if all(o.refusal is Refusal.STOP_TIMED_OUT for o in report.outcomes):
            assert_text_unchanged(target.pid)
        live.disable(Writer.STOP)
        # A longer one is kept.
        live.enable(["straddle_*_*"], Writer.STOP)
        live.disable(Writer.STOP)
