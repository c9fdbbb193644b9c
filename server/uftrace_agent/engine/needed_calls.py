"""The system calls that threads of a target make because it is traced.

One list, so that a seccomp filter can be asked about each of them before the first
(H60): those that the agent has them perform, those of the runtime inside the target,
and those by which the kernel lets a thread go on that was stopped.
"""

from __future__ import annotations

from typing import Final

from uftrace_agent.process.address_space import has_locked_memory
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.seccomp import FilteredCall
from uftrace_agent.process.seccomp_filters import FilterWatch
from uftrace_agent.process.system_calls import (
    MADV_DONTDUMP,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MFD_ALLOW_SEALING,
    MFD_CLOEXEC,
    PR_GET_TSC,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SystemCallNumbers,
)

PRIVATE_MAPPING: Final = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
RING_MAPPING: Final = MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE
RING_FILE: Final = MFD_CLOEXEC | MFD_ALLOW_SEALING

_MASK_BYTES: Final = 8
_SIG_SETMASK: Final = 2
_NO_FILE: Final = -1


def needed_calls(numbers: SystemCallNumbers) -> tuple[FilteredCall, ...]:
    """All of them, with the arguments that are known beforehand."""
    data, code = PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC
    return (
        # Stopping a thread, and letting it go on (host/remote.c, host/stop.c).
        FilteredCall("restart_syscall", numbers.restart_syscall),
        FilteredCall("rt_sigreturn", numbers.rt_sigreturn),
        FilteredCall("sigaltstack", numbers.sigaltstack, (0,)),
        # The annex (annex.py).
        FilteredCall(
            "mmap(PROT_READ|PROT_WRITE)",
            numbers.mmap,
            (None, None, data, PRIVATE_MAPPING, _NO_FILE, 0),
        ),
        FilteredCall(
            "mmap(PROT_READ|PROT_EXEC)",
            numbers.mmap,
            (None, None, code, PRIVATE_MAPPING, _NO_FILE, 0),
        ),
        FilteredCall("mmap(MAP_SHARED)", numbers.mmap, (None, None, data, RING_MAPPING, None, 0)),
        FilteredCall("munmap", numbers.munmap),
        FilteredCall("memfd_create", numbers.memfd_create, (None, RING_FILE)),
        FilteredCall("close", numbers.close),
        FilteredCall("madvise(MADV_WIPEONFORK)", numbers.madvise, (None, None, MADV_WIPEONFORK)),
        FilteredCall("madvise(MADV_DONTDUMP)", numbers.madvise, (None, None, MADV_DONTDUMP)),
        FilteredCall("prctl(PR_GET_TSC)", numbers.prctl, (PR_GET_TSC,)),
        # A thread's first event (target/runtime.c).
        FilteredCall("gettid", numbers.gettid),
        # The `trap` writer, and its handler of SIGTRAP (trap_writer.py, target/trap.c).
        FilteredCall("rt_sigaction", numbers.rt_sigaction, (None, None, None, _MASK_BYTES)),
        FilteredCall(
            "rt_sigprocmask", numbers.rt_sigprocmask, (_SIG_SETMASK, None, 0, _MASK_BYTES)
        ),
        FilteredCall("getpid", numbers.getpid),
        FilteredCall("tgkill", numbers.tgkill),
    )


def calls_to_unlock(numbers: SystemCallNumbers) -> tuple[FilteredCall, ...]:
    """Those besides, of a process that locks its memory (annex.py)."""
    data = PROT_READ | PROT_WRITE
    return (
        FilteredCall("munlock", numbers.munlock),
        FilteredCall("mprotect(PROT_READ|PROT_WRITE)", numbers.mprotect, (None, None, data)),
    )


def filter_watch(pid: int) -> FilterWatch:
    """What asks the filters of a process about all of them."""
    calls = native_machine().calls
    needed = needed_calls(calls)
    if has_locked_memory(pid):
        needed += calls_to_unlock(calls)
    return FilterWatch(pid, calls.audit, needed)
