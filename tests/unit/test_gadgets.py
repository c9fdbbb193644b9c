"""Code that injected calls go through, found in real processes."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
from collections.abc import Iterator

import pytest

from uftrace_agent.errors import EngineFaultError
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.gadgets import Gadgets, find_gadgets
from uftrace_agent.process.machine import AARCH64, CallCode, native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.threads import ThreadState

# No program has these by chance.
_MARK = bytes.fromhex("0bad1dea5ca1ab1e")
_BACK = bytes.fromhex("feedc0de0ddba115")
_CODE = CallCode(_MARK, (_BACK,), b"", alignment=4, in_vdso=True, behind=4)


@pytest.fixture
def memory() -> Iterator[ProcessMemory]:
    """That of this process."""
    with ProcessMemory(os.getpid()) as own:
        yield own


@pytest.fixture
def page(tmp_path) -> Iterator[int]:
    """The address of a page of a file's code in this process."""
    path = tmp_path / "code"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        with mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, access) as mapped:
            anchor = ctypes.c_char.from_buffer(mapped)
            address = ctypes.addressof(anchor)
            del anchor
            yield address


def put(at: int, data: bytes) -> None:
    ctypes.memmove(at, data, len(data))


def test_those_of_this_machine_are_found(memory: ProcessMemory) -> None:
    code = native_machine().code
    found = find_gadgets(memory, code)
    by_place = {(one.start, one.end): one for one in read_mappings(memory.pid)}
    for at in found.calls:
        assert memory.read(at, len(code.gadget)) == code.gadget
        assert any(s <= at < e and one.is_executable for (s, e), one in by_place.items())
    if found.restorer:
        assert memory.read(found.restorer, 16).startswith(code.restorers)


def test_all_that_are_aligned_are_found(memory: ProcessMemory, page: int) -> None:
    put(page + 64, _MARK)
    put(page + 81, _MARK)
    put(page + 128, _MARK)
    put(page + 201, _BACK)
    put(page + 256, _BACK)
    assert find_gadgets(memory, _CODE) == Gadgets((page + 64, page + 128), page + 256, 0, 4)


def test_where_waiting_does_not_matter_one_is_enough(memory: ProcessMemory, page: int) -> None:
    put(page + 64, _MARK)
    put(page + 128, _MARK)
    put(page + 256, _BACK)
    found = find_gadgets(memory, dataclasses.replace(_CODE, behind=0))
    assert found.calls == (page + 64,)


def test_a_program_without_any_is_refused(memory: ProcessMemory, page: int) -> None:
    put(page + 64, _MARK)  # and no way back
    with pytest.raises(EngineFaultError) as caught:
        find_gadgets(memory, _CODE)
    assert caught.value.reason == "NO_SYSCALL_GADGET"


def test_the_kernels_own_code_comes_first(memory: ProcessMemory) -> None:
    """Which has no inode: any two instructions of it that programs have, too."""
    vdso = next(one for one in read_mappings(memory.pid) if one.name == "[vdso]")
    code = dataclasses.replace(_CODE, gadget=b"\xc3", restorers=(b"\xc3",), alignment=1)
    found = find_gadgets(memory, code)
    assert vdso.start <= found.calls[0] < vdso.end
    assert vdso.start <= found.restorer < vdso.end
    without = find_gadgets(memory, dataclasses.replace(code, in_vdso=False))
    assert not any(vdso.start <= at < vdso.end for at in without.calls)


def test_none_is_taken_that_a_thread_waits_in() -> None:
    found = Gadgets((0x1000, 0x2000), 0x3000, 0, AARCH64.code.behind)
    running = ThreadState(1, "R")
    waiting = ThreadState(2, "S", call=98, pc=0x1004)
    other = ThreadState(3, "S", call=98, pc=0x2004)
    assert found.unused([running]) == 0x1000
    assert found.unused([running, waiting]) == 0x2000
    assert found.unused([waiting, other]) == 0
    assert Gadgets((0x1000,), 0, 0, 0).unused([waiting]) == 0x1000
