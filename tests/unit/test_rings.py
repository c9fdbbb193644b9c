"""Reading rings, filled here byte by byte as a target fills them."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from tests.support.waiting import wait_until
from uftrace_agent.recording.rings import Drained, RingReader
from uftrace_agent.runtime.layout import (
    KIND_ENTRY,
    RECORD_BYTES,
    RING_HEADER_BYTES,
    define,
    id_word,
)

RINGS = 4
RING_BYTES = 8192
SLOTS = RING_BYTES // RECORD_BYTES
DATA = 4096
USED, RETIRED = define("RING_USED"), define("RING_RETIRED")
BUFFER = 1 << 16
KEY = define("KEY_SHIFT")


class Rings:
    """The target's side of the shared file."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("rings")
        os.ftruncate(self.fd, DATA + RINGS * RING_BYTES)
        self._map = mmap.mmap(self.fd, DATA + RINGS * RING_BYTES)
        self.heads = [0] * RINGS

    def reader(self, buffer_bytes: int = BUFFER) -> RingReader:
        return RingReader(self.fd, DATA, RING_BYTES, RINGS, buffer_bytes)

    def own(self, ring: int, tid: int, state: int = USED) -> None:
        self._set(ring, "OWNER", tid | state << 32)

    def lose(self, ring: int, count: int) -> None:
        self._set(ring, "LOST", count)

    def set_bytes(self, ring: int, name: str, data: bytes) -> None:
        at = ring * RING_HEADER_BYTES + define(f"RING_{name}")
        self._map[at : at + len(data)] = data

    def word(self, ring: int, name: str) -> int:
        at = ring * RING_HEADER_BYTES + define(f"RING_{name}")
        return int.from_bytes(self._map[at : at + 8], "little")

    def _set(self, ring: int, name: str, value: int) -> None:
        at = ring * RING_HEADER_BYTES + define(f"RING_{name}")
        self._map[at : at + 8] = value.to_bytes(8, "little")

    def reserve(self, ring: int) -> int:
        position = self.heads[ring]
        self.heads[ring] += RECORD_BYTES
        return position

    def commit(self, ring: int, position: int, ticks: int, word: int) -> None:
        phase = not position & RING_BYTES
        at = DATA + ring * RING_BYTES + position % RING_BYTES
        self._map[at : at + 16] = struct.pack("<QQ", ticks, word | phase)

    def record(self, ring: int, ticks: int) -> None:
        self.commit(ring, self.reserve(ring), ticks, id_word(1, KIND_ENTRY) | 9 << KEY)

    def announce(self, ring: int, tid: int) -> None:
        self.commit(ring, self.reserve(ring), 0, id_word(0, define("KIND_THREAD")) | tid << KEY)

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)


@pytest.fixture
def rings() -> Iterator[Rings]:
    opened = Rings()
    yield opened
    opened.close()


@pytest.fixture
def reader(rings: Rings) -> Iterator[RingReader]:
    opened = rings.reader()
    yield opened
    opened.close()


def ticks(drained: Drained) -> dict[int, list[int]]:
    return {
        tid: [tick for run in runs for tick, _ in struct.iter_unpack("<QQ", run)]
        for tid, runs in drained.threads.items()
    }


def test_empty_rings_give_nothing(reader: RingReader) -> None:
    drained = reader.drain()
    assert (drained.threads, drained.count, drained.more) == ({}, 0, False)
    assert drained.watermark_ticks > 0


def test_records_come_by_thread_in_the_order_written(rings: Rings, reader: RingReader) -> None:
    for ring, tid in ((1, 100), (2, 200)):
        rings.own(ring, tid)
        rings.announce(ring, tid)
        for tick in range(5):
            rings.record(ring, 10 * tid + tick)
    drained = reader.drain()
    assert ticks(drained) == {
        100: [1000, 1001, 1002, 1003, 1004],
        200: [2000, 2001, 2002, 2003, 2004],
    }
    assert (drained.count, drained.more) == (10, False)
    assert reader.drain().count == 0


def test_the_phase_bit_is_taken_off(rings: Rings, reader: RingReader) -> None:
    rings.own(1, 100)
    rings.announce(1, 100)
    rings.record(1, 5)
    ((_, word),) = struct.iter_unpack("<QQ", reader.drain().threads[100][0])
    assert word == id_word(1, KIND_ENTRY) | 9 << KEY


def test_rings_go_round(rings: Rings, reader: RingReader) -> None:
    rings.own(1, 100)
    rings.announce(1, 100)
    wanted = 0
    for _ in range(40):
        for _ in range(77):
            rings.record(1, wanted)
            wanted += 1
        assert ticks(reader.drain())[100] == list(range(wanted - 77, wanted))
        assert rings.word(1, "TAIL") == rings.heads[1]
    assert wanted > 5 * SLOTS


def test_a_full_ring_is_read_whole(rings: Rings, reader: RingReader) -> None:
    rings.own(1, 100)
    rings.announce(1, 100)
    for tick in range(SLOTS - 1):
        rings.record(1, tick)
    assert ticks(reader.drain())[100] == list(range(SLOTS - 1))


