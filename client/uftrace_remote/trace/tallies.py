"""Times per function in columns: millions of calls a second, and sums that can be added up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.histogram import BUCKETS, bucket_of, quantile
from uftrace_remote.trace.model import CallArray, CallFlag, PairedChunk
from uftrace_remote.trace.paired import StreamPairer, paired_chunks
from uftrace_remote.trace.store import TraceReader

_OPEN_END: Final = 1 << 40


@dataclass(slots=True)
class Tally:
    """What one function did; times in nanoseconds.

    Attributes:
        calls: All calls, with those that have no duration.
        timed_calls: Calls with a duration. The figures below are of these.
        open_calls: Calls that had not ended.
        total_ns: Time inside; calls inside another call of the same function on the same
            thread are not counted twice.
        all_ns: Sum of all durations.
        self_ns: Time inside, without traced callees.
        min_ns: The shortest; 0 where there is none.
        max_ns: The longest.
        histogram: Durations by bucket (`trace.histogram`).
    """

    calls: int = 0
    timed_calls: int = 0
    open_calls: int = 0
    total_ns: int = 0
    all_ns: int = 0
    self_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0
    histogram: Counter[int] = field(default_factory=Counter)

    @property
    def avg_ns(self) -> int:
        """The mean duration."""
        return self.all_ns // self.timed_calls if self.timed_calls else 0

    def quantile(self, share: float) -> int:
        """So large a share of the calls took no longer (to 0.8 %)."""
        return min(max(quantile(self.histogram, share), self.min_ns), self.max_ns)

    def add(self, other: Tally) -> None:
        """Adds what the function did elsewhere."""
        if other.timed_calls:
            known = self.timed_calls
            self.min_ns = min(self.min_ns, other.min_ns) if known else other.min_ns
            self.max_ns = max(self.max_ns, other.max_ns)
        self.calls += other.calls
        self.timed_calls += other.timed_calls
        self.open_calls += other.open_calls
        self.total_ns += other.total_ns
        self.all_ns += other.all_ns
        self.self_ns += other.self_ns
        self.histogram.update(other.histogram)


def sum_of(tallies: Iterable[Tally]) -> Tally:
    """All together."""
    total = Tally()
    for each in tallies:
        total.add(each)
    return total


class Tallies:
    """Adds calls up by function.

    Attributes:
        by_function: By function id.
    """

    def __init__(self) -> None:
        self.by_function: dict[int, Tally] = defaultdict(Tally)

    def add_chunk(self, chunk: PairedChunk, still_open: CallArray, clock: Clock) -> None:
        """Takes what a thread finished.

        Args:
            chunk: The next one of the thread.
            still_open: The thread's calls that are open behind it.
            clock: Of the stream.
        """
        self._add(chunk.finished, _nested(chunk, still_open), clock)

    def add_open(self, rows: CallArray, last_ticks: int, clock: Clock) -> None:
        """Takes a thread's calls that have not ended, as if they ended at a moment."""
        rows = close_open_calls(rows, last_ticks)
        self._add(rows, _nested(PairedChunk(rows[:0]), rows)[: len(rows)], clock)

    # Adds calls with their end filled in; `nested` says which of them are
    # inside another call of the same function.
    def _add(self, rows: CallArray, nested: NDArray[np.bool_], clock: Clock) -> None:
        if not len(rows):
            return
        ids, where = np.unique(rows["function"], return_inverse=True)
        timed = (rows["flags"] & int(CallFlag.ENTRY_ONLY)) == 0
        took = clock.nanoseconds(rows["end"]) - clock.nanoseconds(rows["start"])
        ticks = np.maximum(rows["end"] - rows["start"], 1)
        children = took * np.minimum(rows["children"] / ticks, 1.0)
        tallies = [self.by_function[each] for each in ids.tolist()]
        columns = (
            _sums(where, np.ones(len(rows)), len(ids)),
            _sums(where, timed, len(ids)),
            _sums(where, (rows["flags"] & int(CallFlag.OPEN)) != 0, len(ids)),
            _sums(where, took * timed, len(ids)),
            _sums(where, took * (timed & ~nested), len(ids)),
            _sums(where, np.where(timed, took - children, 0), len(ids)),
        )
        # The spread comes first: it asks whether anything was timed before.
        self._spread(rows["function"][timed], took[timed])
        for tally, calls, count, still_open, everything, outer, own in zip(
            tallies, *columns, strict=True
        ):
            tally.calls += calls
            tally.timed_calls += count
            tally.open_calls += still_open
            tally.all_ns += everything
            tally.total_ns += outer
            tally.self_ns += own

    def _spread(self, functions: NDArray[np.int32], took: NDArray[np.int64]) -> None:
        if not len(took):
            return
        keys, counts = np.unique(
            functions.astype(np.int64) * BUCKETS + bucket_of(took), return_counts=True
        )
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            function, bucket = divmod(key, BUCKETS)
            self.by_function[function].histogram[bucket] += count
        order = np.argsort(functions, kind="stable")
        ids, starts = np.unique(functions[order], return_index=True)
        least = np.minimum.reduceat(took[order], starts).tolist()
        most = np.maximum.reduceat(took[order], starts).tolist()
        for function, low, high in zip(ids.tolist(), least, most, strict=True):
            tally = self.by_function[function]
            tally.min_ns = min(low, tally.min_ns) if tally.timed_calls else low
            tally.max_ns = max(high, tally.max_ns)


