"""Records of goroutines, which move between threads, put together by goroutine.

Within a thread's records, one of kind `STRAND` says to which strand those after it
belong; strand 0 is the thread itself. The records of a strand come from several
threads, and become a sequence in time again once nothing earlier can come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.enums import RecordKind

# Strands are numbered from here on beside the threads: no thread id is larger
# (PID_MAX_LIMIT of include/linux/threads.h).
FIRST_STRAND: Final = 1 << 22

_KIND_MASK: Final = np.uint64(7 << 1)
_STRAND: Final = np.uint64(int(RecordKind.STRAND) << 1)
_KEY_SHIFT: Final = np.uint64(28)

# Rows of RECORD_DTYPE.
Packed = NDArray[Any]


@dataclass(slots=True)
class StrandSorter:
    """Takes the records of strands out of those of threads, and gives them in order.

    Attributes:
        held: How many records wait for what may come before them.
    """

    held: int = 0
    _waiting: list[tuple[Packed, NDArray[np.uint64]]] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)

    def take(self, packed: Packed) -> Packed:
        """Keeps what is of strands, and returns what is of the thread itself.

        Args:
            packed: Records of one thread in the order written; whole pieces of what
                the agent sent.
        """
        is_strand = (packed["word"] & _KIND_MASK) == _STRAND
        if not bool(is_strand.any()):
            return packed
        places = np.arange(len(packed))
        latest = np.maximum.accumulate(np.where(is_strand, places, -1))
        strand = np.where(latest >= 0, packed["word"][latest] >> _KEY_SHIFT, np.uint64(0))
        strand = strand.astype(np.uint64)
        moved = ~is_strand & (strand != 0)
        if bool(moved.any()):
            self._waiting.append((packed[moved], strand[moved]))
            self.held += int(moved.sum())
        own: Packed = packed[~is_strand & (strand == 0)]
        return own

    def release(self, until_ticks: int | None) -> list[tuple[int, Packed]]:
        """The records from before a moment (None: all), by the number of their strand.

        Args:
            until_ticks: Up to where all records of all threads have been taken.
        """
        if not self._waiting:
            return []
        packed = np.concatenate([rows for rows, _ in self._waiting])
        strands = np.concatenate([names for _, names in self._waiting])
        self._waiting = []
        if until_ticks is not None:
            ready = packed["ticks"] < np.uint64(until_ticks)
            if not bool(ready.all()):
                self._waiting.append((packed[~ready], strands[~ready]))
            packed, strands = packed[ready], strands[ready]
        self.held = sum(len(rows) for rows, _ in self._waiting)
        if not len(packed):
            return []
        # Stable: what a thread wrote at one tick stays in its order.
        order = np.lexsort((packed["ticks"], strands))
        packed, strands = packed[order], strands[order]
        first = np.flatnonzero(np.concatenate([[True], strands[1:] != strands[:-1]]))
        pieces = np.split(packed, first[1:])
        names = strands[first].tolist()
        for place in np.argsort(packed["ticks"][first], kind="stable").tolist():
            self._numbers.setdefault(names[place], FIRST_STRAND + 1 + len(self._numbers))
        return [(self._numbers[name], rows) for name, rows in zip(names, pieces, strict=True)]

    def names(self) -> dict[int, str]:
        """What to call the strands, by number."""
        return {number: f"goroutine {name << 4:#x}" for name, number in self._numbers.items()}