def test_h56_a_record_in_the_making_is_waited_for(rings: Rings, reader: RingReader) -> None:
    # GIVEN a probe that a signal handler's probe interrupted
    rings.own(1, 100)
    rings.announce(1, 100)
    rings.record(1, 1)
    open_position = rings.reserve(1)
    rings.record(1, 3)
    # THEN what is behind it comes after it
    assert ticks(reader.drain()) == {100: [1]}
    assert reader.drain().count == 0
    rings.commit(1, open_position, 2, id_word(1, KIND_ENTRY))
    assert ticks(reader.drain()) == {100: [2, 3]}
    assert reader.lost_total() == 0


def test_h56_a_record_that_is_never_made_is_given_up_and_counted(
    rings: Rings, reader: RingReader
) -> None:
    # A signal handler left the probe with longjmp.
    rings.own(1, 100)
    rings.announce(1, 100)
    rings.reserve(1)
    rings.record(1, 2)
    assert reader.drain().count == 0
    found: list[Drained] = []

    def arrived() -> bool:
        found.append(reader.drain())
        return found[-1].count > 0

    wait_until(arrived)
    assert ticks(found[-1]) == {100: [2]}
    assert reader.lost_total() == 1
    assert reader.lost() == (0, {100: 1})


def test_nothing_is_waited_for_once_the_target_is_gone(rings: Rings, reader: RingReader) -> None:
    rings.own(1, 100)
    rings.announce(1, 100)
    rings.reserve(1)
    rings.record(1, 2)
    assert ticks(reader.drain(target_is_gone=True)) == {100: [2]}


def test_a_small_buffer_is_filled_again(rings: Rings) -> None:
    small = rings.reader(buffer_bytes=16 * RECORD_BYTES)
    for ring, tid in ((1, 100), (2, 200), (3, 300)):
        rings.own(ring, tid)
        rings.announce(ring, tid)
        for tick in range(30):
            rings.record(ring, tick)
    found: dict[int, list[int]] = {}
    while True:
        drained = small.drain()
        assert drained.count <= 16
        for tid, some in ticks(drained).items():
            found.setdefault(tid, []).extend(some)
        if not drained.more:
            break
    assert found == {tid: list(range(30)) for tid in (100, 200, 300)}
    small.close()


def test_a_busy_ring_does_not_starve_the_others(rings: Rings) -> None:
    small = rings.reader(buffer_bytes=16 * RECORD_BYTES)
    for ring, tid in ((1, 100), (2, 200)):
        rings.own(ring, tid)
        rings.announce(ring, tid)
    seen: set[int] = set()
    for tick in range(20):
        for ring in (1, 2):
            for _ in range(16):
                rings.record(ring, tick)
        seen |= set(small.drain().threads)
        if seen == {100, 200}:
            break
    assert seen == {100, 200}
    small.close()


def test_the_shared_ring_tells_threads_apart(rings: Rings, reader: RingReader) -> None:
    for tick, tid in enumerate((100, 200, 100, 300, 300)):
        rings.announce(0, tid)
        rings.record(0, tick)
    assert ticks(reader.drain()) == {100: [0, 2], 200: [1], 300: [3, 4]}


def test_a_ring_changes_hands(rings: Rings, reader: RingReader) -> None:
    rings.own(1, 100)
    rings.announce(1, 100)
    rings.record(1, 1)
    assert ticks(reader.drain()) == {100: [1]}
    # WHEN its thread has ended
    assert reader.owners() == {100}
    reader.retire({100})
    assert reader.owners() == set()
    assert rings.word(1, "OWNER") == 100 | RETIRED << 32
    # THEN the next thread goes on in it
    rings.own(1, 200)
    rings.announce(1, 200)
    rings.record(1, 2)
    assert ticks(reader.drain()) == {200: [2]}
    reader.retire({100})
    assert rings.word(1, "OWNER") == 200 | USED << 32


def test_a_ring_with_a_record_behind_an_unfinished_one_is_kept(
    rings: Rings, reader: RingReader
) -> None:
    # GIVEN a thread that ended after a probe that never finished its record
    rings.own(1, 100)
    rings.announce(1, 100)
    rings.reserve(1)
    rings.record(1, 2)
    assert not reader.drain().count
    # THEN nobody gets its ring, and reads what is left there as its own
    reader.retire({100})
    assert rings.word(1, "OWNER") == 100 | USED << 32


def test_a_ring_without_an_owner_is_not_retired(rings: Rings, reader: RingReader) -> None:
    reader.retire({0})
    assert [rings.word(ring, "OWNER") for ring in range(RINGS)] == [0] * RINGS


def test_losses_are_told_by_thread(rings: Rings, reader: RingReader) -> None:
    rings.lose(0, 7)
    for ring, tid, lost in ((1, 100, 5), (2, 200, 0), (3, 100, 6)):
        rings.own(ring, tid)
        rings.lose(ring, lost)
    assert reader.lost() == (7, {100: 11})
    assert reader.lost_total() == 18


