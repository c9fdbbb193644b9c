"""Where the engine may map memory: /proc/PID/maps, and the free space between."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uftrace_agent.errors import TargetGoneError
from uftrace_agent.process.address_space import (
    HEAP_ROOM,
    PAGE,
    SMALLER_HEAP_ROOMS,
    FreeSpace,
    Mapping,
    address_limit,
    read_mappings,
)
from uftrace_agent.process.machine import native_machine

MIB = 1 << 20


def mapping(start: int, size: int, flags: str = "r-xp", name: str = "/x") -> Mapping:
    return Mapping(start, start + size, flags, 0, "fe:00", 1, name)


def test_the_maps_of_a_process_are_read() -> None:
    found = read_mappings(os.getpid())
    assert [one.start for one in found] == sorted(one.start for one in found)
    by_name = {one.name: one for one in found}
    assert "w" in by_name["[stack]"].flags
    library = next(one for one in found if one.is_executable and one.name.startswith("/"))
    assert library.inode == Path(library.name).stat().st_ino
    assert not library.is_shared


def test_a_shared_mapping_is_told(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as shared:
        anchor = ctypes.c_char.from_buffer(shared)
        address = ctypes.addressof(anchor)
        del anchor
        found = next(one for one in read_mappings(os.getpid()) if one.start == address)
    assert found.is_shared and found.name == str(path)


@pytest.mark.parametrize(
    "name", ["plain", "with space", "a\x0cb", "a\x85b", "a\u2028b", "é", "\udcff"]
)
def test_names_of_files_may_be_anything(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(PAGE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), PAGE, prot=mmap.PROT_READ):
        assert str(path) in {one.name for one in read_mappings(os.getpid())}


def test_a_process_that_is_gone_says_so() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(TargetGoneError):
        read_mappings(process.pid)


def test_a_zombie_has_no_memory() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(TargetGoneError, match="ended"):
            read_mappings(process.pid)


def test_what_is_mapped_is_not_free() -> None:
    free = FreeSpace([mapping(0x400000, 0x10000)])
    assert free.is_free(0x3FF000, 0x400000)
    assert free.is_free(0x410000, 0x411000)
    assert not free.is_free(0x3FF000, 0x400001)
    assert not free.is_free(0x40F000, 0x410000)
    assert not free.is_free(0x300000, 0x500000)


@pytest.mark.parametrize("room", [HEAP_ROOM, *SMALLER_HEAP_ROOMS])
def test_h81_the_heap_may_grow(room: int) -> None:
    free = FreeSpace([mapping(0x1000_0000, MIB, "rw-p", "[heap]")], room)
    end = 0x1000_0000 + MIB + room
    assert not free.is_free(end - PAGE, end)
    assert free.is_free(end, end + PAGE)


def test_h81_the_stack_may_grow() -> None:
    free = FreeSpace([mapping(0x7FFF_0000_0000, MIB, "rw-p", "[stack]")])
    assert not free.is_free(0x7FFF_0000_0000 - 255 * MIB, 0x7FFF_0000_0000 - 254 * MIB)
    assert free.is_free(0x7FFF_0000_0000 - 257 * MIB, 0x7FFF_0000_0000 - 256 * MIB)


def test_neither_page_zero_nor_the_kernels_half_is_free() -> None:
    free = FreeSpace([])
    assert not free.is_free(0, PAGE)
    limit = 1 << native_machine().address_bits[-1]
    assert not free.is_free(limit - PAGE, limit)
    assert free.find(PAGE, 0, 0x10000, near=0) is None


def test_the_nearest_place_is_found() -> None:
    free = FreeSpace([mapping(0x400000, 0x100000)])
    assert free.find(PAGE, 0x300000, 0x600000, near=0x3F0000) == 0x3F0000
    assert free.find(2 * PAGE, 0x300000, 0x600000, near=0x410000) == 0x3FE000
    assert free.find(PAGE, 0x300000, 0x600000, near=0x4F0000) == 0x500000
    assert free.find(PAGE, 0x400000, 0x500000, near=0x410000) is None
    assert free.find(0x200000, 0x300000, 0x600000, near=0x300000) is None


RANGES = st.lists(
    st.tuples(st.integers(0x10, 0x400), st.integers(1, 40)).map(
        lambda pair: (pair[0] * PAGE, (pair[0] + pair[1]) * PAGE)
    ),
    max_size=20,
)


@given(RANGES, RANGES, st.integers(1, 20), st.integers(0, 0x500), st.integers(1, 0x200))
def test_free_space_agrees_with_a_list_of_pages(
    mapped: list[tuple[int, int]],
    taken: list[tuple[int, int]],
    pages: int,
    low: int,
    span: int,
) -> None:
    free = FreeSpace([mapping(start, end - start) for start, end in mapped])
    for start, end in taken:
        free.take(start, end)
    used = {page for start, end in mapped + taken for page in range(start // PAGE, end // PAGE)}
    used |= set(range(16))

    def is_free(first: int) -> bool:
        return used.isdisjoint(range(first, first + pages))

    for first in range(0x10, 0x440, 7):
        assert free.is_free(first * PAGE, (first + pages) * PAGE) == is_free(first)
    candidates = [page for page in range(low, low + span - pages + 1) if is_free(page)]
    found = free.find(pages * PAGE, low * PAGE, (low + span) * PAGE, near=low * PAGE)
    assert found == (candidates[0] * PAGE if candidates else None)


@pytest.mark.parametrize(
    ("bits", "end", "limit"),
    [
        ((47,), 0x7FFF_FFFF_F000, 1 << 47),
        ((47,), 0x40_0000, 1 << 47),
        ((39, 48), 0x7F_FFFF_F000, 1 << 39),
        ((39, 48), 0xFFFF_FFFF_F000, 1 << 48),
    ],
)
def test_addresses_end_where_the_kernel_was_told(
    bits: tuple[int, ...], end: int, limit: int
) -> None:
    mappings = [mapping(0x1000, PAGE), mapping(end - PAGE, PAGE)]
    kernels = mapping(0xFFFF_FFFF_FF60_0000, PAGE, name="[vsyscall]")
    assert address_limit(mappings, bits) == limit
    assert address_limit([*mappings, kernels], bits) == limit


def test_addresses_of_this_machine() -> None:
    free = FreeSpace(read_mappings(os.getpid()))
    assert free.limit in {1 << bits for bits in native_machine().address_bits}
    assert not free.is_free(free.limit - PAGE, free.limit)
