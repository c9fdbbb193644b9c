"""What tracing may cost, and which tracepoints have to go where it costs more.

A pure state machine: no thread, no clock and no process in it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

# (seconds that are looked back on, seconds of them that must be over the limit). The
# first lets bursts of up to a fifth of a second pass and finds what lasts in 0.3 to 0.5 s;
# the second finds bursts that come again and again.
_WINDOWS: Final = ((0.5, 0.3), (5.0, 0.6))


class LimitKind(IntEnum):
    """Which limit a function broke. Numbers are those of the API."""

    CPU = 1
    RATE = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session may cost; infinite: no limit.

    Attributes:
        cpu: Processor time of all probes, as a share of one processor.
        rate: Calls per second of each function.
    """

    cpu: float = 0.05
    rate: float = 1e6

    def changed(self, by: LimitChange) -> Limits:
        """With what was asked for."""
        return Limits(
            self.cpu if by.cpu is None else by.cpu, self.rate if by.rate is None else by.rate
        )


@dataclass(frozen=True, slots=True)
class LimitChange:
    """What is asked for, or one function's own limits; None: as it was, or the session's.

    A function with a share of its own does not count for the session's.
    """

    cpu: float | None = None
    rate: float | None = None

    def over(self, other: LimitChange) -> LimitChange:
        """This, and what only the other says."""
        return LimitChange(
            other.cpu if self.cpu is None else self.cpu,
            other.rate if self.rate is None else self.rate,
        )

    def __bool__(self) -> bool:
        return self.cpu is not None or self.rate is not None


NO_LIMITS: Final = Limits(math.inf, math.inf)
NO_CHANGE: Final = LimitChange()


@dataclass(frozen=True, slots=True)
class Excess:
    """A function that has to go: what it did, and what was allowed.

    Attributes:
        calls_per_second: While it was looked at.
        cpu: What that cost, as a share of one processor.
        allowed: In the unit of the limit.
    """

    function_id: int
    calls_per_second: float
    cpu: float
    limit: LimitKind
    allowed: float


@dataclass(slots=True)
class _Sample:
    """Calls of the watched functions in some seconds. `cost` is the processor time of
    those that count for the session's share, `peak` the most calls of one function."""

    seconds: float
    ids: npt.NDArray[np.int64]
    calls: Numbers
    cost: float = 0.0
    peak: float = 0.0

    def weigh(self, costs: Numbers) -> None:
        self.cost = float(self.calls @ costs[self.ids])
        self.peak = float(self.calls.max(initial=0.0))

    def keep(self, kept: npt.NDArray[np.bool_]) -> None:
        self.ids, self.calls = self.ids[kept], self.calls[kept]


