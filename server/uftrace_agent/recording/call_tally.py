"""How often each function was called, whether or not anybody reads the records."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from uftrace_agent.recording.rings import RingReader
from uftrace_agent.runtime.layout import (
    ID_MAX,
    ID_SHIFT,
    KIND_ENTRY,
    KIND_EXIT,
    KIND_SHIFT,
)

_KIND_MASK: Final = 7


class CallTally:
    """Calls by record id, from one look to the next.

    What is in the rings is counted exactly. What did not fit in is counted by ring, and
    shared out among functions as the ring's sample of its latest losses is.
    """

    def __init__(self, rings: RingReader) -> None:
        self._rings = rings
        self._calls: npt.NDArray[np.uint64] = rings.calls.copy()
        self._lost: npt.NDArray[np.uint64] = rings.dropped.copy()

    def take(self) -> npt.NDArray[np.float64]:
        """Calls since the last look, by record id."""
        calls = self._rings.calls
        before = np.pad(self._calls, (0, len(calls) - len(self._calls)))
        counted = (calls - before).astype(np.float64)
        self._calls = calls.copy()
        dropped = self._rings.dropped
        lost = dropped - self._lost
        self._lost = dropped.copy()
        rows = np.flatnonzero(lost)
        if len(rows):
            counted += self._share_out(rows, lost[rows], len(counted))
        counted[0] = 0  # ids of nobody
        return counted

    def _share_out(
        self, rows: npt.NDArray[np.int64], lost: npt.NDArray[np.uint64], count: int
    ) -> npt.NDArray[np.float64]:
        words = self._rings.lost_words[rows]
        ids = (words >> ID_SHIFT & ID_MAX).astype(np.int64)
        kinds = words >> KIND_SHIFT & _KIND_MASK
        # An entry that is lost takes its exit with it: two records.
        weights = np.where(kinds == KIND_ENTRY, 2.0, 1.0) * (ids > 0)
        whole = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
        records = lost[:, None] * weights / whole
        calls = np.where((kinds == KIND_ENTRY) | (kinds == KIND_EXIT), records / 2, records)
        ids[ids >= count] = 0
        shares = np.zeros(count)
        np.add.at(shares, ids, calls)
        return shares
