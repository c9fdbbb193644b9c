"""Threads that are asked to stop, and do so only when nobody waits for them any more."""

from __future__ import annotations

import pytest

from tests.engine.live import attached
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced
from tests.targets.build import build
from uftrace_agent.engine.writer import StopOrder, write_stopped
from uftrace_agent.errors import BusyTargetError
from uftrace_agent.process.pauses import Pauses

TRIES = 20
# Nobody stops in so short a time.
DEADLINE_NS = 1


def test_h69_who_stops_too_late_sees_no_eintr() -> None:
    """The program's threads wait in epoll_wait, recv with a timeout, semtimedop and others;
    it reports each EINTR that no signal of its own explains."""
    with TargetProcess(build("blocked")) as target:
        with attached(target.pid) as live:
            order = StopOrder((), DEADLINE_NS, attempts=1)
            for _ in range(TRIES):
                with pytest.raises(BusyTargetError):
                    write_stopped(live.attachment.memory, order, Pauses())
                assert_not_traced(target.pid)
        target.command("poke")
        target.quit()
