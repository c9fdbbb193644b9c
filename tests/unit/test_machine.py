"""What is known of each machine, compared with the kernel's own headers and with files."""

from __future__ import annotations

import dataclasses
import platform
import re
from pathlib import Path

import pytest
import ziglang

from uftrace_agent.errors import UnsupportedTargetError
from uftrace_agent.process import machine
from uftrace_agent.process.machine import AARCH64, X86_64, Machine, native_machine
from uftrace_agent.runtime.layout import define
from uftrace_agent.session.attaching import check_machine

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


def test_the_architectures_are_those_of_seccomp() -> None:
    """linux/audit.h: the ELF machine, 64 bits, little endian."""
    assert X86_64.calls.audit == 62 | 0xC0000000
    assert AARCH64.calls.audit == 183 | 0xC0000000


def test_probes_count_from_where_the_runtime_does() -> None:
    assert X86_64.tid.bias == 0
    assert AARCH64.tid.bias == define("A64_TID_BIAS")
    assert AARCH64.tid.start + AARCH64.tid.bias >= 0


def test_this_machine_is_known() -> None:
    assert native_machine().name == platform.machine()


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    native_machine.cache_clear()
    try:
        with pytest.raises(UnsupportedTargetError) as caught:
            native_machine()
        assert caught.value.reason == "ARCHITECTURE_UNSUPPORTED"
    finally:
        native_machine.cache_clear()


def test_pages_of_another_size_are_refused() -> None:
    for size in (16384, 65536):
        with pytest.raises(UnsupportedTargetError) as caught:
            check_machine(native_machine().hwcap2, size)
        assert caught.value.reason == "PAGE_SIZE_UNSUPPORTED" and caught.value.hint
    check_machine(native_machine().hwcap2, 4096)
