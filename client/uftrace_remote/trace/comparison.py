"""Whether a function takes longer here than there, and how sure that is. No I/O.

Durations are compared by the Mann-Whitney U test (Mann and Whitney 1947), with the
correction of its variance for ties (Lehmann, Nonparametrics, 1975, section 1.4): it asks
whether a call from one side tends to be longer than one from the other, and assumes
nothing about how durations are distributed. As many functions are compared at once,
p-values are corrected by Holm's method (Holm 1979). With a million calls any difference
is significant; so the effect has to be at least small too: Cliff's delta of 0.147 or more
(Romano et al. 2006). The tails are compared by the confidence interval of the 99th
percentile from order statistics (Conover, Practical Nonparametric Statistics, 1999,
section 3.2), as a rare slow path leaves the rest of the calls as they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import numpy as np

from uftrace_remote.trace.fleet_tallies import FunctionKey
from uftrace_remote.trace.histogram import upper_edge
from uftrace_remote.trace.tallies import Tally

METHOD: Final = (
    "Mann-Whitney U test of all calls, Holm's correction, p < 0.01 and |Cliff's delta| >= 0.147; "
    "tails: 99.9 % confidence intervals of the 99th percentile"
)
_LEVEL: Final = 0.01
_LEAST_DELTA: Final = 0.147
# Where the normal approximation of U is good, and where ten calls are beyond a p99.
_LEAST_CALLS: Final = 8
_LEAST_FOR_TAIL: Final = 1000
_TAIL_Z: Final = 3.29
_LEAST_TAIL_RATIO: Final = 1.1


class Verdict(Enum):
    """What the second side is, compared with the first."""

    SLOWER = "slower"
    FASTER = "faster"
    SLOWER_TAIL = "slower tail"
    FASTER_TAIL = "faster tail"
    SAME = "same"
    TOO_FEW = "too few"
    ONLY_A = "only in A"
    ONLY_B = "only in B"


@dataclass(frozen=True, slots=True)
class Difference:
    """One function on two sides.

    Attributes:
        a: What it did on the first; None where it was not called.
        b: What it did on the second.
        p_value: How likely so large a difference is by chance, corrected for the number of
            functions; 1 where it was not tested.
        delta: Cliff's delta, -1 to 1: how much more often a call of B is longer than one of
            A than the other way round.
        verdict: What that means.
    """

    name: str
    module: str
    a: Tally | None
    b: Tally | None
    p_value: float = 1.0
    delta: float = 0.0
    verdict: Verdict = Verdict.SAME

    @property
    def ratio(self) -> float:
        """The mean duration of B by that of A; 0 where one has none."""
        if self.a is None or self.b is None or not self.a.avg_ns:
            return 0.0
        return self.b.avg_ns / self.a.avg_ns

    @property
    def is_significant(self) -> bool:
        """Whether there is something to look at."""
        return self.verdict not in (Verdict.SAME, Verdict.TOO_FEW)


def compare(a: Mapping[FunctionKey, Tally], b: Mapping[FunctionKey, Tally]) -> list[Difference]:
    """Every function of both sides, what differs most first."""
    found = [_compare(key, _called(a.get(key)), _called(b.get(key))) for key in {**a, **b}]
    tested = [place for place, each in enumerate(found) if each.verdict is Verdict.SAME]
    corrected = holm([found[place].p_value for place in tested])
    for place, p_value in zip(tested, corrected, strict=True):
        found[place] = _judge(replace(found[place], p_value=p_value))
    return sorted(found, key=_order)


def mann_whitney(a: Mapping[int, int], b: Mapping[int, int]) -> tuple[float, float]:
    """The two-sided p-value of the Mann-Whitney U test, and Cliff's delta.

    Args:
        a: How many values each bucket holds, one at least; those in a bucket count as equal.
        b: The same of the other side.
    """
    buckets = sorted({*a, *b})
    ours = np.array([a.get(each, 0) for each in buckets], np.float64)
    theirs = np.array([b.get(each, 0) for each in buckets], np.float64)
    count_a, count_b = ours.sum(), theirs.sum()
    below = np.concatenate([[0.0], np.cumsum(ours)[:-1]])
    wins = float((theirs * (below + ours / 2)).sum())
    pairs = float(count_a * count_b)
    total = float(count_a + count_b)
    ties = float(((ours + theirs) ** 3 - (ours + theirs)).sum())
    variance = pairs / 12 * (total + 1 - ties / (total * (total - 1)))
    delta = 2 * wins / pairs - 1
    if variance <= 0:
        return 1.0, delta
    # Half a step towards the mean: U is discrete, the normal distribution is not.
    z = max(abs(wins - pairs / 2) - 0.5, 0.0) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2)), delta


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's method."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def quantile_interval(counts: Mapping[int, int], share: float) -> tuple[int, int]:
    """Between what durations a quantile lies, with a confidence of 99.9 %, in nanoseconds."""
    total = sum(counts.values())
    spread = _TAIL_Z * math.sqrt(total * share * (1 - share))
    ranks = [max(total * share - spread, 1.0), min(total * share + spread, float(total))]
    edges = []
    for rank in ranks:
        left, edge = rank, 0
        for bucket in sorted(counts):
            left -= counts[bucket]
            edge = upper_edge(bucket)
            if left <= 0:
                break
        edges.append(edge)
    return edges[0], edges[1]


def _called(tally: Tally | None) -> Tally | None:
    return tally if tally is not None and tally.calls else None


def _compare(key: FunctionKey, a: Tally | None, b: Tally | None) -> Difference:
    difference = Difference(*key, a, b)
    if a is None or b is None:
        return replace(difference, verdict=Verdict.ONLY_A if b is None else Verdict.ONLY_B)
    if min(a.timed_calls, b.timed_calls) < _LEAST_CALLS:
        return replace(difference, verdict=Verdict.TOO_FEW)
    p_value, delta = mann_whitney(a.histogram, b.histogram)
    return replace(difference, p_value=p_value, delta=delta)


def _judge(each: Difference) -> Difference:
    assert each.a is not None and each.b is not None
    if each.p_value < _LEVEL and abs(each.delta) >= _LEAST_DELTA:
        return replace(each, verdict=Verdict.SLOWER if each.delta > 0 else Verdict.FASTER)
    if min(each.a.timed_calls, each.b.timed_calls) < _LEAST_FOR_TAIL:
        return each
    low_a, high_a = quantile_interval(each.a.histogram, 0.99)
    low_b, high_b = quantile_interval(each.b.histogram, 0.99)
    if low_b > high_a * _LEAST_TAIL_RATIO:
        return replace(each, verdict=Verdict.SLOWER_TAIL)
    if low_a > high_b * _LEAST_TAIL_RATIO:
        return replace(each, verdict=Verdict.FASTER_TAIL)
    return each


# What differs, by how much; then what is on one side only; then the rest by its time.
def _order(each: Difference) -> tuple[object, ...]:
    one_sided = each.verdict in (Verdict.ONLY_A, Verdict.ONLY_B)
    time = sum(tally.total_ns for tally in (each.a, each.b) if tally is not None)
    size = abs(math.log(each.ratio)) if each.ratio else 0.0
    rank = 0 if each.is_significant and not one_sided else 1 if one_sided else 2
    return (rank, -size if rank == 0 else 0.0, -time, each.name, each.module)
