"""Seccomp filters, written by hand as libseccomp, Docker and systemd write them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.support.architecture import here

ALLOW: Final = 0x7FFF0000
LOG: Final = 0x7FFC0000
TRACE: Final = 0x7FF00000
USER_NOTIF: Final = 0x7FC00000
ERRNO: Final = 0x00050000
TRAP: Final = 0x00030000
KILL_THREAD: Final = 0
KILL_PROCESS: Final = 0x80000000
EPERM: Final = ERRNO | 1

# linux/audit.h
MACHINE: Final = here(x86_64=0xC000003E, aarch64=0xC00000B7)
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06

_X86_64: Final = {
    "read": 0, "write": 1, "poll": 7, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "madvise": 28, "close": 3,
    "nanosleep": 35, "getpid": 39, "exit": 60, "prctl": 157, "gettid": 186, "futex": 202,
    "restart_syscall": 219, "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234,
    "sigaltstack": 131, "memfd_create": 319, "rseq": 334, "seccomp": 317, "ptrace": 101,
    "shmat": 30, "pkey_mprotect": 329, "getrandom": 318, "sched_yield": 24, "bpf": 321,
    "keyctl": 250, "mount": 165, "reboot": 169, "swapon": 167, "settimeofday": 164,
    "init_module": 175, "kexec_load": 246, "open_by_handle_at": 304, "perf_event_open": 298,
    "unshare": 272, "setns": 308, "personality": 135, "uselib": 134, "userfaultfd": 323,
}  # fmt: skip
# asm-generic/unistd.h: poll() is a ppoll there, and there is no uselib.
_GENERIC: Final = {
    "read": 63, "write": 64, "poll": 73, "mmap": 222, "mprotect": 226, "munmap": 215, "brk": 214,
    "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "madvise": 233, "close": 57,
    "nanosleep": 101, "getpid": 172, "exit": 93, "prctl": 167, "gettid": 178, "futex": 98,
    "restart_syscall": 128, "clock_nanosleep": 115, "exit_group": 94, "tgkill": 131,
    "sigaltstack": 132, "memfd_create": 279, "rseq": 293, "seccomp": 277, "ptrace": 117,
    "shmat": 196, "pkey_mprotect": 288, "getrandom": 278, "sched_yield": 124, "bpf": 280,
    "keyctl": 219, "mount": 40, "reboot": 142, "swapon": 224, "settimeofday": 170,
    "init_module": 105, "kexec_load": 104, "open_by_handle_at": 265, "perf_event_open": 241,
    "unshare": 97, "setns": 268, "personality": 92, "userfaultfd": 282,
}  # fmt: skip
NUMBERS: Final = here(x86_64=_X86_64, aarch64=_GENERIC)


def statement(code: int, constant: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    """One struct sock_filter."""
    return struct.pack("<HBBI", code, jump_true, jump_false, constant)


@dataclass(frozen=True, slots=True)
class Rule:
    """A call, and what becomes of it where the low word of an argument, masked, is `value`."""

    name: str
    action: int
    argument: int | None = None
    mask: int = 0xFFFFFFFF
    value: int = 0


def filter_program(rules: Sequence[Rule], otherwise: int) -> bytes:
    """A filter: the first rule that fits says what is done; another machine's calls die."""
    program = statement(_LOAD, 4) + statement(_EQUAL, MACHINE, 1, 0)
    program += statement(_RETURN, KILL_PROCESS)
    for rule in rules:
        number = NUMBERS[rule.name]
        if rule.argument is None:
            program += statement(_LOAD, 0) + statement(_EQUAL, number, 0, 1)
            program += statement(_RETURN, rule.action)
            continue
        program += statement(_LOAD, 0) + statement(_EQUAL, number, 0, 4)
        program += statement(_LOAD, 16 + 8 * rule.argument) + statement(_AND, rule.mask)
        program += statement(_EQUAL, rule.value, 0, 1) + statement(_RETURN, rule.action)
    return program + statement(_RETURN, otherwise)


def allowing(*names: str, otherwise: int = EPERM) -> bytes:
    """An allowlist."""
    return filter_program([Rule(name, ALLOW) for name in names], otherwise)


def denying(action: int, *names: str) -> bytes:
    """A denylist."""
    return filter_program([Rule(name, action) for name in names], ALLOW)


def memory_deny_write_execute() -> bytes:
    """As systemd's MemoryDenyWriteExecute= (shared/seccomp-util.c)."""
    write_execute, execute, shm_execute = 6, 4, 0o100000
    return filter_program(
        [
            Rule("mmap", EPERM, 2, write_execute, write_execute),
            Rule("mprotect", EPERM, 2, execute, execute),
            Rule("pkey_mprotect", EPERM, 2, execute, execute),
            Rule("shmat", EPERM, 2, shm_execute, shm_execute),
        ],
        ALLOW,
    )


def docker_like() -> bytes:
    """As Docker's default profile on a large machine word: a search tree over numbers.

    Calls that it does not know fail with EPERM; personality is let through with some
    arguments only. Of the 450 numbers those of mounting, modules, clocks and so on are
    left out.
    """
    denied = {
        NUMBERS[name]
        for name in ("mount", "reboot", "swapon", "settimeofday", "init_module", "kexec_load",
                     "open_by_handle_at", "unshare", "setns", "bpf", "perf_event_open", "keyctl",
                     "uselib", "userfaultfd", "ptrace")
        if name in NUMBERS
    }  # fmt: skip
    allowed = [n for n in range(462) if n not in denied and n != NUMBERS["personality"]]
    head = statement(_LOAD, 4) + statement(_EQUAL, MACHINE, 1, 0) + statement(_RETURN, KILL_PROCESS)
    head += statement(_LOAD, 0) + statement(_AT_LEAST, 0x40000000, 0, 1)
    head += statement(_RETURN, ERRNO | 38)
    head += statement(_EQUAL, NUMBERS["personality"], 0, 4)
    head += statement(_LOAD, 16) + statement(_EQUAL, 0, 0, 1) + statement(_RETURN, ALLOW)
    head += statement(_RETURN, EPERM)
    return head + _tree(_runs(allowed))


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    # (first number, action) where it changes
    runs: list[tuple[int, int]] = []
    known = set(numbers)
    for number in range(max(numbers) + 2):
        action = ALLOW if number in known else EPERM
        if not runs or runs[-1][1] != action:
            runs.append((number, action))
    return runs


def _tree(runs: Sequence[tuple[int, int]]) -> bytes:
    if len(runs) == 1:
        return statement(_RETURN, runs[0][1])
    middle = len(runs) // 2
    left, right = _tree(runs[:middle]), _tree(runs[middle:])
    # A jump is no longer than 255: over a constant jump where it would be.
    over = len(left) // 8
    return statement(_AT_LEAST, runs[middle][0], 0, 1) + statement(0x05, over) + left + right
