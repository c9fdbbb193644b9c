"""Whether the processor checks returns of a process."""

from __future__ import annotations

import os

from uftrace_agent.process import shadow_stack
from uftrace_agent.process.machine import AARCH64, native_machine
from uftrace_agent.process.shadow_stack import has_shadow_mapping, has_shadow_stack

_SMAPS = """\
7ffff7e00000-7ffff7f00000 r-xp 00000000 fe:00 1 /lib/libss ss.so
Size:               1024 kB
VmFlags: rd ex mr mw me sd
ffff7fe00000-ffff7ff00000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me{flag}
"""


def test_this_process_has_none() -> None:
    assert not has_shadow_stack(os.getpid(), native_machine())
    assert not has_shadow_mapping(os.getpid())


def test_what_a_mapping_says(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shadow_stack, "proc_directory", lambda pid: str(tmp_path))
    assert not has_shadow_mapping(1)
    (tmp_path / "smaps").write_text(_SMAPS.format(flag=""))
    assert not has_shadow_mapping(1)
    (tmp_path / "smaps").write_text(_SMAPS.format(flag=" ss"))
    assert has_shadow_mapping(1)


def test_mappings_are_looked_at_only_where_there_may_be_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shadow_stack, "proc_directory", lambda pid: str(tmp_path))
    (tmp_path / "smaps").write_text(_SMAPS.format(flag=" ss"))
    for hwcap in (0, 1 << 31, 1 << 32):
        monkeypatch.setattr(shadow_stack, "hardware", lambda kind, hwcap=hwcap: hwcap)
        assert has_shadow_stack(1, AARCH64) == (hwcap == 1 << 32)
