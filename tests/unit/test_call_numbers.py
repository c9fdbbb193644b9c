"""Numbers of system calls, compared with the kernel's own headers, which the compiler brings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import ziglang

from uftrace_agent.process.machine import AARCH64, X86_64, Machine

_HEADERS = Path(ziglang.__file__).parent / "lib" / "libc" / "include"
_NUMBERS = {"x86_64": "x86-linux-any", "aarch64": "aarch64-linux-any"}

_NOT_RESTARTED = {
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "semop",
    "semtimedop",
    "rt_sigtimedwait",
    "io_getevents",
    "io_pgetevents",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "msgsnd",
    "msgrcv",
    "accept",
    "accept4",
}

_ENDLESS = {"wait4", "waitid", "pause"}

BOTH = pytest.mark.parametrize("one", [X86_64, AARCH64], ids=lambda one: one.name)


def numbers_of(one: Machine) -> dict[str, int]:
    """System calls by name, as linux/unistd.h has them."""
    header = _HEADERS / _NUMBERS[one.name] / "asm" / "unistd_64.h"
    found = re.findall(r"^#define __NR_(\w+)\s+(\d+)", header.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


@BOTH
def test_the_calls_made_for_the_agent_are_the_kernels(one: Machine) -> None:
    calls = dataclasses.asdict(one.calls)
    del calls["audit"]
    known = numbers_of(one)
    assert calls == {name: known[name] for name in calls}


@BOTH
def test_the_calls_that_threads_wait_in_are_the_kernels(one: Machine) -> None:
    names = {number: name for name, number in numbers_of(one).items()}
    there = set(names.values())
    waits = one.waits
    assert (names[waits.futex], names[waits.read]) == ("futex", "read")
    assert {names[number] for number in waits.endless} == _ENDLESS & there
    not_restarted = {names[number] for number in waits.not_restarted}
    assert not_restarted - {"sendto", "sendmsg"} == _NOT_RESTARTED & there
