"""How long threads of a target stood still for the agent."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from uftrace_agent.runtime.host_library import CPause, CThreadPause

# Threads beyond these are counted, but not told apart.
_ROWS: Final = 1024


@dataclass(slots=True)
class Pauses:
    """The longest stop of each thread, over several operations.

    Attributes:
        by_thread: Nanoseconds by thread id.
    """

    by_thread: dict[int, int] = field(default_factory=dict)

    @property
    def longest_ns(self) -> int:
        """The longest of all."""
        return max(self.by_thread.values(), default=0)

    @property
    def tid(self) -> int:
        """Whose that was; 0 where no thread was stopped."""
        return max(self.by_thread, key=self.by_thread.__getitem__, default=0)

    def add(self, nanoseconds: int, tid: int) -> None:
        """Take another stop into account."""
        if nanoseconds > self.by_thread.get(tid, 0):
            self.by_thread[tid] = nanoseconds

    def merge(self, other: Pauses) -> None:
        """Take the stops of another operation into account."""
        for tid, nanoseconds in other.by_thread.items():
            self.add(nanoseconds, tid)

    @contextmanager
    def collect(self, pause: CPause) -> Iterator[None]:
        """Lend rows to a native operation, and take what it wrote into account."""
        rows = (CThreadPause * _ROWS)()
        pause.rows = ctypes.cast(rows, ctypes.POINTER(CThreadPause))
        pause.capacity = _ROWS
        try:
            yield
        finally:
            for row in rows[: pause.count]:
                self.add(row.nanos, row.tid)
