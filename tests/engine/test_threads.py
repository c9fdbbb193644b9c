"""Which threads a process has, while others begin and end."""

from __future__ import annotations

from tests.support.target_process import TargetProcess
from tests.targets.build import build
from uftrace_agent.process.threads import thread_ids

_LISTINGS = 20_000


def test_h95_no_thread_that_lives_is_missing() -> None:
    """One in a thousand listings of /proc/PID/task misses one here."""
    with TargetProcess(build("generations", "gcc-O2")) as target:
        one, other = set(thread_ids(target.pid)), set(thread_ids(target.pid))
        seen = one | other
        for _ in range(_LISTINGS):
            now = set(thread_ids(target.pid))
            # Numbers are given out in turn: who was there before and is there now was
            # there in between.
            assert one & now <= other
            one, other = other, now
            seen |= now
        assert len(seen) > 1000
        target.quit()
