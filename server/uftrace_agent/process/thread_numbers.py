"""Thread ids as the agent knows them, and as the target's own kernel calls tell them.

A process in another pid namespace (a container) has other numbers for its threads than
those of the agent's /proc; what it records goes by its own (H82).
"""

from __future__ import annotations

from contextlib import suppress

from uftrace_agent.errors import TargetGoneError
from uftrace_agent.process.threads import status_field, thread_ids


def own_number(pid: int, tid: int) -> int:
    """What gettid tells a thread of itself; `tid` where it has ended."""
    # By namespace, from that of /proc down to the thread's own.
    numbers = (status_field(pid, "NSpid", tid) or "").split()
    return int(numbers[-1]) if numbers else tid


class ThreadNumbers:
    """Both numbers of one process's threads."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_same = len((status_field(pid, "NSpid") or "").split()) <= 1
        self._outside: dict[int, int] = {}
        # Looked for in vain since the threads were looked at last.
        self._unknown: set[int] = set()

    def living(self) -> set[int]:
        """The process's own numbers of its threads now.

        Raises:
            TargetGoneError: It is gone.
        """
        tids = thread_ids(self._pid)
        if self._is_same:
            return set(tids)
        now = {own_number(self._pid, tid): tid for tid in tids}
        # Records of a thread that has ended may still be on their way.
        self._outside.update(now)
        self._unknown.clear()
        return set(now)

    def outside(self, number: int) -> int:
        """The agent's number of a thread; the same where it has ended too soon to be seen."""
        if self._is_same:
            return number
        if number not in self._outside and number not in self._unknown:
            with suppress(TargetGoneError):
                self.living()
            self._unknown.add(number)
        return self._outside.get(number, number)
