"""Carrying out patches in a live process."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

from uftrace_agent.engine.site import Patch
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.runtime.host_library import (
    CStop,
    SiteRows,
    SiteStatus,
    error_for,
    library,
    move_array,
    range_array,
    site_rows,
)
from uftrace_agent.runtime.layout import SLOT_TABLE_BYTES, THUNK_SPAN

_ATTEMPTS = 40


@dataclass(frozen=True, slots=True)
class FrameRepair:
    """Set return addresses back, on stacks and in registers.

    Attributes:
        thunks: Where the thunks begin.
        slot_table: Where the table of the return addresses is.
        slots: A copy of it.
        code: The annex's code: a thread that is in it keeps its registers.
    """

    thunks: int
    slot_table: int
    slots: bytes
    code: Sequence[tuple[int, int]]

    @classmethod
    def read(
        cls, memory: ProcessMemory, thunks: int, slot_table: int, code: Sequence[tuple[int, int]]
    ) -> FrameRepair:
        """With the table as it is now.

        Raises:
            TargetGoneError: The process ended.
        """
        return cls(thunks, slot_table, memory.read(slot_table, SLOT_TABLE_BYTES), code)


@dataclass(frozen=True, slots=True)
class StopOrder:
    """What is to be done while all threads are stopped.

    Attributes:
        patches: Code to change.
        forbidden: Address ranges in which no thread may be meanwhile.
        deadline_ns: For one attempt to stop all threads.
        repair: Set back hijacked return addresses too.
        watched: Address ranges that no stack may hold an address of: of code
            that somebody who was interrupted there would go on at.
        resumed: Address ranges that no signal frame may lead back to.
        moves: (from, to): who is at the first goes on at the second, also
            after a signal handler.
        may_be_trapped: Sites that the `trap` writer left half done are ours.
        hooks: Code to change as well, but only if no hijacked return address stays: it
            shows unwinders where those lead. (Signed ones may have to; signer.h.)
    """

    patches: Sequence[Patch]
    deadline_ns: int
    forbidden: Sequence[tuple[int, int]] = ()
    repair: FrameRepair | None = None
    attempts: int = field(default=_ATTEMPTS)
    watched: Sequence[tuple[int, int]] = ()
    resumed: Sequence[tuple[int, int]] = ()
    moves: Sequence[tuple[int, int]] = ()
    may_be_trapped: bool = False
    hooks: Sequence[Patch] = ()


def write_running(memory: ProcessMemory, patches: Sequence[Patch]) -> list[SiteStatus]:
    """Change sites of a running program, each by the smallest write.

    Only for changes of one byte, and for bytes that nothing executes.

    Returns:
        What became of each, in the order of `patches`.
    """
    rows, order = patch_rows(patches)
    library().uh_touch(memory.fd, rows.ctypes.data, len(rows))
    library().uh_write_running(memory.fd, rows.ctypes.data, len(rows))
    return statuses_in_order(rows["status"].tolist(), order)


def write_stopped(
    memory: ProcessMemory, order: StopOrder, pauses: Pauses
) -> tuple[list[SiteStatus], int]:
    """Stop all threads, change the sites, let them go.

    Returns:
        What became of each patch, then of each hook, and how many return addresses were
        set back.

    Raises:
        BusyTargetError: Some thread did not come to a safe stop in time;
            nothing was changed.
        TargetGoneError: The process ended.
        ForbiddenError: Somebody else traces it.
    """
    rows, positions = patch_rows([*order.patches, *order.hooks])
    stop = CStop(
        pid=memory.pid,
        mem_fd=memory.fd,
        deadline_nanos=order.deadline_ns,
        attempts=order.attempts,
        site_count=len(rows),
        sites=rows.ctypes.data,
        range_count=len(order.forbidden),
        ranges=range_array(order.forbidden),
        watched=range_array(order.watched),
        watched_count=len(order.watched),
        resumed=range_array(order.resumed),
        resumed_count=len(order.resumed),
        moves=move_array(order.moves),
        move_count=len(order.moves),
    )
    rows["may_be_trapped"] = order.may_be_trapped
    rows["explains_thunks"] = [position >= len(order.patches) for position in positions]
    if order.repair is not None:
        stop.thunks = order.repair.thunks
        stop.thunk_span = THUNK_SPAN
        stop.slot_table = order.repair.slot_table
        stop.ours = range_array(order.repair.code)
        stop.ours_count = len(order.repair.code)
        stop.slots = ctypes.cast(ctypes.c_char_p(order.repair.slots), ctypes.c_void_p)
    if order.repair is not None or order.watched or order.resumed or order.moves:
        stacks = [
            (mapping.start, mapping.end)
            for mapping in read_mappings(memory.pid)
            if mapping.flags.startswith("rw-p")
        ]
        stop.stacks = range_array(stacks)
        stop.stack_count = len(stacks)
    with pauses.collect(stop.pause):
        code = library().uh_stop_write(ctypes.byref(stop))
    if code:
        raise error_for(code, memory.pid, "being stopped")
    return statuses_in_order(rows["status"].tolist(), positions), stop.pause.frames


def patch_rows(patches: Sequence[Patch]) -> tuple[SiteRows, list[int]]:
    """The patches for the native writers, by rising address, and where each came from."""
    order = sorted(range(len(patches)), key=lambda index: patches[index].address)
    return site_rows([patches[index] for index in order]), order


def statuses_in_order(sorted_statuses: Sequence[int], order: Sequence[int]) -> list[SiteStatus]:
    """What became of the patches, in the order in which they were given."""
    statuses = [SiteStatus.UNTOUCHED] * len(order)
    for index, status in zip(order, sorted_statuses, strict=True):
        statuses[index] = SiteStatus(status)
    return statuses
