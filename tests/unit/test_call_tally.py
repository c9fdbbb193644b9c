"""Counting calls in rings that are read, in rings that nobody reads, and in full ones."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.unit.test_rings import KEY, RINGS, SLOTS, Rings
from uftrace_agent.recording.call_tally import CallTally
from uftrace_agent.recording.rings import RingReader
from uftrace_agent.runtime.layout import (
    KIND_ENTRY,
    KIND_ENTRY_ONLY,
    KIND_EXIT,
    KIND_TAIL_ENTRY,
    define,
    id_word,
)


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


def write(rings: Rings, ring: int, *words: int) -> None:
    for word in words:
        rings.commit(ring, rings.reserve(ring), 1, word | 9 << KEY)


def lose(rings: Rings, ring: int, count: int, words: list[int]) -> None:
    rings.lose(ring, count)
    rings.set_bytes(ring, "LOST_WORDS", struct.pack("<8I", *words))


def counted(tally: CallTally) -> dict[int, float]:
    calls = tally.take()
    return {index: float(calls[index]) for index in calls.nonzero()[0].tolist()}


CALL = (id_word(1, KIND_ENTRY), id_word(1, KIND_EXIT))


def test_entries_are_counted_when_they_are_taken(rings: Rings, reader: RingReader) -> None:
    tally = CallTally(reader)
    rings.own(1, 100)
    rings.announce(1, 100)
    write(rings, 1, *CALL, *CALL, id_word(2, KIND_ENTRY_ONLY), id_word(3, KIND_TAIL_ENTRY))
    reader.drain()
    assert counted(tally) == {1: 2, 2: 1, 3: 1}
    assert counted(tally) == {}


def test_every_record_is_counted_once_whether_or_not_somebody_reads(
    rings: Rings, reader: RingReader
) -> None:
    tally = CallTally(reader)
    rings.own(1, 100)
    rings.announce(1, 100)
    write(rings, 1, *CALL)
    reader.count()
    assert counted(tally) == {1: 1}
    reader.count()
    write(rings, 1, *CALL, *CALL)
    # What was counted before is not, what was not is.
    assert reader.drain().count == 6
    assert counted(tally) == {1: 2}
    for lap in range(5):
        for _ in range(SLOTS // 2 - 1):
            write(rings, 1, *CALL)
        reader.count()
        assert counted(tally) == {1: SLOTS // 2 - 1}, lap
        reader.drain()
        assert counted(tally) == {}


def test_the_shared_ring_is_counted_too(rings: Rings, reader: RingReader) -> None:
    tally = CallTally(reader)
    rings.announce(0, 100)
    write(rings, 0, CALL[0])
    rings.announce(0, 200)
    write(rings, 0, CALL[0])
    reader.count()
    assert counted(tally) == {1: 2}


def test_ids_without_room_are_nobodys(rings: Rings, reader: RingReader) -> None:
    tally = CallTally(reader)
    rings.own(1, 100)
    rings.announce(1, 100)
    write(rings, 1, id_word(5000, KIND_ENTRY))
    reader.count()
    assert counted(tally) == {}
    reader.make_room(5000)
    write(rings, 1, id_word(5000, KIND_ENTRY), *CALL)
    reader.count()
    assert counted(tally) == {1: 1, 5000: 1}


def test_what_found_no_room_is_shared_out_as_its_sample_is(
    rings: Rings, reader: RingReader
) -> None:
    rings.own(1, 100)
    rings.lose(1, 1000)
    tally = CallTally(reader)
    # An entry is lost with its exit.
    lose(rings, 1, 5000, [id_word(1, KIND_ENTRY)] * 8)
    assert counted(tally) == {1: 2000}
    lose(rings, 1, 5000 + 14, [id_word(1, KIND_ENTRY)] * 6 + [id_word(2, KIND_ENTRY_ONLY)] * 2)
    assert counted(tally) == {1: 6, 2: 2}
    # Exits that are sites of their own stand for calls as well.
    lose(rings, 1, 5014 + 100, [id_word(1, KIND_EXIT)] * 8)
    assert counted(tally) == {1: 50}


def test_a_ring_that_lost_hardly_anything_has_empty_places(
    rings: Rings, reader: RingReader
) -> None:
    rings.own(2, 100)
    tally = CallTally(reader)
    lose(rings, 2, 2, [id_word(1, KIND_ENTRY)] + [0] * 7)
    assert counted(tally) == {1: 1}
    assert RINGS > 2 and define("RING_LOST_WORDS") % 8 == 0
