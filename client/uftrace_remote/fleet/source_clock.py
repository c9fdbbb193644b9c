"""From the ticks of a process far away to our clock, in one way that is never revised. No I/O.

What has been said about a moment stays said: a new anchor or a new measurement of the
clock counts from the latest moment on, so that events which were in order stay so.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.fleet.clock_offset import ClockOffset
from uftrace_remote.values import ClockAnchor

# What two clocks may drift apart: twice PHI of RFC 5905 section 7.2 (15 ppm each).
DRIFT: Final = 30e-6
# A new offset is reached in so much time, if time need not run faster or slower for it
# than by a tenth.
_SLEW_NS: Final = 10_000_000_000
_MOST_SLEW: Final = 0.1
# Our time may jump ahead by any amount: a host that was suspended does not count that.
_STEP_NS: Final = 1_000_000_000
_MOST_SEGMENTS: Final = 16
_MOST_KNOTS: Final = 512


# The offset from a moment of the agent's clock on; it changes at a rate until an end.
@dataclass(frozen=True, slots=True)
class _Segment:
    begin_ns: int
    offset_ns: int
    rate: float
    end_ns: int

    def at(self, agent_ns: int) -> int:
        passed = min(max(agent_ns, self.begin_ns), self.end_ns) - self.begin_ns
        return self.offset_ns + int(self.rate * passed)


class SmoothOffset:
    """How far an agent's CLOCK_MONOTONIC is from ours, at any of its moments.

    Args:
        first: The first measurement.
        our_ns: When it was made, on our CLOCK_MONOTONIC.
    """

    def __init__(self, first: ClockOffset, our_ns: int) -> None:
        begin = first.to_agent(our_ns)
        self._segments = [_Segment(begin, first.offset_ns, 0.0, begin)]
        self._target = first
        self._measured_ns = our_ns
        self._latest_ns = begin

    def measured(self, found: ClockOffset, our_ns: int) -> bool:
        """Takes a further measurement; False where the one before is still better.

        Args:
            found: The measurement.
            our_ns: When it was made.
        """
        aged = self._aged(our_ns)
        apart = abs(found.offset_ns - self._target.offset_ns)
        # One that contradicts the other tells that a clock has jumped.
        if found.bound_ns > aged and apart <= found.bound_ns + aged:
            return False
        self._target, self._measured_ns = found, our_ns
        last = self._segments[-1]
        # Behind everything that has been asked for.
        begin = max(max(self._latest_ns, last.begin_ns) + 1, found.to_agent(our_ns))
        now = last.at(begin)
        missing = found.offset_ns - now
        if missing < -_STEP_NS:
            segment = _Segment(begin, found.offset_ns, 0.0, begin)
        elif missing:
            rate = max(-_MOST_SLEW, min(missing / _SLEW_NS, _MOST_SLEW))
            segment = _Segment(begin, now, rate, begin + int(missing / rate))
        else:
            return True
        self._segments = [*self._segments[1 - _MOST_SEGMENTS :], segment]
        return True

    def to_ours(self, agent_ns: int) -> int:
        """A moment of the agent's clock on ours: later ones never come before earlier ones."""
        self._latest_ns = max(self._latest_ns, agent_ns)
        for segment in reversed(self._segments):
            if agent_ns >= segment.begin_ns:
                return agent_ns - segment.at(agent_ns)
        return agent_ns - self._segments[0].offset_ns

    def bound_ns(self, our_ns: int) -> int:
        """How far a moment of now may be from the truth."""
        agent_ns = self._target.to_agent(our_ns)
        missing = abs(self._target.offset_ns - self._segments[-1].at(agent_ns))
        return self._aged(our_ns) + missing

    def _aged(self, our_ns: int) -> int:
        return self._target.bound_ns + int(DRIFT * max(our_ns - self._measured_ns, 0))


class SourceClock:
    """Ticks of a process on our CLOCK_MONOTONIC.

    Between two anchors it interpolates; anchors come with the records before them, so
    that no moment needs the anchor behind it later.

    Args:
        offset: Of its host.
    """

    def __init__(self, offset: SmoothOffset) -> None:
        self._offset = offset
        self._ticks: list[int] = []
        self._ns: list[int] = []
        # Nanoseconds a tick before the first anchor, between, and behind the last.
        self._rates: list[float] = [1.0]
        self._arrays: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None = None

    def add(self, anchor: ClockAnchor) -> None:
        """Takes the next anchor; one that contradicts those before is passed over."""
        ours = self._offset.to_ours(anchor.monotonic_ns)
        if anchor.ticks_per_second <= 0:
            return
        rate = 1e9 / anchor.ticks_per_second
        if not self._ticks:
            self._rates = [rate, rate]
        elif anchor.ticks <= self._ticks[-1] or ours <= self._ns[-1]:
            return
        else:
            self._rates[-1] = (ours - self._ns[-1]) / (anchor.ticks - self._ticks[-1])
            self._rates.append(rate)
        self._ticks.append(anchor.ticks)
        self._ns.append(ours)
        if len(self._ticks) > 2 * _MOST_KNOTS:
            del self._ticks[:_MOST_KNOTS], self._ns[:_MOST_KNOTS], self._rates[:_MOST_KNOTS]
        self._arrays = None

    @property
    def is_set(self) -> bool:
        """Whether there is an anchor."""
        return bool(self._ticks)

    def nanosecond(self, ticks: int) -> int:
        """One moment."""
        return int(self.nanoseconds(np.array([ticks], np.int64))[0])

    def nanoseconds(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Many moments; without any anchor a tick counts as a nanosecond."""
        if not self._ticks or not len(ticks):
            return ticks.copy()
        ours: NDArray[np.int64]
        first = bisect_right(self._ticks, int(ticks.min()))
        last = bisect_right(self._ticks, int(ticks.max()))
        if first == last:
            knot = max(first - 1, 0)
            passed = (ticks - self._ticks[knot]) * self._rates[first]
            ours = np.floor(passed, out=passed).astype(np.int64)
            ours += self._ns[knot]
            return ours
        knots, begins, rates = self._columns()
        place = np.searchsorted(knots, ticks, side="right")
        at = np.maximum(place - 1, 0)
        passed = (ticks - knots[at]) * rates[place]
        ours = np.floor(passed, out=passed).astype(np.int64)
        ours += begins[at]
        return ours

    def _columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        if self._arrays is None:
            self._arrays = (
                np.array(self._ticks, np.int64),
                np.array(self._ns, np.int64),
                np.array(self._rates, np.float64),
            )
        return self._arrays
