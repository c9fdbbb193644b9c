"""Code of another machine in a process: as data, for an emulator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.symbols_support import ElfWriter
from uftrace_agent.engine.program import Program
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.symbols.cache import ImageCache

_MAPS_ITS_ARGUMENT = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    access = mmap.PROT_READ | mmap.PROT_EXEC
    code = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, access, offset=0x1000)
print(flush=True)
sys.stdin.read()
"""
_MACHINES = {"x86_64": 62, "aarch64": 183}


@pytest.mark.parametrize("machine", _MACHINES)
def test_only_code_of_this_machine_is_patched(tmp_path: Path, machine: str) -> None:
    library = tmp_path / "mapped.so"
    symbols = [("function", 0x1000, 8, 2, 1)]
    library.write_bytes(ElfWriter(symbols=symbols, machine=_MACHINES[machine]).build())
    command = [sys.executable, "-c", _MAPS_ITS_ARGUMENT, library]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None and process.stdout.readline()
        with ProcessMemory(process.pid) as memory:
            program = Program(memory, ImageCache())
            program.refresh()
        process.kill()
    names = {view.name for view in program.modules}
    assert (library.name in names) == (machine == native_machine().name)
    foreign = [f"{library}: code of another machine"]
    assert program.unreadable == ([] if machine == native_machine().name else foreign)