def function_tallies(trace: TraceReader) -> dict[int, Tally]:
    """What every function did that was called, by id; open calls count up to the end."""
    summary = trace.summary
    pairer = StreamPairer()
    sums = Tallies()
    for tid, chunk in paired_chunks(trace.batches(), pairer):
        sums.add_chunk(chunk, pairer.threads[tid].open_calls(), summary.clock)
    for thread in pairer.threads.values():
        sums.add_open(thread.open_calls(), summary.last_ticks, summary.clock)
    return dict(sums.by_function)


def close_open_calls(rows: CallArray, last_ticks: int) -> CallArray:
    """Calls that are still open, as if they ended with the trace."""
    rows = rows.copy()
    rows["end"] = np.maximum(rows["start"], last_ticks)
    place = {seq: row for row, seq in enumerate(rows["begin_seq"].tolist())}
    for row, parent_seq in enumerate(rows["parent_seq"].tolist()):
        caller = place.get(parent_seq)
        if caller is not None:
            rows["children"][caller] += rows["end"][row] - rows["start"][row]
    return rows


# Which finished calls (or, without any, which open ones) are inside another
# call of the same function: one that began before and ends behind. That one
# is finished in this chunk too, or still open.
def _nested(chunk: PairedChunk, still_open: CallArray) -> NDArray[np.bool_]:
    rows = np.concatenate([chunk.finished, still_open])
    if not len(rows):
        return np.zeros(0, np.bool_)
    order = np.lexsort((rows["begin_seq"], rows["function"]))
    rows = rows[order]
    rank = np.cumsum(np.concatenate([[0], np.diff(rows["function"]) != 0])).astype(np.int64)
    # Open calls end behind all others, the inner ones first.
    end = np.where(rows["end_seq"] >= 0, rows["end_seq"], 2 * _OPEN_END - rows["begin_seq"])
    place = rank * (4 * _OPEN_END) + end
    inside = np.zeros(len(rows), np.bool_)
    inside[1:] = np.maximum.accumulate(place)[:-1] > place[1:]
    result = np.zeros(len(rows), np.bool_)
    result[order] = inside
    return result[: len(chunk.finished)] if len(chunk.finished) else result


def _sums(
    where: NDArray[np.intp],
    values: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_],
    count: int,
) -> list[int]:
    totals = np.bincount(where, weights=values, minlength=count)
    return [int(each) for each in np.rint(totals).astype(np.int64).tolist()]
