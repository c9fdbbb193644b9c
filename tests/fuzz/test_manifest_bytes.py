"""Damaged journals: what an earlier agent left may be torn, and the process may write there."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from uftrace_agent.engine.manifest import (
    Entry,
    FoundManifest,
    Identity,
    Manifest,
    Phase,
    find_manifests,
)
from uftrace_agent.engine.model import Form
from uftrace_agent.engine.site import Patch
from uftrace_agent.process.address_space import Mapping
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.runtime.layout import MANIFEST_HEADER_BYTES, SITE_BYTES

ENTRIES = 8
SIZE = MANIFEST_HEADER_BYTES + ENTRIES * SITE_BYTES
ROUNDS = 3000


class Journal:
    """A journal in this very process, read as in any other."""

    def __init__(self, memory: ProcessMemory) -> None:
        self._memory = memory
        self._map = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(anchor)
        del anchor

    def write(self, data: bytes) -> None:
        self._map[:] = data.ljust(SIZE, b"\0")[:SIZE]

    def read(self) -> bytes:
        return self._map[:]

    def found(self) -> list[FoundManifest]:
        end = self.address + SIZE
        return find_manifests(self._memory, [Mapping(self.address, end, "rw-p", 0, "00:00", 0, "")])

    def close(self) -> None:
        self._map.close()


@pytest.fixture
def journal() -> Iterator[Journal]:
    with ProcessMemory(os.getpid()) as memory:
        opened = Journal(memory)
        identity = Identity(os.getpid(), 12345, "c0ffee00-0000-4000-8000-00000000beef", 1, 2)
        manifest = Manifest(memory, opened.address, identity)
        manifest.create()
        manifest.reserve(ENTRIES)
        manifest.write([(index, entry(index)) for index in range(ENTRIES)])
        yield opened
        opened.close()


def entry(index: int) -> Entry:
    head = Patch(0x401000 + 16 * index, b"\x55\x48\x89\xe5\x13", b"\xe9\x48\x89\xe5\x13")
    tail = Patch(0x402000, b"\x90" * 5, b"\xe9\1\2\3\4") if index % 2 else None
    form = Form.HOP if tail else Form.PUN
    return Entry(Phase.PATCHED, form, index + 1, head, tail, 0x500000 + index)


def test_an_undamaged_journal_is_read_back(journal: Journal) -> None:
    (found,) = journal.found()
    assert found.entries == tuple(entry(index) for index in range(ENTRIES))
    assert found.identity.pid == os.getpid()


@pytest.mark.parametrize("seed", range(3))
def test_damage_hides_entries_and_never_changes_one(journal: Journal, seed: int) -> None:
    rng = random.Random(seed)
    good = journal.read()
    originals = {entry(index) for index in range(ENTRIES)}
    for _ in range(ROUNDS):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            at = rng.choice((rng.randrange(128), rng.randrange(len(data))))
            data[at] ^= 1 << rng.randrange(8)
        journal.write(bytes(data))
        for found in journal.found():
            # An entry that passes its check sum is one that was written, but for the
            # phase and the leases: each is written whole or not at all.
            whole = {replace(one, phase=Phase.PATCHED, leases=0) for one in found.entries}
            assert whole <= originals


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_are_no_error(journal: Journal, seed: int) -> None:
    rng = random.Random(seed)
    magic = journal.read()[:12]
    for _ in range(ROUNDS):
        journal.write(magic + rng.randbytes(SIZE - len(magic)))
        for found in journal.found():
            assert not found.entries


@pytest.mark.parametrize("length", [0, 1, 64, 100, SITE_BYTES - 1])
def test_a_cut_off_journal_is_no_error(journal: Journal, length: int) -> None:
    journal.write(journal.read()[:length])
    assert all(not found.entries for found in journal.found())


def test_an_entry_of_a_later_version_is_passed_over() -> None:
    # A right check sum over a form that this version does not know.
    packed = bytearray(entry(0).pack())
    for position, value in ((0, 77), (1, 99)):
        forged = bytearray(packed)
        forged[position] = value
        assert Entry.unpack(checked(forged)) is None


def checked(packed: bytearray) -> bytes:
    # The check sum is the last thing in an entry that is not zero.
    end = len(bytes(packed).rstrip(b"\0"))
    start = next(at for at in range(end - 4, end) if is_checked(entry(0).pack(), at))
    struct.pack_into("<I", packed, start, zlib.crc32(packed[1:start]))
    return bytes(packed)


def is_checked(packed: bytes, at: int) -> bool:
    return packed[at : at + 4] == struct.pack("<I", zlib.crc32(packed[1:at]))
