"""Calls, one by one and in columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray


class CallFlag(IntFlag):
    """What is special about a call."""

    NONE = 0
    # Its frame was left by longjmp, an exception or the end of the thread; it
    # counts as ended when that was noticed.
    SKIPPED = 1
    # Only the entry is traced: it has no duration.
    ENTRY_ONLY = 2
    # Entered by a jump from the function whose frame it took over.
    TAIL = 4
    # Not finished when the trace ended.
    OPEN = 8


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one function.

    Attributes:
        tid: Thread id; of a goroutine's calls its number, which no thread has.
        function: Name of the function.
        start_ns: CLOCK_MONOTONIC of the target's host.
        end_ns: None where it had not finished, or only its entry is traced.
        depth: How many traced calls of the thread it is nested in.
    """

    tid: int
    function: str
    start_ns: int
    end_ns: int | None
    depth: int
    skipped: bool = False
    entry_only: bool = False


CALL_DTYPE = np.dtype(
    [
        ("start", "<i8"),  # ticks
        ("end", "<i8"),  # ticks; 0 while open, the start for entry-only calls
        ("children", "<i8"),  # ticks spent in traced callees
        ("begin_seq", "<i8"),  # place among the begins and ends of the thread
        ("end_seq", "<i8"),  # likewise; -1 while open
        ("parent_seq", "<i8"),  # begin_seq of the caller, -1 at the top
        ("function", "<i4"),
        ("depth", "<i4"),
        ("flags", "<i4"),  # CallFlag
    ]
)

# Rows of CALL_DTYPE.
CallArray = NDArray[np.void]


def empty_calls(count: int = 0) -> CallArray:
    """So many rows of zeros."""
    return np.zeros(count, CALL_DTYPE)


@dataclass(frozen=True, slots=True)
class PairedChunk:
    """What pairing made of some records of one thread.

    Every begin and every end of a call has a number that rises through the
    whole trace of the thread, so that `finished` and `opened` together give
    back the exact order of events.

    Attributes:
        finished: Calls that ended in this chunk, whenever they began.
        opened: Calls that began in this chunk and have not ended.
        first_seq: Number of the first begin or end in this chunk.
        orphan_exits: Exits whose entries were before the trace.
    """

    finished: CallArray
    opened: CallArray = field(default_factory=empty_calls)
    first_seq: int = 0
    orphan_exits: int = 0

    def begun(self) -> CallArray:
        """Calls that began in this chunk, finished or not, in order of their begin."""
        rows = np.concatenate(
            [self.finished[self.finished["begin_seq"] >= self.first_seq], self.opened]
        )
        return rows[np.argsort(rows["begin_seq"], kind="stable")]

    def event_order(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Begins and ends in order: whether each is a begin, and its row.

        Rows below `len(finished)` are of `finished`, the others of `opened`.
        """
        begins = np.concatenate([self.finished["begin_seq"], self.opened["begin_seq"]])
        here = np.flatnonzero(begins >= self.first_seq)
        sequences = np.concatenate([begins[here], self.finished["end_seq"]])
        order = np.argsort(sequences, kind="stable")
        rows = np.concatenate([here, np.arange(len(self.finished))])[order]
        return order < len(here), rows
