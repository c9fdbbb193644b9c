"""Build ids and cgroups of real processes, and of files that are none."""

from __future__ import annotations

import os
import subprocess

import pytest

from uftrace_agent.process import executable
from uftrace_agent.process.listing import describe
from uftrace_agent.symbols.byte_source import FileSource
from uftrace_agent.symbols.elf import ElfFile


def test_the_build_id_is_that_of_the_file():
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        source = FileSource.open("/bin/cat")
        expected = ElfFile(source).build_id
        source.close()
        description = describe(process.pid)
        assert len(expected) == 40
        assert description.build_id == expected
        # And from memory.
        assert executable.build_id(f"/proc/{process.pid}") == expected
        process.kill()


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF" + b"\xff" * 60])
def test_files_without_a_build_id(tmp_path, content):
    (tmp_path / "exe").write_bytes(content)
    assert executable.build_id(str(tmp_path)) == ""


def test_a_file_that_is_not_there(tmp_path):
    assert executable.build_id(str(tmp_path)) == ""


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ("0::/system.slice/web.service\n", "/system.slice/web.service"),
        ("12:cpu,cpuacct:/x\n1:name=systemd:/a/b:c\n0::/u\n", "/u"),
        ("12:cpu,cpuacct:/x\n1:name=systemd:/a/b:c\n", "/a/b:c"),
        ("12:cpu,cpuacct:/x\n", "/x"),
        ("0::/gone.scope (deleted)\n", "/gone.scope"),
        ("", ""),
    ],
)
def test_cgroups(tmp_path, content, path):
    (tmp_path / "cgroup").write_text(content)
    assert executable.cgroup(str(tmp_path)) == path


def test_the_cgroup_of_this_process():
    own = describe(os.getpid())
    assert own.cgroup == executable.cgroup("/proc/self")
