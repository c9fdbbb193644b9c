"""The word beside the thread pointer that is a thread's id."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.target_process import TargetProcess
from tests.targets.build import build
from uftrace_agent.process.machine import AARCH64, X86_64, native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.tid_word import NOWHERE, find_tid_offset, tid_places, told

_TID = 0x7654321


@pytest.fixture
def memory() -> Iterator[ProcessMemory]:
    """That of this process."""
    with ProcessMemory(os.getpid()) as own:
        yield own


@pytest.fixture
def block() -> Iterator[int]:
    """Two pages with nothing mapped before them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    base = libc.mmap(None, 3 * 4096, 3, 0x22, -1, 0)
    libc.munmap(base, 4096)
    yield base + 4096
    libc.munmap(base + 4096, 2 * 4096)


def put(at: int, data: bytes) -> None:
    ctypes.memmove(at, data, len(data))


def test_below_the_thread_pointer(memory: ProcessMemory, block: int) -> None:
    """As on AArch64, where struct pthread ends there."""
    pointer = block + 0x1800
    put(pointer - 0x620, struct.pack("<I", _TID))
    put(pointer - 0x1004, struct.pack("<I", _TID))  # too far away
    put(pointer, struct.pack("<I", _TID))
    places = tid_places(memory, AARCH64.tid, pointer, _TID)
    assert places == {-0x620}
    assert told(AARCH64.tid, places) == 0x10000 - 0x620


@pytest.mark.parametrize("size", [0x7F0, 0x1000])
def test_a_block_that_begins_where_its_mapping_does(
    memory: ProcessMemory, block: int, size: int
) -> None:
    put(block + 0xD0, struct.pack("<I", _TID))
    assert tid_places(memory, AARCH64.tid, block + size, _TID) == {0xD0 - size}


def test_above_the_thread_pointer(memory: ProcessMemory, block: int) -> None:
    """As on x86-64, where it points to itself."""
    put(block + 0x2D0, struct.pack("<I", _TID))
    assert tid_places(memory, X86_64.tid, block, _TID) == set()
    put(block, struct.pack("<Q", block))
    assert tid_places(memory, X86_64.tid, block, _TID) == {0x2D0}
    assert told(X86_64.tid, {0x2D0}) == 0x2D0


def test_a_thread_without_a_thread_pointer(memory: ProcessMemory) -> None:
    for search in (X86_64.tid, AARCH64.tid):
        assert tid_places(memory, search, 0, _TID) == set()
        assert told(search, set()) == NOWHERE


def test_the_place_that_is_known_comes_first_and_then_the_nearest() -> None:
    assert told(X86_64.tid, {0x10, 0x30, 0x2D0}) == 0x2D0
    assert told(X86_64.tid, {0x10, 0x30}) == 0x30
    assert told(X86_64.tid, {0x10, 0x40}) == 0x10
    assert told(AARCH64.tid, {-0x900, -0x620}) == 0x10000 - 0x620


@pytest.mark.parametrize("target", ["busy8"])
def test_in_a_process(target: str) -> None:
    with TargetProcess(build(target)) as process, ProcessMemory(process.pid) as memory:
        search = native_machine().tid
        found = find_tid_offset(memory)
        assert search.start <= found - search.bias < search.end
        process.quit()


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        with ProcessMemory(process.pid) as memory:
            process.kill()
            process.wait()
            assert tid_places(memory, X86_64.tid, 0x1000, _TID) == set()
