"""How the clock of one host went against another's, measured from time to time. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

# The most by which Linux speeds a clock up or slows it down (MAXFREQ of
# include/linux/timex.h is 500 ppm).
_MOST_DRIFT: Final = 500e-6


@dataclass(frozen=True, slots=True)
class ClockMeasurement:
    """One measurement, in nanoseconds.

    Attributes:
        at_ns: When, on our CLOCK_MONOTONIC.
        offset_ns: The host's CLOCK_MONOTONIC minus ours.
        bound_ns: The true offset is no further from it than this.
    """

    at_ns: int
    offset_ns: int
    bound_ns: int


class ClockTrack:
    """From a host's clock to ours. Between two measurements the offset is taken to change
    evenly, before the first and behind the last not at all.

    Args:
        measurements: In any order; without any the clocks are taken to be the same.
    """

    def __init__(self, measurements: Iterable[ClockMeasurement] = ()) -> None:
        told = sorted(measurements, key=lambda each: each.at_ns)
        # One that says less than its neighbours do would bend what they say.
        bounds = _bounds(told)
        known = [each for each, bound in zip(told, bounds, strict=True) if bound == each.bound_ns]
        self.measurements = tuple(known)
        self._bound_ns = max(bounds, default=0)
        self._base = known[0].at_ns + known[0].offset_ns if known else 0
        # Differences to the first fit a double exactly for weeks.
        self._moments = np.array(
            [each.at_ns + each.offset_ns - self._base for each in known] or [0], np.float64
        )
        first = known[0].offset_ns if known else 0
        self._first = first
        self._changes = np.array([each.offset_ns - first for each in known] or [0], np.float64)

    @property
    def is_known(self) -> bool:
        """Whether it was measured at all."""
        return bool(self.measurements)

    def to_ours(self, host_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Moments of the host's clock on ours."""
        relative = (host_ns - self._base).astype(np.float64)
        change = np.interp(relative, self._moments, self._changes)
        return host_ns - self._first - np.rint(change).astype(np.int64)

    def moment(self, host_ns: int) -> int:
        """One moment of the host's clock on ours."""
        return int(self.to_ours(np.array([host_ns], np.int64))[0])

    def bound_ns(self, first_ns: int, last_ns: int) -> int:
        """How far corrected moments may be from the truth, in nanoseconds: the worst bound of
        all moments at which it was measured, and what the clock may have drifted outside of them.

        Args:
            first_ns: The first moment, on our clock.
            last_ns: The last one.
        """
        if not self.measurements:
            return 0
        outside = max(
            self.measurements[0].at_ns - first_ns, last_ns - self.measurements[-1].at_ns, 0
        )
        return self._bound_ns + int(outside * _MOST_DRIFT)


# What is known when each of them was made, from all of them.
def _bounds(measurements: Sequence[ClockMeasurement]) -> list[int]:
    bounds = [each.bound_ns for each in measurements]
    forth = range(len(bounds))
    for there, here in chain(pairwise(forth), pairwise(reversed(forth))):
        between = abs(measurements[here].at_ns - measurements[there].at_ns)
        bounds[here] = min(bounds[here], bounds[there] + int(between * _MOST_DRIFT))
    return bounds
