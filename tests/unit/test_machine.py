"""What is known of each machine, and which machines are refused."""

from __future__ import annotations

import platform

import pytest

from uftrace_agent.errors import UnsupportedTargetError
from uftrace_agent.process import machine
from uftrace_agent.process.machine import AARCH64, X86_64, native_machine
from uftrace_agent.runtime.layout import define
from uftrace_agent.session.attaching import check_machine


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