def test_losses_of_an_earlier_session_are_not_ours(rings: Rings) -> None:
    rings.own(1, 100)
    rings.lose(1, 1000)
    later = rings.reader()
    assert later.lost_total() == 0
    rings.lose(1, 1003)
    assert later.lost() == (0, {100: 3})
    later.close()


def test_a_later_reader_knows_whose_ring_it_is(rings: Rings) -> None:
    # The announcement was read by the session before.
    first = rings.reader()
    rings.own(1, 100)
    rings.announce(1, 100)
    rings.record(1, 1)
    first.drain()
    first.close()
    second = rings.reader()
    rings.record(1, 2)
    assert ticks(second.drain()) == {100: [2]}
    second.close()


def test_what_is_there_can_be_thrown_away(rings: Rings, reader: RingReader) -> None:
    rings.own(1, 100)
    rings.announce(1, 100)
    for tick in range(50):
        rings.record(1, tick)
    assert reader.discard() == 50
    assert reader.drain().count == 0


def test_closing_leaves_nothing_open(rings: Rings, no_leaks: None) -> None:
    rings.reader().close()


def test_what_a_thread_lost_stays_its_own_when_another_gets_its_ring(
    rings: Rings, reader: RingReader
) -> None:
    # GIVEN a thread that lost records, and ended
    rings.own(1, 100)
    rings.lose(1, 5)
    reader.retire({100})
    # WHEN another one has its ring, and loses some too
    rings.own(1, 200)
    assert reader.lost() == (0, {100: 5})
    rings.lose(1, 7)
    # THEN each has lost its own
    assert reader.lost() == (0, {100: 5, 200: 2})
    assert reader.lost_total() == 7


def test_losses_of_very_many_threads_are_all_counted(rings: Rings, reader: RingReader) -> None:
    for tid in range(1, 1100):
        rings.own(1, tid)
        rings.lose(1, tid)
        reader.lost()
    _, by_thread = reader.lost()
    assert len(by_thread) == 1025
    assert sum(by_thread.values()) == reader.lost_total() == 1099
    assert by_thread[0] == 1099 - 1024


# -- records of goroutines --------------------------------------------------------

STRAND = define("KIND_STRAND")


def _strand_word(name: int) -> int:
    return id_word(0, STRAND) | name << KEY


def _words(drained: Drained, tid: int) -> list[int]:
    data = b"".join(drained.threads[tid])
    return [word for _, word in struct.iter_unpack("<QQ", data)]


def _write_strand(rings: Rings, ring: int, ticks: int, name: int) -> None:
    rings.commit(ring, rings.reserve(ring), ticks, _strand_word(name))
    rings.record(ring, ticks)


def test_only_changes_of_the_goroutine_are_passed_on(rings: Rings) -> None:
    reader = rings.reader()
    rings.own(1, 7)
    rings.announce(1, 7)
    for ticks, name in enumerate((5, 5, 5, 6, 6), 1):
        _write_strand(rings, 1, ticks, name)
    rings.record(1, 6)
    entry = id_word(1, KIND_ENTRY) | 9 << KEY
    drained = reader.drain()
    assert _words(drained, 7) == [
        *(_strand_word(5), entry, entry, entry),
        *(_strand_word(6), entry, entry),
        *(_strand_word(0), entry),
    ]
    assert drained.count == reader.taken_ever == 9


def test_a_run_of_records_ends_outside_of_any_goroutine(rings: Rings) -> None:
    """So that runs can be put together, and each says itself whose records it has."""
    reader = rings.reader()
    rings.own(1, 7)
    rings.announce(1, 7)
    entry = id_word(1, KIND_ENTRY) | 9 << KEY
    for _ in range(2):
        _write_strand(rings, 1, 1, 5)
        assert _words(reader.drain(), 7) == [_strand_word(5), entry, _strand_word(0)]


def test_half_a_pair_is_left_where_it_is(rings: Rings) -> None:
    reader = rings.reader()
    rings.own(1, 7)
    rings.announce(1, 7)
    rings.commit(1, rings.reserve(1), 1, _strand_word(5))
    position = rings.reserve(1)
    assert reader.drain().count == 0
    rings.commit(1, position, 1, id_word(1, KIND_ENTRY) | 9 << KEY)
    assert reader.drain().count == 3


def test_goroutines_fill_a_small_buffer_and_go_on(rings: Rings) -> None:
    reader = rings.reader(5 * RECORD_BYTES)
    rings.own(1, 7)
    rings.announce(1, 7)
    entry = id_word(1, KIND_ENTRY) | 9 << KEY
    for _ in range(7):
        _write_strand(rings, 1, 1, 5)
    words: list[int] = []
    more = True
    while more:
        drained = reader.drain()
        words += _words(drained, 7)
        more = drained.more
    assert words.count(entry) == 7
    assert words[-1] == _strand_word(0)
