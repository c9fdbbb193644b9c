"""Carrying out patches in a live process."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

from uftrace_agent.engine.site import Patch
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.runtime.host_library import (
    CStop,
    SiteRows,
    SiteStatus,
    error_for,
    library,
    range_array,
    site_rows,
)

_ATTEMPTS = 40


@dataclass(slots=True)
class Pauses:
    """The longest time that one thread was stopped, over several operations."""

    longest_ns: int = 0
    tid: int = 0

    def add(self, longest_ns: int, tid: int) -> None:
        """Take another stop into account."""
        if longest_ns > self.longest_ns:
            self.longest_ns, self.tid = longest_ns, tid


@dataclass(frozen=True, slots=True)
class FrameRepair:
    """Set return addresses on stacks back: `slots` is a copy of the table."""

    thunks: int
    thunk_span: int
    slots: bytes


@dataclass(frozen=True, slots=True)
class StopOrder:
    """What is to be done while all threads are stopped.

    Attributes:
        patches: Code to change.
        forbidden: Address ranges in which no thread may be meanwhile.
        deadline_ns: For one attempt to stop all threads.
        repair: Set back hijacked return addresses too.
    """

    patches: Sequence[Patch]
    deadline_ns: int
    forbidden: Sequence[tuple[int, int]] = ()
    repair: FrameRepair | None = None
    attempts: int = field(default=_ATTEMPTS)


def write_running(memory: ProcessMemory, patches: Sequence[Patch]) -> list[SiteStatus]:
    """Change sites of a running program, each by the smallest write.

    Only for changes of one byte, and for bytes that nothing executes.

    Returns:
        What became of each, in the order of `patches`.
    """
    rows, order = _rows(patches)
    library().uh_touch(memory.fd, rows.ctypes.data, len(rows))
    library().uh_write_running(memory.fd, rows.ctypes.data, len(rows))
    return _statuses(rows["status"].tolist(), order)


def write_stopped(
    memory: ProcessMemory, order: StopOrder, pauses: Pauses
) -> tuple[list[SiteStatus], int]:
    """Stop all threads, change the sites, let them go.

    Returns:
        What became of each patch, and how many return addresses were set back.

    Raises:
        BusyTargetError: Some thread did not come to a safe stop in time;
            nothing was changed.
        TargetGoneError: The process ended.
        ForbiddenError: Somebody else traces it.
    """
    rows, positions = _rows(order.patches)
    stop = CStop(
        pid=memory.pid,
        mem_fd=memory.fd,
        deadline_nanos=order.deadline_ns,
        attempts=order.attempts,
        site_count=len(rows),
        sites=rows.ctypes.data,
        range_count=len(order.forbidden),
        ranges=range_array(order.forbidden),
    )
    if order.repair is not None:
        stop.thunks = order.repair.thunks
        stop.thunk_span = order.repair.thunk_span
        stop.slots = ctypes.cast(ctypes.c_char_p(order.repair.slots), ctypes.c_void_p)
        stacks = [
            (mapping.start, mapping.end)
            for mapping in read_mappings(memory.pid)
            if mapping.flags.startswith("rw-p")
        ]
        stop.stacks = range_array(stacks)
        stop.stack_count = len(stacks)
    code = library().uh_stop_write(ctypes.byref(stop))
    pauses.add(stop.pause.longest_nanos, stop.pause.longest_tid)
    if code:
        raise error_for(code, memory.pid, "being stopped")
    return _statuses(rows["status"].tolist(), positions), stop.pause.frames


def _rows(patches: Sequence[Patch]) -> tuple[SiteRows, list[int]]:
    order = sorted(range(len(patches)), key=lambda index: patches[index].address)
    return site_rows([patches[index] for index in order]), order


def _statuses(sorted_statuses: Sequence[int], order: Sequence[int]) -> list[SiteStatus]:
    statuses = [SiteStatus.UNTOUCHED] * len(order)
    for index, status in zip(order, sorted_statuses, strict=True):
        statuses[index] = SiteStatus(status)
    return statuses
