"""Finding what dead agents left on this host, and setting it back, with no agent at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from uftrace_agent.engine.manifest import find_manifests
from uftrace_agent.errors import AlreadyHeldError, NoSuchProcessError, TargetGoneError
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.process.threads import proc_directory
from uftrace_agent.session.attaching import check_attachable, claim_process
from uftrace_agent.session.leftovers import agent_is_alive, restore_leftovers

# The name of the rings' file, as /proc/PID/maps shows it: a forked child has it too.
_MARK: Final = b"/memfd:uftrace-rings"


def instrumented_processes() -> list[ProcessId]:
    """The processes in which some agent has been, by rising pid: those that can be seen."""
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            if _MARK in Path(proc_directory(pid), "maps").read_bytes():
                found.append(resolve(ProcessId(pid)))
        except (OSError, NoSuchProcessError, TargetGoneError):
            continue  # it ended meanwhile, or is not ours to look at
    return found


def restore_orphan(process: ProcessId) -> int:
    """Restore a process that only agents which died have been in, or their forked
    children: those of a process that is traced right now are left alone.

    Raises:
        AlreadyHeldError: An agent that is alive has been there.
        AgentError: As for `restore_process`.
    """
    with ProcessMemory(process.pid) as memory:
        found = find_manifests(memory, read_mappings(memory.pid))
    for agent in {one.identity.agent_pid for one in found if agent_is_alive(one)}:
        raise AlreadyHeldError(
            f"agent {agent} holds process {process.pid}, or the one that it was forked from",
            hint="detach there first: one process has one agent",
            metadata={"agent_pid": str(agent)},
        )
    is_changed = any(entry.may_be_changed for one in found for entry in one.entries)
    return restore_process(process) if is_changed else 0


def restore_process(process: ProcessId) -> int:
    """Set a process back to what its files say; how many sites that were.

    Needs nothing but the process's own memory.

    Raises:
        AlreadyHeldError: An agent that is alive holds it: detach there.
        BusyTargetError: Its threads did not stop in time; nothing was changed.
        AgentError: As for attaching.
    """
    check_attachable(process.pid)
    with claim_process(process), ProcessMemory(process.pid) as memory:
        found = find_manifests(memory, read_mappings(memory.pid))
        return restore_leftovers(memory, process, found, Pauses())