class Budget:
    """Judges what functions cost, sample by sample.

    Functions are numbered from 1. One that has to go is not watched any more, until
    `watch` is called for it again.
    """

    def __init__(self, limits: Limits, call_ns: float, entry_ns: float) -> None:
        self.limits = limits
        self._costs = {True: call_ns * 1e-9, False: entry_ns * 1e-9}
        self._own: dict[int, LimitChange] = {}
        # By function id: what one call costs in seconds (0: not watched), and whether it
        # counts for the session's share.
        self._cost: Numbers = np.zeros(64)
        self._shares: Numbers = np.zeros(64)
        self._has_exit: npt.NDArray[np.bool_] = np.zeros(64, bool)
        self._samples: deque[_Sample] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is limited."""
        return self.limits == NO_LIMITS and not self._own

    def set_costs(self, call_ns: float, entry_ns: float) -> None:
        """What one call costs, with its exit and without."""
        self._costs = {True: call_ns * 1e-9, False: entry_ns * 1e-9}
        costs = np.where(self._has_exit, self._costs[True], self._costs[False])
        self._cost = np.where(self._cost > 0, costs, 0.0)
        self._weigh()

    def set_own(self, function_id: int, own: LimitChange) -> None:
        """A function's own limits."""
        self._make_room(function_id)
        if own:
            self._own[function_id] = own
        else:
            self._own.pop(function_id, None)
        counts = own.cpu is None
        is_new = bool(self._shares[function_id]) != counts
        self._shares[function_id] = counts
        # Not for each of 100,000 functions that are not watched yet.
        if is_new and self._cost[function_id]:
            self._weigh()

    def watch(self, function_id: int, *, has_exit: bool) -> None:
        """Begin to look at a function; what it did before does not count."""
        self._make_room(function_id)
        self._has_exit[function_id] = has_exit
        self._cost[function_id] = self._costs[has_exit]
        self._shares[function_id] = self._own.get(function_id, NO_CHANGE).cpu is None

    def forget(self, function_ids: Collection[int]) -> None:
        """Look at functions no longer."""
        known = [each for each in function_ids if 0 < each < len(self._cost)]
        self._cost[known] = 0
        for sample in self._samples:
            sample.keep(self._cost[sample.ids] > 0)
        self._weigh()

    def restart(self) -> None:
        """Forget all samples: nobody looked for a while."""
        self._samples.clear()

    def _weigh(self) -> None:
        costs = self._cost * self._shares
        for sample in self._samples:
            sample.weigh(costs)

    def _make_room(self, function_id: int) -> None:
        missing = function_id + 1 - len(self._cost)
        if missing > 0:
            missing += len(self._cost)
            self._cost = np.pad(self._cost, (0, missing))
            self._shares = np.pad(self._shares, (0, missing))
            self._has_exit = np.pad(self._has_exit, (0, missing))

    # -- judging -----------------------------------------------------------

    def judge(self, seconds: float, calls: Numbers) -> list[Excess]:
        """Take the next sample.

        Args:
            seconds: How long it took.
            calls: Calls by function id in that time; ids that are not watched are
                passed over.

        Returns:
            The functions that have to go now, the hottest first.
        """
        known = calls[: len(self._cost)]
        ids = np.flatnonzero(known * (self._cost[: len(known)] > 0))
        sample = _Sample(seconds, ids, known[ids].astype(np.float64))
        sample.weigh(self._cost * self._shares)
        self._samples.append(sample)
        longest = _WINDOWS[-1][0]
        while sum(each.seconds for each in self._samples) - self._samples[0].seconds >= longest:
            self._samples.popleft()
        found: dict[int, Excess] = {}
        for span, needed in _WINDOWS:
            window = self._latest(span)
            # Who is over a limit of its own does not take others with it.
            for judge in (self._too_often, self._too_much):
                excesses = judge(window, needed)
                found |= {each.function_id: each for each in excesses}
                if excesses:
                    self.forget([each.function_id for each in excesses])
        return sorted(found.values(), key=lambda each: -each.cpu)

    def rates(self) -> Numbers:
        """Calls per second by function id, of late."""
        window = self._latest(_WINDOWS[0][0])
        return self._sums(window) / max(_seconds(window), 1e-9)

    def cpu(self) -> float:
        """What all watched functions cost of late, as a share of one processor."""
        return float(self.rates() @ self._cost)

    def _latest(self, span: float) -> list[_Sample]:
        window: list[_Sample] = []
        seconds = 0.0
        for sample in reversed(self._samples):
            seconds += sample.seconds
            if window and seconds > span * 1.001:
                break
            window.append(sample)
        return window

    def _sums(self, window: list[_Sample]) -> Numbers:
        sums = np.zeros(len(self._cost))
        for sample in window:
            sums[sample.ids] += sample.calls
        return sums

    # Each function beside its own limits, and the session's of calls.
    def _too_often(self, window: list[_Sample], needed: float) -> list[Excess]:
        rate_limit = self.limits.rate
        peaks = _seconds([each for each in window if each.peak > rate_limit * each.seconds])
        if peaks < needed and not self._own:
            return []
        seconds = _seconds(window)
        rates = self._sums(window) / seconds
        candidates = set(np.flatnonzero(rates > rate_limit).tolist())
        candidates |= {each for each in self._own if rates[each] > 0}
        found = []
        for function_id in sorted(candidates):
            rate, cost = float(rates[function_id]), float(self._cost[function_id])
            kind, allowed, cap = self._cap(function_id, cost)
            if rate <= cap:
                continue
            over = [
                sample
                for sample in window
                if sample.calls[sample.ids == function_id].sum() > cap * sample.seconds
            ]
            if _seconds(over) >= needed:
                found.append(Excess(function_id, rate, rate * cost, kind, allowed))
        return found

    # The narrower of a function's limits: which, what it allows, and in calls per second.
    def _cap(self, function_id: int, cost: float) -> tuple[LimitKind, float, float]:
        own = self._own.get(function_id, NO_CHANGE)
        rate = self.limits.rate if own.rate is None else own.rate
        if own.cpu is not None and own.cpu / cost < rate:
            return LimitKind.CPU, own.cpu, own.cpu / cost
        return LimitKind.RATE, rate, rate

    # All functions together: the hottest go until the others fit.
    def _too_much(self, window: list[_Sample], needed: float) -> list[Excess]:
        seconds, allowed = _seconds(window), self.limits.cpu
        over = _seconds([each for each in window if each.cost > allowed * each.seconds])
        if over < needed or sum(each.cost for each in window) <= allowed * seconds:
            return []
        rates = self._sums(window) / seconds
        shares = rates * self._cost * self._shares
        rest = float(shares.sum())
        found = []
        for function_id in np.argsort(-shares, kind="stable").tolist():
            share = float(shares[function_id])
            if rest <= allowed or share <= 0:
                break
            rest -= share
            rate = float(rates[function_id])
            found.append(Excess(function_id, rate, share, LimitKind.CPU, allowed))
        return found


def _seconds(samples: Collection[_Sample]) -> float:
    return sum(sample.seconds for sample in samples)
