"""What a merge of many agents gives: events in columns, and how sure they are. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FUNCTION_MASK = np.uint64((1 << 24) - 1)

SOURCE_SHIFT = 32


@dataclass(frozen=True, slots=True)
class MergedEvents:
    """Events of many sources as columns of equal length, in order of time.

    Attributes:
        time_ns: int64, our CLOCK_MONOTONIC.
        origin: int64, the source's number << 32 | thread id (a goroutine's number from
            `FIRST_STRAND` on).
        word: uint64, the rest of the record as in `trace/records.py`.
        late_count: So many at the beginning are from before the end of what had been
            given before.
    """

    time_ns: NDArray[np.int64]
    origin: NDArray[np.int64]
    word: NDArray[np.uint64]
    late_count: int = 0

    def __len__(self) -> int:
        return len(self.time_ns)

    @property
    def source(self) -> NDArray[np.int64]:
        """Number of the source."""
        return self.origin >> SOURCE_SHIFT

    @property
    def tid(self) -> NDArray[np.int64]:
        """Thread on its host."""
        return self.origin & ((1 << SOURCE_SHIFT) - 1)

    @property
    def kind(self) -> NDArray[np.int8]:
        """`RecordKind`."""
        return ((self.word >> np.uint64(1)) & np.uint64(7)).astype(np.int8)

    @property
    def function(self) -> NDArray[np.int32]:
        """Function id; ids of two sources have nothing to do with each other."""
        return ((self.word >> np.uint64(4)) & _FUNCTION_MASK).astype(np.int32)

    @property
    def key(self) -> NDArray[np.int64]:
        """Frame key."""
        return (self.word >> np.uint64(28)).astype(np.int64)

    def part(self, begin: int, end: int) -> MergedEvents:
        """Some of them in a row."""
        return MergedEvents(
            self.time_ns[begin:end],
            self.origin[begin:end],
            self.word[begin:end],
            max(min(self.late_count, end) - begin, 0),
        )


NO_EVENTS = MergedEvents(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64))


def joined(parts: Sequence[MergedEvents]) -> MergedEvents:
    """Events one after the other."""
    if len(parts) < 2:
        return parts[0] if parts else NO_EVENTS
    return MergedEvents(
        np.concatenate([part.time_ns for part in parts]),
        np.concatenate([part.origin for part in parts]),
        np.concatenate([part.word for part in parts]),
        parts[0].late_count,
    )


@dataclass(frozen=True, slots=True)
class Certainty:
    """Up to where a merged stream is complete: "complete to T except b, c".

    What was lost is complete too: it is counted.

    Attributes:
        complete_to_ns: All that happened before, on our CLOCK_MONOTONIC, has been given;
            0 where nothing is known yet.
        missing: Numbers of the sources of which that cannot be said: they are late, or
            their stream broke.
        uncertainty_ns: Two events of different hosts that are further apart than this
            happened in the order given; 0 where all are of one host.
    """

    complete_to_ns: int = 0
    missing: tuple[int, ...] = ()
    uncertainty_ns: int = 0


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """What became of the records of one source: `received = delivered + dropped + held`.

    Attributes:
        received: Records that came.
        delivered: Those that were given on.
        late: Those of them that came after what had been given already.
        dropped: Those that found no room, because nobody took what was there.
        held: Those that wait.
    """

    received: int = 0
    delivered: int = 0
    late: int = 0
    dropped: int = 0
    held: int = 0
