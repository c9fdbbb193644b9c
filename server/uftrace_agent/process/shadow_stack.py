"""Whether returns of a process are checked by the processor (H43)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from uftrace_agent.process.machine import AT_HWCAP, Machine, hardware, native_machine
from uftrace_agent.process.threads import proc_directory, status_field

# VM_SHADOW_STACK, of whatever machine (fs/proc/task_mmu.c, show_smap_vma_flags).
_FLAGS: Final = "VmFlags:"
_SHADOW_STACK: Final = "ss"


def has_shadow_stack(pid: int, machine: Machine | None = None) -> bool:
    """Whether a process has a shadow stack.

    Args:
        pid: The process.
        machine: What it runs on; None: this machine.
    """
    machine = machine or native_machine()
    if machine.shadow_stack_feature is not None:
        field, feature = machine.shadow_stack_feature
        return feature in (status_field(pid, field) or "").split()
    # Reading smaps takes long: only where there is something to be found.
    return bool(hardware(AT_HWCAP) & machine.shadow_stack_hwcap) and has_shadow_mapping(pid)


def has_shadow_mapping(pid: int) -> bool:
    """Whether a shadow stack is mapped in a process; not where it is gone."""
    try:
        with Path(proc_directory(pid), "smaps").open(errors="surrogateescape") as lines:
            return any(_is_shadow_stack(line) for line in lines)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_shadow_stack(line: str) -> bool:
    return line.startswith(_FLAGS) and _SHADOW_STACK in line.split()
