"""The system calls that threads of a target make for the agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SystemCallNumbers:
    """One architecture's numbers (arch/*/entry/syscalls in the kernel).

    Attributes:
        audit: The architecture as seccomp filters know it (linux/audit.h).
    """

    audit: int

    mmap: int
    mprotect: int
    munmap: int
    munlock: int
    madvise: int
    memfd_create: int
    close: int
    prctl: int
    rt_sigaction: int
    rt_sigprocmask: int
    rt_sigreturn: int
    sigaltstack: int
    restart_syscall: int
    getpid: int
    gettid: int
    tgkill: int


X86_64: Final = SystemCallNumbers(
    audit=0xC000003E,
    mmap=9,
    mprotect=10,
    munmap=11,
    munlock=150,
    madvise=28,
    memfd_create=319,
    close=3,
    prctl=157,
    rt_sigaction=13,
    rt_sigprocmask=14,
    rt_sigreturn=15,
    sigaltstack=131,
    restart_syscall=219,
    getpid=39,
    gettid=186,
    tgkill=234,
)

# include/uapi/asm-generic/unistd.h
AARCH64: Final = SystemCallNumbers(
    audit=0xC00000B7,
    mmap=222,
    mprotect=226,
    munmap=215,
    munlock=229,
    madvise=233,
    memfd_create=279,
    close=57,
    prctl=167,
    rt_sigaction=134,
    rt_sigprocmask=135,
    rt_sigreturn=139,
    sigaltstack=132,
    restart_syscall=128,
    getpid=172,
    gettid=178,
    tgkill=131,
)

PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_WRITE: Final = 2
PROT_EXEC: Final = 4
MAP_SHARED: Final = 0x01
MAP_PRIVATE: Final = 0x02
MAP_ANONYMOUS: Final = 0x20
MAP_NORESERVE: Final = 0x4000
MAP_FIXED_NOREPLACE: Final = 0x100000
MADV_DONTDUMP: Final = 16
MADV_WIPEONFORK: Final = 18
MFD_CLOEXEC: Final = 1
MFD_ALLOW_SEALING: Final = 2
PR_GET_TSC: Final = 25
PR_TSC_SIGSEGV: Final = 2
