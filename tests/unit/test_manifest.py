"""The journal of sites, written to and read from real memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from uftrace_agent.engine.lease_record import LeaseRecord
from uftrace_agent.engine.manifest import (
    CAPACITY,
    MANIFEST_BYTES,
    Entry,
    Identity,
    Manifest,
    Phase,
    SessionRecord,
    find_manifests,
)
from uftrace_agent.engine.model import Form
from uftrace_agent.engine.site import Patch
from uftrace_agent.errors import ExhaustedError
from uftrace_agent.process.address_space import Mapping
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.runtime.layout import MANIFEST_HEADER_BYTES, SITE_BYTES

IDENTITY = Identity(4711, 99, "01234567-89ab-cdef-0123-456789abcdef", 12, 34, 0x7F0000000000)
PUN = Entry(
    Phase.PATCHED, Form.PUN, 5, Patch(0x401000, b"\x55\x48", b"\xe9\x48"), None, landing=0x700000
)
HOP = Entry(
    Phase.RESTORING,
    Form.HOP,
    6,
    Patch(0x402000, b"\x31\xc0", b"\xeb\x10"),
    Patch(0x402012, b"\x90" * 5, b"\xe9\x01\x02\x03\x04"),
)


class Place:
    """Private memory of this process, seen as another process's."""

    def __init__(self) -> None:
        self.memory = ProcessMemory(os.getpid())
        self._map = mmap.mmap(-1, MANIFEST_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(anchor)
        del anchor
        self.mapping = Mapping(
            self.address, self.address + MANIFEST_BYTES, "rw-p", 0, "00:00", 0, ""
        )

    def damage(self, offset: int) -> None:
        self._map[offset] ^= 0x40

    def close(self) -> None:
        self._map.close()
        self.memory.close()


@pytest.fixture
def place() -> Iterator[Place]:
    opened = Place()
    yield opened
    opened.close()


@pytest.fixture
def manifest(place: Place) -> Manifest:
    made = Manifest(place.memory, place.address, IDENTITY)
    made.create()
    return made


@pytest.mark.parametrize("entry", [PUN, HOP])
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    packed = entry.pack()
    assert len(packed) == SITE_BYTES
    assert Entry.unpack(packed) == entry


def test_the_largest_entry_fits() -> None:
    head = Patch((1 << 64) - 1, bytes(range(16)), bytes(range(16, 32)))
    tail = Patch((1 << 64) - 9, bytes(8), b"\xff" * 8)
    entry = Entry(Phase.PATCHING, Form.WORD, (1 << 24) - 1, head, tail, (1 << 64) - 1)
    assert Entry.unpack(entry.pack()) == entry


@pytest.mark.parametrize("offset", range(1, 85, 7))
def test_a_torn_entry_is_none(offset: int) -> None:
    packed = bytearray(PUN.pack())
    packed[offset] ^= 1
    assert Entry.unpack(bytes(packed)) is None


def test_a_place_that_was_never_used_is_no_entry() -> None:
    assert Entry.unpack(bytes(SITE_BYTES)) is None


def test_a_journal_is_found(place: Place, manifest: Manifest) -> None:
    first = manifest.reserve(2)
    manifest.write([(first, PUN), (first + 1, HOP)])
    (found,) = find_manifests(place.memory, [place.mapping])
    assert found.address == place.address
    assert found.identity == IDENTITY
    assert found.entries == (PUN, HOP)


@pytest.mark.parametrize(
    "change", [{"flags": "r--p"}, {"flags": "rw-s"}, {"inode": 5}, {"flags": "r-xp"}]
)
def test_only_private_writable_memory_can_be_a_journal(
    place: Place, manifest: Manifest, change: dict[str, object]
) -> None:
    other = replace(place.mapping, **change)  # type: ignore[arg-type]
    assert find_manifests(place.memory, [other]) == []


def test_memory_that_is_none_is_passed_over(place: Place) -> None:
    assert find_manifests(place.memory, [place.mapping]) == []
    unmapped = replace(place.mapping, start=0x1000, end=0x2000)
    assert find_manifests(place.memory, [unmapped]) == []


def test_entries_may_be_written_in_any_order(place: Place, manifest: Manifest) -> None:
    manifest.reserve(6)
    entries = [replace(PUN, function_id=index + 1) for index in range(6)]
    manifest.write([(index, entries[index]) for index in (4, 5, 0, 1, 3, 2)])
    (found,) = find_manifests(place.memory, [place.mapping])
    assert list(found.entries) == entries


def test_an_entry_is_written_over(place: Place, manifest: Manifest) -> None:
    manifest.reserve(1)
    manifest.write([(0, PUN)])
    manifest.write([(0, replace(PUN, phase=Phase.FREE))])
    (found,) = find_manifests(place.memory, [place.mapping])
    assert [entry.phase for entry in found.entries] == [Phase.FREE]


def test_what_was_not_reserved_is_not_read(place: Place, manifest: Manifest) -> None:
    manifest.reserve(1)
    manifest.write([(0, PUN), (1, HOP)])
    (found,) = find_manifests(place.memory, [place.mapping])
    assert found.entries == (PUN,)


def test_a_torn_header_hides_no_entry(place: Place, manifest: Manifest) -> None:
    # The count may be off: all places are looked at.
    manifest.reserve(1)
    manifest.write([(0, PUN), (1, HOP)])
    place.damage(60)
    (found,) = find_manifests(place.memory, [place.mapping])
    assert found.entries == (PUN, HOP)


def test_a_torn_entry_hides_no_other(place: Place, manifest: Manifest) -> None:
    manifest.reserve(3)
    manifest.write([(0, PUN), (1, PUN), (2, HOP)])
    place.damage(MANIFEST_HEADER_BYTES + SITE_BYTES + 20)
    (found,) = find_manifests(place.memory, [place.mapping])
    assert found.entries == (PUN, HOP)


def test_a_journal_of_another_version_is_left_alone(place: Place, manifest: Manifest) -> None:
    place.damage(8)
    assert find_manifests(place.memory, [place.mapping]) == []


def test_a_full_journal_says_so(manifest: Manifest) -> None:
    assert manifest.reserve(CAPACITY - 1) == 0
    assert manifest.reserve(1) == CAPACITY - 1
    with pytest.raises(ExhaustedError, match="full"):
        manifest.reserve(1)


def test_who_holds_the_process_is_told(place: Place, manifest: Manifest) -> None:
    def holder() -> int:
        (found,) = find_manifests(place.memory, [place.mapping])
        return found.identity.agent_pid

    assert holder() == 12
    manifest.release()
    assert holder() == 0
    manifest.hold()
    assert holder() == 12


def test_a_disowned_journal_holds_no_site(place: Place, manifest: Manifest) -> None:
    manifest.reserve(2)
    manifest.write([(0, PUN), (1, HOP)])
    (before,) = find_manifests(place.memory, [place.mapping])
    assert before.rows == (0, 1)
    manifest.disown(before)
    (found,) = find_manifests(place.memory, [place.mapping])
    assert {entry.phase for entry in found.entries} == {Phase.FREE}
    assert found.identity.agent_pid == 0


def test_what_became_of_entries_is_said_by_their_phase_alone(
    place: Place, manifest: Manifest
) -> None:
    manifest.reserve(6)
    entries = [replace(PUN, function_id=index + 1) for index in range(6)]
    manifest.write(list(enumerate(entries)))
    manifest.mark([0, 1, 3, 5], Phase.RESTORING)
    manifest.mark([], Phase.FREE)
    (found,) = find_manifests(place.memory, [place.mapping])
    changed = [replace(entry, phase=Phase.RESTORING) for entry in entries]
    assert list(found.entries) == [*changed[:2], entries[2], changed[3], entries[4], changed[5]]


def test_code_memory_that_its_agent_died_before_mapping_is_none(
    place: Place, manifest: Manifest
) -> None:
    code = Mapping(0x10000, 0x14000, "r-xp", 0, "00:00", 0, "")
    behind = Mapping(0x14000, 0x15000, "r-xp", 0, "00:00", 0, "")
    file = Mapping(0x20000, 0x24000, "r-xp", 0, "08:01", 7, "/bin/cat")
    manifest.reserve(5)
    places = [(0x10000, 0x4000), (0x13000, 0x2000), (0x14000, 0x2000), (0x20000, 0x1000), (0, 1)]
    manifest.write([(row, Entry.of_memory(*one)) for row, one in enumerate(places)])
    (found,) = find_manifests(place.memory, [place.mapping, code, behind, file])
    assert found.rows == (0, 1)
    assert found.row_count == 5


def test_a_journal_that_is_taken_over_says_nothing_of_what_is_not_there(
    place: Place, manifest: Manifest
) -> None:
    # GIVEN a patched site, a torn entry, and memory that was never mapped
    manifest.reserve(3)
    manifest.write([(0, Entry.of_memory(0x10000, 0x1000)), (1, PUN), (2, HOP)])
    place.damage(MANIFEST_HEADER_BYTES + SITE_BYTES + 20)
    (found,) = find_manifests(place.memory, [place.mapping])
    # WHEN another agent takes it, and something is mapped at that place
    Manifest.of_found(place.memory, found, replace(IDENTITY, agent_pid=13))
    code = Mapping(0x10000, 0x14000, "r-xp", 0, "00:00", 0, "")
    (after,) = find_manifests(place.memory, [place.mapping, code])
    # THEN that is not taken for the memory meant before
    assert (after.entries, after.rows, after.identity.agent_pid) == ((HOP,), (2,), 13)


def test_a_journal_without_patched_sites_keeps_their_places(
    place: Place, manifest: Manifest
) -> None:
    manifest.reserve(2)
    manifest.write([(0, replace(PUN, phase=Phase.FREE)), (1, replace(HOP, phase=Phase.FREE))])
    (found,) = find_manifests(place.memory, [place.mapping])
    taken = Manifest.of_found(place.memory, found, IDENTITY)
    assert taken.keeps(found)
    assert taken.reserve(1) == 2


def test_a_journal_without_patched_sites_that_is_half_full_keeps_its_memory_alone(
    place: Place, manifest: Manifest
) -> None:
    code = Mapping(0x10000, 0x14000, "r-xp", 0, "00:00", 0, "")
    free = replace(PUN, phase=Phase.FREE, landing=0x13008)
    last = manifest.reserve(CAPACITY // 2 + 1) + CAPACITY // 2
    manifest.write(
        [(0, free), (1, replace(HOP, phase=Phase.FREE)), (last, Entry.of_memory(0x11000, 0x1000))]
    )
    (found,) = find_manifests(place.memory, [place.mapping, code])
    taken = Manifest.of_found(place.memory, found, IDENTITY)
    assert not taken.keeps(found)
    assert taken.reserve(1) == 2
    (after,) = find_manifests(place.memory, [place.mapping, code])
    assert [entry.memory() for entry in after.entries] == [(0x11000, 0x1000), (0x13008, 1)]
    assert after.row_count == 2


@pytest.mark.parametrize(
    ("session", "is_one"),
    [
        (SessionRecord("0123456789ab", "ann", 3, 4, 5, 6), True),
        (SessionRecord("../../../etc", "ann", 3, 4, 5, 6), False),
        (SessionRecord("0123456789abcdef", "ann", 3, 4, 5, 6), False),
        (SessionRecord("0123456789ab", "ann", 1 << 31, 4, 5, 6), False),
    ],
)
def test_h88_a_session_that_no_agent_wrote_is_none(
    place: Place, manifest: Manifest, session: SessionRecord, is_one: bool
) -> None:
    manifest.begin_session(session)
    (found,) = find_manifests(place.memory, [place.mapping])
    assert found.session == (session if is_one else SessionRecord())


def test_the_session_of_a_torn_header_is_none(place: Place, manifest: Manifest) -> None:
    manifest.begin_session(SessionRecord("0123456789ab", "ann"))
    place.damage(80)
    (found,) = find_manifests(place.memory, [place.mapping])
    assert found.session == SessionRecord()


def test_leases_are_found_again(place: Place, manifest: Manifest) -> None:
    manifest.reserve(3)
    manifest.write([(0, replace(PUN, leases=1 << 31)), (1, PUN), (2, HOP)])
    manifest.write_leases([(2, LeaseRecord("live-1", 77)), (31, LeaseRecord("other", 99))])
    manifest.set_leases([0, 2], 6)
    (found,) = find_manifests(place.memory, [place.mapping])
    assert [entry.leases for entry in found.entries] == [6, 0, 6]
    assert [replace(entry, leases=0) for entry in found.entries] == [PUN, PUN, HOP]
    assert found.leases == ((2, LeaseRecord("live-1", 77)), (31, LeaseRecord("other", 99)))
    manifest.write_leases([])
    (found,) = find_manifests(place.memory, [place.mapping])
    assert found.leases == ()
