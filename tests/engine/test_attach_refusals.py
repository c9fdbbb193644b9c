"""Refusals that depend on how a machine was built or booted: the rule, on a real process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.targets.build import build
from uftrace_agent.errors import ForbiddenError, UnsupportedTargetError
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.process.machine import AARCH64, X86_64
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.session import attaching
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache


class GuardedMemory(ProcessMemory):
    """As with proc_mem.force_override=never: what the process may not write, nobody may
    (fs/proc/base.c, mem_rw: no FOLL_FORCE, so EIO)."""

    def write(self, address: int, data: bytes) -> None:
        for mapping in read_mappings(self.pid):
            if mapping.start <= address < mapping.end and "w" not in mapping.flags:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().write(address, data)


def test_h79_a_kernel_that_lets_nobody_write_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attaching, "ProcessMemory", GuardedMemory)
    with TargetProcess(build("busy8")) as target:
        target.pause()
        maps = Path(f"/proc/{target.pid}/maps").read_text()
        files = len(os.listdir(f"/proc/{target.pid}/fd"))
        for _ in range(2):
            with pytest.raises(ForbiddenError) as caught:
                options = RecordingOptions(1 << 16, 8)
                attaching.attach(resolve(ProcessId(target.pid)), options, ImageCache())
            assert caught.value.reason == "MEMORY_WRITE_DENIED" and caught.value.hint
        assert Path(f"/proc/{target.pid}/maps").read_text() == maps
        assert len(os.listdir(f"/proc/{target.pid}/fd")) == files
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.resume()
        target.wait_iterations(10)
        target.quit()


def test_h90_a_machine_whose_programs_may_not_read_their_thread_pointer() -> None:
    for hwcap2 in (0, 1, 0xFFFFFFFD):
        with pytest.raises(UnsupportedTargetError) as caught:
            attaching.check_machine(hwcap2, machine=X86_64)
        assert caught.value.reason == "KERNEL_TOO_OLD" and caught.value.hint
    attaching.check_machine(2, machine=X86_64)
    attaching.check_machine(0, machine=AARCH64)
