"""The target's ticks beside the host's clocks."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from uftrace_agent.runtime.host_library import CAnchor, library


@dataclass(frozen=True, slots=True)
class Anchor:
    """One moment: ticks, CLOCK_MONOTONIC and CLOCK_REALTIME in nanoseconds, and
    the ticks in a second as measured so far."""

    ticks: int
    monotonic_ns: int
    realtime_ns: int
    ticks_per_second: float


class TickClock:
    """Measures the tick rate from its construction on: the longer, the better."""

    def __init__(self) -> None:
        self._first = _sample()
        while (now := _sample())[1] - self._first[1] < 2_000_000:
            continue
        self._rate = _rate(self._first, now)

    def anchor(self) -> Anchor:
        """This moment."""
        now = _sample()
        if now[1] - self._first[1] > 100_000_000:
            self._rate = _rate(self._first, now)
        return Anchor(*now, self._rate)


def _sample() -> tuple[int, int, int]:
    anchor = CAnchor()
    library().uh_anchor(ctypes.byref(anchor))
    return int(anchor.ticks), int(anchor.monotonic), int(anchor.realtime)


def _rate(first: tuple[int, int, int], last: tuple[int, int, int]) -> float:
    return (last[0] - first[0]) * 1e9 / (last[1] - first[1])
