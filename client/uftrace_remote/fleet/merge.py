"""One ordered stream out of many, as far as all of them have come. No I/O.

Each source says with its watermark that nothing earlier will come. What lies before the
lowest watermark is put in order and given on. A source that is far behind the others is
not waited for: it is named, and what it brings later is given on all the same, and counted
as late. Behind the others, not behind the clock on the wall: a client that is slow itself
is behind with all of them, and needs to give up no order for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.fleet.merged_events import (
    NO_EVENTS,
    SOURCE_SHIFT,
    Certainty,
    MergedEvents,
    SourceCounts,
)

# The agent sends a heartbeat every second.
LATE_AFTER_NS: Final = 2_000_000_000
# 24 bytes each.
MOST_RECORDS: Final = 4 << 20
MOST_AT_ONCE: Final = 1 << 20


# Some records of one source, in the order of each of its threads.
@dataclass(frozen=True, slots=True)
class _Piece:
    time_ns: NDArray[np.int64]
    origin: NDArray[np.int64]
    word: NDArray[np.uint64]
    first_ns: int
    last_ns: int

    @classmethod
    def of(
        cls, time_ns: NDArray[np.int64], origin: NDArray[np.int64], word: NDArray[np.uint64]
    ) -> _Piece:
        return cls(time_ns, origin, word, int(time_ns.min()), int(time_ns.max()))

    def __len__(self) -> int:
        return len(self.time_ns)

    def oldest(self, count: int) -> _Piece:
        chosen = np.sort(np.argpartition(self.time_ns, count - 1)[:count])
        return _Piece.of(self.time_ns[chosen], self.origin[chosen], self.word[chosen])

    def split(self, until_ns: int) -> tuple[_Piece, _Piece]:
        ready = self.time_ns < until_ns
        left = ~ready
        return (
            _Piece.of(self.time_ns[ready], self.origin[ready], self.word[ready]),
            _Piece.of(self.time_ns[left], self.origin[left], self.word[left]),
        )


@dataclass(slots=True)
class _Source:
    clock: Hashable
    added_ns: int
    watermark_ns: int = 0
    bound_ns: int = 0
    is_late: bool = False
    is_ended: bool = False
    is_complete: bool = True
    pieces: deque[_Piece] = field(default_factory=deque)
    # In the pieces, and with what is in order already.
    waiting: int = 0
    held: int = 0
    received: int = 0
    delivered: int = 0
    late: int = 0
    dropped: int = 0

    # As far as it is known to be here.
    @property
    def known_to_ns(self) -> int | None:
        return None if self.is_ended and self.is_complete else self.watermark_ns


class Merger:
    """Merges the events of sources that are numbered from 0 on.

    Args:
        late_after_ns: A source whose watermark is so far behind the highest one is not
            waited for; one that was late is waited for again from half of that on.
        most_records: So many may wait; what comes beyond is dropped, and counted: the
            newest of the sources that have the most.
    """

    def __init__(
        self, *, late_after_ns: int = LATE_AFTER_NS, most_records: int = MOST_RECORDS
    ) -> None:
        self._late_after_ns = late_after_ns
        self._most = most_records
        self._sources: list[_Source] = []
        self._held = 0
        # All before this moment is in `_merged` or was given.
        self._merged_to_ns = 0
        self._merged = NO_EVENTS
        self._uncertainty_ns = 0

    def add(self, now_ns: int, clock: Hashable = None) -> int:
        """A new source; returns its number.

        Args:
            now_ns: Our CLOCK_MONOTONIC. It is waited for as if it had come that far.
            clock: Sources with the same one have the same clock; None: its own.
        """
        number = len(self._sources)
        self._sources.append(_Source(("own", number) if clock is None else clock, now_ns))
        return number

    def push(
        self,
        source: int,
        time_ns: NDArray[np.int64],
        tid: NDArray[np.int64],
        word: NDArray[np.uint64],
        watermark_ns: int = 0,
    ) -> None:
        """Takes what a source sent.

        Args:
            source: Its number.
            time_ns: When, on our CLOCK_MONOTONIC; of each thread in order, also with what
                was pushed before.
            tid: Which thread.
            word: The rest of the records.
            watermark_ns: Nothing earlier will come; 0 is unknown.
        """
        from_ = self._sources[source]
        from_.watermark_ns = max(from_.watermark_ns, watermark_ns)
        count = len(time_ns)
        if not count:
            return
        origin = tid | (source << SOURCE_SHIFT)
        from_.pieces.append(_Piece.of(time_ns, origin, word))
        from_.received += count
        from_.waiting += count
        from_.held += count
        self._held += count
        if self._held > self._most:
            self._drop()

    def set_bound(self, source: int, bound_ns: int) -> None:
        """How far the times of a source may be from the truth."""
        self._sources[source].bound_ns = bound_ns

    def end(self, source: int, *, is_complete: bool) -> None:
        """Nothing more will come of a source.

        Args:
            source: Its number.
            is_complete: Whether all that it had has come.
        """
        from_ = self._sources[source]
        from_.is_ended, from_.is_complete, from_.is_late = True, is_complete, False

    def counts(self, source: int) -> SourceCounts:
        """What became of the records of a source."""
        of = self._sources[source]
        return SourceCounts(of.received, of.delivered, of.late, of.dropped, of.held)

    def watermark_ns(self, source: int) -> int:
        """Up to where a source has come."""
        return self._sources[source].watermark_ns

    def is_late(self, source: int) -> bool:
        """Whether a source was not waited for at the last release."""
        return self._sources[source].is_late

    @property
    def held(self) -> int:
        """Records that wait."""
        return self._held

    @property
    def ready(self) -> int:
        """Those of them that could be given on now, but for `most`."""
        return len(self._merged)

    def release(self, most: int = MOST_AT_ONCE) -> tuple[MergedEvents, Certainty]:
        """What can be given on now, in order.

        Args:
            most: So many at most; the others come next time.
        """
        self._judge()
        if not len(self._merged):
            self._merge(self._frontier())
        merged, self._merged = self._merged, NO_EVENTS
        complete_to_ns = self._merged_to_ns
        if len(merged) > most:
            self._merged = merged.part(most, len(merged))
            merged = merged.part(0, most)
            # What is left may begin at the same moment as this ends with.
            complete_to_ns = int(self._merged.time_ns[0])
        self._count(merged)
        missing = tuple(
            number
            for number, source in enumerate(self._sources)
            if source.known_to_ns is not None and source.known_to_ns < complete_to_ns
        )
        return merged, Certainty(complete_to_ns, missing, self._uncertainty_ns)

    # -- inside --------------------------------------------------------------

    def _judge(self) -> None:
        going = [each for each in self._sources if not each.is_ended]
        # One whose clock is hardly known must not make all others late.
        best = max((each.watermark_ns - each.bound_ns for each in going), default=0)
        for source in going:
            behind = best - max(source.watermark_ns, source.added_ns)
            limit = self._late_after_ns // 2 if source.is_late else self._late_after_ns
            source.is_late = behind > limit

    def _frontier(self) -> int:
        going = [each for each in self._sources if not each.is_ended]
        if going:
            # The one that is ahead is not late.
            return min(each.watermark_ns for each in going if not each.is_late)
        held = [piece.last_ns + 1 for each in self._sources for piece in each.pieces]
        return max(held, default=0)

    # Takes all from before the frontier out of the pieces, in order.
    def _merge(self, frontier_ns: int) -> None:
        before_ns = self._merged_to_ns
        self._merged_to_ns = frontier_ns = max(frontier_ns, before_ns)
        ready: list[_Piece] = []
        for source in self._sources:
            source.pieces = _take(source.pieces, frontier_ns, ready)
            source.waiting = sum(map(len, source.pieces))
        if ready:
            self._merged = _in_order(ready, before_ns)
            self._uncertainty_ns = _uncertainty(self._sources)

    def _count(self, given: MergedEvents) -> None:
        if not len(given):
            return
        size = len(self._sources)
        by_source = np.bincount(given.source, minlength=size).tolist()
        late = np.bincount(given.source[: given.late_count], minlength=size).tolist()
        for source, count, late_count in zip(self._sources, by_source, late, strict=True):
            source.delivered += count
            source.held -= count
            source.late += late_count
        self._held -= len(given)

    # Drops the newest of those that have the most, so that they have the same.
    def _drop(self) -> None:
        waiting = sorted(source.waiting for source in self._sources)
        room = self._most - (self._held - sum(waiting))
        level = 0
        for place, count in enumerate(waiting):
            level = room // (len(waiting) - place)
            if count > level:
                break
            room -= count
        for source in self._sources:
            excess = source.waiting - level
            while excess > 0:
                piece = source.pieces.pop()
                if len(piece) > excess:
                    source.pieces.append(piece.oldest(len(piece) - excess))
                count = min(len(piece), excess)
                excess -= count
                source.dropped += count
                source.waiting -= count
                source.held -= count
                self._held -= count


def _take(pieces: deque[_Piece], until_ns: int, ready: list[_Piece]) -> deque[_Piece]:
    left: deque[_Piece] = deque()
    for piece in pieces:
        if piece.last_ns < until_ns:
            ready.append(piece)
        elif piece.first_ns >= until_ns:
            left.append(piece)
        else:
            first, second = piece.split(until_ns)
            ready.append(first)
            left.append(second)
    return left


def _in_order(pieces: list[_Piece], late_before_ns: int) -> MergedEvents:
    time_ns = np.concatenate([piece.time_ns for piece in pieces])
    origin = np.concatenate([piece.origin for piece in pieces])
    word = np.concatenate([piece.word for piece in pieces])
    base = min(piece.first_ns for piece in pieces)
    span = max(piece.last_ns for piece in pieces) - base
    bits = len(time_ns).bit_length()
    if span.bit_length() + bits < 64:
        # Time and place in one number: sorted twice as fast as an argsort, and what is
        # of one moment stays in its order.
        packed = time_ns
        packed -= base
        packed <<= bits
        packed |= np.arange(len(packed))
        packed.sort()
        order = packed & ((1 << bits) - 1)
        packed >>= bits
        packed += base
        time_ns = packed
    else:
        order = np.argsort(time_ns, kind="stable")
        time_ns = time_ns[order]
    late = int(np.searchsorted(time_ns, late_before_ns))
    return MergedEvents(time_ns, origin.take(order), word.take(order), late)


# The two worst clocks that are not the same.
def _uncertainty(sources: list[_Source]) -> int:
    bounds: dict[Hashable, int] = {}
    for source in sources:
        if source.received:
            bounds[source.clock] = max(bounds.get(source.clock, 0), source.bound_ns)
    if len(bounds) < 2:
        return 0
    return sum(sorted(bounds.values())[-2:])
