"""What of Linux's mechanics depends on the machine: numbers, bytes of code, places.

Below `engine/`, all that differs between instruction sets is in the values of this module,
and `native_machine` is the one place that asks which of them it is.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from uftrace_agent.errors import UnsupportedTargetError
from uftrace_agent.process.system_calls import AARCH64 as _AARCH64_CALLS
from uftrace_agent.process.system_calls import X86_64 as _X86_64_CALLS
from uftrace_agent.process.system_calls import SystemCallNumbers

# linux/auxvec.h
AT_HWCAP: Final = 16
AT_HWCAP2: Final = 26


@dataclass(frozen=True, slots=True)
class WaitingCalls:
    """Numbers of the system calls that threads wait in.

    Attributes:
        not_restarted: They end with EINTR after any stop (signal(7), "Interruption of
            system calls"): used only when nothing else is there, since the agent must
            make them be entered again (H69).
        endless: Waits without an end, which the kernel enters again by the program counter
            alone: who is in one will not notice, whatever happens to the agent.
        futex: As endless, but only where no timeout is given.
        read: As endless, but only where the file has no timeout.
    """

    not_restarted: frozenset[int]
    endless: frozenset[int]
    futex: int
    read: int


@dataclass(frozen=True, slots=True)
class CallCode:
    """Bytes in a program that calls go through which are injected into it.

    Attributes:
        gadget: Makes a system call and returns.
        restorers: What calls rt_sigreturn: the way back of a signal handler.
        pop_number: Takes rt_sigreturn's number from the stack and returns, where there is
            no restorer; empty where there always is one.
        alignment: Of instructions.
        in_vdso: The kernel's own page of code has them, and is looked at first.
        behind: Where a thread is while it waits in the gadget's call, counted from the
            gadget, if a gadget that some thread waits in will not do; otherwise 0.
    """

    gadget: bytes
    restorers: tuple[bytes, ...]
    pop_number: bytes
    alignment: int
    in_vdso: bool
    behind: int


@dataclass(frozen=True, slots=True)
class TidSearch:
    """Where to look for the word in which a C library keeps a thread's id.

    Attributes:
        start: The first byte, from the thread pointer.
        end: The one behind the last.
        bias: What probes are told counts from so far below the thread pointer, and is
            never negative.
        known: Where it is in C libraries that are known, from the thread pointer.
        points_to_itself: The word at the thread pointer is the thread pointer.
    """

    start: int
    end: int
    bias: int
    known: tuple[int, ...]
    points_to_itself: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """One instruction set, as Linux shows it.

    Attributes:
        name: The kernel's name of it.
        calls: Numbers of system calls made for the agent.
        waits: Numbers of system calls that threads wait in.
        code: Bytes of code to look for.
        tid: Where a thread's id is.
        address_bits: How many bits a program's addresses may have, by rising number: with
            pages of 4 KiB, as the kernel was configured.
        hwcap2: What the probes need of AT_HWCAP2.
        shadow_stack_feature: The field of /proc/PID/status that lists a thread's features,
            and the one that means a shadow stack; None where there is no such field.
        shadow_stack_hwcap: What AT_HWCAP has where programs can have a shadow stack;
            0 where that is not how it is told.
    """

    name: str
    calls: SystemCallNumbers
    waits: WaitingCalls
    code: CallCode
    tid: TidSearch
    address_bits: tuple[int, ...]
    hwcap2: int
    shadow_stack_feature: tuple[str, str] | None
    shadow_stack_hwcap: int


X86_64: Final = Machine(
    name="x86_64",
    calls=_X86_64_CALLS,
    waits=WaitingCalls(
        # epoll_wait, epoll_pwait, epoll_pwait2, semop, semtimedop, rt_sigtimedwait,
        # io_getevents, io_pgetevents, recvfrom, recvmsg, recvmmsg, msgsnd, msgrcv,
        # accept, accept4
        not_restarted=frozenset(
            {232, 281, 441, 65, 220, 128, 208, 333, 45, 47, 299, 69, 70, 43, 288}
        ),
        # wait4, waitid, pause
        endless=frozenset({61, 247, 34}),
        futex=202,
        read=0,
    ),
    code=CallCode(
        # syscall; ret
        gadget=b"\x0f\x05\xc3",
        # glibc's and musl's: mov $15, %rax; syscall
        restorers=(
            b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05",
            b"\xb8\x0f\x00\x00\x00\x0f\x05",
        ),
        # For static programs that handle no signals: pop %rax; ret, which some
        # instruction's last bytes always are.
        pop_number=b"\x58\xc3",
        alignment=1,
        in_vdso=False,
        behind=0,
    ),
    tid=TidSearch(
        start=0,
        end=2048,
        bias=0,
        # glibc's struct pthread, musl's
        known=(0x2D0, 0x30),
        # the x86-64 TLS ABI
        points_to_itself=True,
    ),
    address_bits=(47,),
    # rdfsbase (arch/x86/include/uapi/asm/hwcap2.h, HWCAP2_FSGSBASE)
    hwcap2=2,
    shadow_stack_feature=("x86_Thread_features", "shstk"),
    shadow_stack_hwcap=0,
)

AARCH64: Final = Machine(
    name="aarch64",
    calls=_AARCH64_CALLS,
    waits=WaitingCalls(
        # epoll_pwait, epoll_pwait2, semop, semtimedop, rt_sigtimedwait, io_getevents,
        # io_pgetevents, recvfrom, recvmsg, recvmmsg, sendto, sendmsg, msgsnd, msgrcv,
        # accept, accept4
        not_restarted=frozenset(
            {22, 441, 193, 192, 137, 4, 292, 207, 212, 243, 206, 211, 189, 188, 202, 242}
        ),
        # wait4, waitid
        endless=frozenset({260, 95}),
        futex=98,
        read=63,
    ),
    code=CallCode(
        # svc #0; ret
        gadget=b"\x01\x00\x00\xd4\xc0\x03\x5f\xd6",
        # mov x8, #139; svc #0: __kernel_rt_sigreturn (arch/arm64/kernel/vdso), musl's
        restorers=(b"\x68\x11\x80\xd2\x01\x00\x00\xd4",),
        pop_number=b"",
        alignment=4,
        in_vdso=True,
        # A thread that is found at the call that it waits in may be sent into
        # restart_syscall instead (arch/arm64/kernel/signal.c, do_signal).
        behind=4,
    ),
    tid=TidSearch(
        # TLS variant 1: struct pthread, of glibc and musl alike, ends at the thread pointer.
        start=-4096,
        end=0,
        bias=1 << 16,
        known=(),
        points_to_itself=False,
    ),
    # arch/arm64/Kconfig, ARM64_VA_BITS; 52 bits only for those who ask (memory.rst).
    address_bits=(39, 48),
    hwcap2=0,
    shadow_stack_feature=None,
    shadow_stack_hwcap=1 << 32,  # HWCAP_GCS
)

_MACHINES: Final[Mapping[str, Machine]] = {one.name: one for one in (X86_64, AARCH64)}


@cache
def native_machine() -> Machine:
    """This machine.

    Raises:
        UnsupportedTargetError: The agent does not know it.
    """
    name = platform.machine()
    if name not in _MACHINES:
        raise UnsupportedTargetError(
            f"processes of {name} machines cannot be traced", reason="ARCHITECTURE_UNSUPPORTED"
        )
    return _MACHINES[name]


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    libc.getauxval.argtypes = [ctypes.c_ulong]
    return libc


def hardware(kind: int) -> int:
    """What the kernel says that programs may use: AT_HWCAP or AT_HWCAP2."""
    return int(_libc().getauxval(kind))


def page_size() -> int:
    """Bytes of a page of this kernel."""
    return os.sysconf("SC_PAGE_SIZE")
