"""From the target's ticks to nanoseconds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.values import ClockAnchor

_NS_PER_SECOND = 1_000_000_000


class Clock:
    """Turns ticks into CLOCK_MONOTONIC nanoseconds of the target's host.

    Between anchors it interpolates; before the first and behind the last it
    goes on with the measured ticks a second. Without any anchor a tick counts
    as a nanosecond.

    Args:
        anchors: Clock readings.
        keep: Remember only so many of the latest; 0 keeps all.
    """

    def __init__(self, anchors: Iterable[ClockAnchor] = (), *, keep: int = 0) -> None:
        self._keep = keep
        self._anchors: list[ClockAnchor] = []
        self._base_ticks = 0
        self._base_ns = 0
        self._ticks = np.zeros(1, np.float64)
        self._ns = np.zeros(1, np.float64)
        self._ns_per_tick = 1.0
        self._realtime_offset = 0
        self.add(anchors)

    def add(self, anchors: Iterable[ClockAnchor]) -> None:
        """Takes further anchors, in any order; contradictory ones are passed over."""
        news = [anchor for anchor in anchors if anchor.ticks_per_second > 0]
        if not news:
            return
        ordered = sorted([*self._anchors, *news], key=lambda anchor: anchor.ticks)
        kept = ordered[:1]
        for anchor in ordered[1:]:
            # Time must not stand still or run backwards between two anchors.
            if anchor.ticks > kept[-1].ticks and anchor.monotonic_ns > kept[-1].monotonic_ns:
                kept.append(anchor)
        self._anchors = kept = kept[-self._keep :]
        first, last = kept[0], kept[-1]
        # Differences to the first anchor fit a double exactly for weeks;
        # ticks since boot would not.
        self._base_ticks = first.ticks
        self._base_ns = first.monotonic_ns
        self._ticks = np.array([each.ticks - first.ticks for each in kept], np.float64)
        self._ns = np.array([each.monotonic_ns - first.monotonic_ns for each in kept], np.float64)
        self._ns_per_tick = _NS_PER_SECOND / last.ticks_per_second
        self._realtime_offset = last.realtime_ns - last.monotonic_ns

    @property
    def anchors(self) -> tuple[ClockAnchor, ...]:
        """The anchors in use, by rising ticks."""
        return tuple(self._anchors)

    @property
    def realtime_offset_ns(self) -> int:
        """What to add to get CLOCK_REALTIME."""
        return self._realtime_offset

    def nanoseconds(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """CLOCK_MONOTONIC nanoseconds of an array of ticks."""
        relative = (ticks - self._base_ticks).astype(np.float64)
        ns = np.interp(relative, self._ticks, self._ns)
        before = relative < self._ticks[0]
        behind = relative > self._ticks[-1]
        ns[before] = (relative[before] - self._ticks[0]) * self._ns_per_tick + self._ns[0]
        ns[behind] = (relative[behind] - self._ticks[-1]) * self._ns_per_tick + self._ns[-1]
        return np.rint(ns).astype(np.int64) + self._base_ns

    def nanosecond(self, ticks: int) -> int:
        """CLOCK_MONOTONIC nanoseconds of one reading."""
        return int(self.nanoseconds(np.array([ticks], np.int64))[0])
