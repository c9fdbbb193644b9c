"""What an agent that died left in a process, and what a forked child inherited."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from uftrace_agent.engine.annex_places import DataPlaces
from uftrace_agent.engine.journal_entry import Entry
from uftrace_agent.engine.manifest import FoundManifest, Manifest
from uftrace_agent.engine.needed_calls import filter_watch
from uftrace_agent.engine.report import DEFAULT_STOP_DEADLINE_NS
from uftrace_agent.engine.site import Patch
from uftrace_agent.engine.trap_writer import SignalTable, settle
from uftrace_agent.engine.writer import FrameRepair, StopOrder, write_stopped
from uftrace_agent.errors import AlreadyHeldError, BusyTargetError, NoSuchProcessError
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.identity import ProcessId, start_time_ticks
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.process.remote_calls import RemoteCaller
from uftrace_agent.runtime.host_library import SiteStatus

_DEADLINE_NS: Final = 10 * DEFAULT_STOP_DEADLINE_NS


def restore_leftovers(
    memory: ProcessMemory, process: ProcessId, leftovers: Sequence[FoundManifest], pauses: Pauses
) -> int:
    """Set back what earlier agents left patched; how many sites that were.

    Raises:
        AlreadyHeldError: One of those agents is alive.
        BusyTargetError: The threads did not stop in time; nothing was changed.
    """
    restored = 0
    for found in leftovers:
        check_not_held(found, process)
        restored += restore(memory, found, pauses)
    return restored


def check_not_held(found: FoundManifest, process: ProcessId) -> None:
    """Refuse what an agent that is alive holds.

    Raises:
        AlreadyHeldError: One does.
    """
    if _is_held(found, process):
        raise AlreadyHeldError(
            f"agent {found.identity.agent_pid} holds process {process.pid}",
            hint="detach there first: one process has one agent",
            metadata={"agent_pid": str(found.identity.agent_pid)},
        )


def _is_held(found: FoundManifest, process: ProcessId) -> bool:
    identity = found.identity
    if identity.agent_pid == os.getpid() or identity.boot_id != process.boot_id:
        return False
    if (identity.pid, identity.start_time_ticks) != (process.pid, process.start_time_ticks):
        return False  # a forked child's copy of its parent's
    return agent_is_alive(found)


def agent_is_alive(found: FoundManifest) -> bool:
    """Whether the agent that wrote a journal last still runs."""
    identity = found.identity
    try:
        return start_time_ticks(identity.agent_pid) == identity.agent_start_time_ticks
    except NoSuchProcessError:
        return False


def restore(memory: ProcessMemory, found: FoundManifest, pauses: Pauses) -> int:
    """Set back what a manifest says is patched; how many sites that were.

    Raises:
        BusyTargetError: The threads did not stop in time; nothing was changed.
    """
    patched = [entry for entry in found.entries if entry.may_be_changed]
    memory.write(DataPlaces.at(found.address).control, bytes(4))
    if patched:
        restore_sites(memory, found, patched, pauses)
    remove_handler(memory, found, pauses)
    Manifest(memory, found.address, found.identity).disown(found)
    return len(patched)


def remove_handler(memory: ProcessMemory, found: FoundManifest, pauses: Pauses) -> None:
    """Give the program its own action for SIGTRAP back: only when no trap is left in
    its code.

    Raises:
        BusyTargetError: Some trap may still be on its way: ours stays.
    """
    caller = RemoteCaller(memory, filter_watch(memory.pid))
    traps = DataPlaces.at(found.address).traps
    table = SignalTable(traps, memory, caller, native_machine().calls)
    if table.is_installed:
        settle(memory, table.handler_code(), pauses)
        table.remove()
        pauses.merge(caller.take_pauses())


def restore_sites(
    memory: ProcessMemory, found: FoundManifest, patched: Sequence[Entry], pauses: Pauses
) -> None:
    """Set the sites of some entries back.

    Raises:
        BusyTargetError: The threads did not stop in time; nothing was changed.
    """
    heads = [entry.head.reversed() for entry in patched if entry.function_id]
    write_stopped(memory, StopOrder(heads, _DEADLINE_NS, may_be_trapped=True), pauses)
    _let_go_home(memory, found, [e.head.reversed() for e in patched if not e.function_id], pauses)
    tails = [entry.tail.reversed() for entry in patched if entry.tail is not None]
    spans = [(tail.address, tail.end) for tail in tails]
    if not tails:
        return
    try:
        write_stopped(memory, StopOrder(tails, _DEADLINE_NS, spans, watched=spans), pauses)
    except BusyTargetError:
        # Some thread is to go on in padding that nothing leads to any more: it stays
        # as it is, and does no harm.
        return


# Return addresses, and then the unwinders' hooks: at a moment at which nobody is in our
# code, if there is one. New threads do not come there any more.
def _let_go_home(
    memory: ProcessMemory, found: FoundManifest, hooks: Sequence[Patch], pauses: Pauses
) -> None:
    if not found.identity.thunks:
        return
    code = found.code_ranges(read_mappings(memory.pid))
    slots = DataPlaces.at(found.address).slots
    repair = FrameRepair.read(memory, found.identity.thunks, slots, code)
    order = StopOrder((), _DEADLINE_NS, code, repair, may_be_trapped=True, hooks=hooks)
    try:
        statuses, _ = write_stopped(memory, order, pauses)
    except BusyTargetError:
        statuses, _ = write_stopped(memory, replace(order, forbidden=()), pauses)
    if SiteStatus.UNTOUCHED in statuses:
        raise BusyTargetError(
            f"process {memory.pid} has signed return addresses on its stacks that this kernel "
            "does not let the agent sign anew (CONFIG_CHECKPOINT_RESTORE)",
            hint="try again when the functions that were traced have returned",
        )
