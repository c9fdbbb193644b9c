"""Times per function of a whole trace, in columns: millions of calls a second."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.model import CallArray, CallFlag, PairedChunk
from uftrace_remote.trace.paired import StreamPairer, paired_chunks
from uftrace_remote.trace.store import TraceReader

# The histogram keeps seven bits behind the leading one: quantiles are right
# to 0.8 %, at a few hundred buckets a function instead of all its durations.
_STEPS = 128
_BUCKETS = 64 * _STEPS

_OPEN_END = 1 << 40


@dataclass(frozen=True, slots=True)
class FunctionStatistics:
    """What one function did; times in nanoseconds.

    Attributes:
        total_ns: Time inside, callees included; calls inside another call of
            the same function on the same thread are not counted twice.
        self_ns: Time inside, without traced callees.
        calls: All calls, with those that have no duration.
        timed_calls: Calls with a duration. The other figures are of these.
        open_calls: Calls that had not ended; they count up to the trace's end.
        p99_ns: 99 of 100 calls took no longer (to 0.8 %).
    """

    function_id: int
    name: str
    module: str
    total_ns: int
    self_ns: int
    calls: int
    timed_calls: int
    open_calls: int
    min_ns: int
    avg_ns: int
    max_ns: int
    p99_ns: int


class _Accumulator:
    def __init__(self) -> None:
        self.calls: dict[int, int] = defaultdict(int)
        self.timed: dict[int, int] = defaultdict(int)
        self.open: dict[int, int] = defaultdict(int)
        self.outer: dict[int, int] = defaultdict(int)
        self.all: dict[int, int] = defaultdict(int)
        self.own: dict[int, int] = defaultdict(int)
        self.least: dict[int, int] = {}
        self.most: dict[int, int] = {}
        self.buckets: dict[int, int] = defaultdict(int)

    # Adds calls with their end filled in; `nested` says which of them are
    # inside another call of the same function.
    def add(self, rows: CallArray, nested: NDArray[np.bool_], clock: Clock) -> None:
        if not len(rows):
            return
        ids, where = np.unique(rows["function"], return_inverse=True)
        timed = (rows["flags"] & int(CallFlag.ENTRY_ONLY)) == 0
        took = clock.nanoseconds(rows["end"]) - clock.nanoseconds(rows["start"])
        ticks = np.maximum(rows["end"] - rows["start"], 1)
        children = took * np.minimum(rows["children"] / ticks, 1.0)
        _sum_up(self.calls, ids, where, np.ones(len(rows)))
        _sum_up(self.timed, ids, where, timed)
        _sum_up(self.open, ids, where, (rows["flags"] & int(CallFlag.OPEN)) != 0)
        _sum_up(self.all, ids, where, took * timed)
        _sum_up(self.outer, ids, where, took * (timed & ~nested))
        _sum_up(self.own, ids, where, np.where(timed, took - children, 0))
        self._spread(rows["function"][timed], took[timed])

    def _spread(self, functions: NDArray[np.int32], took: NDArray[np.int64]) -> None:
        if not len(took):
            return
        keys, counts = np.unique(
            functions.astype(np.int64) * _BUCKETS + _bucket(took), return_counts=True
        )
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self.buckets[key] += count
        order = np.argsort(functions, kind="stable")
        ids, starts = np.unique(functions[order], return_index=True)
        least = np.minimum.reduceat(took[order], starts).tolist()
        most = np.maximum.reduceat(took[order], starts).tolist()
        for function, low, high in zip(ids.tolist(), least, most, strict=True):
            self.least[function] = min(low, self.least.get(function, low))
            self.most[function] = max(high, self.most.get(function, high))


def function_statistics(trace: TraceReader) -> list[FunctionStatistics]:
    """The statistics of every function that was called, the largest total first."""
    summary = trace.summary
    clock = summary.clock
    pairer = StreamPairer()
    sums = _Accumulator()
    for tid, chunk in paired_chunks(trace.batches(), pairer):
        still_open = pairer.threads[tid].open_calls()
        sums.add(chunk.finished, _nested(chunk, still_open), clock)
    for thread in pairer.threads.values():
        rows = close_open_calls(thread.open_calls(), summary.last_ticks)
        sums.add(rows, _nested(PairedChunk(rows[:0]), rows)[: len(rows)], clock)
    quantiles = _quantiles(sums.buckets, 0.99)
    found = []
    for function, calls in sums.calls.items():
        known = summary.functions.get(function)
        timed = sums.timed[function]
        low, high = sums.least.get(function, 0), sums.most.get(function, 0)
        found.append(
            FunctionStatistics(
                function_id=function,
                name=summary.function_name(function),
                module=known.module if known else "",
                total_ns=sums.outer[function],
                self_ns=sums.own[function],
                calls=calls,
                timed_calls=timed,
                open_calls=sums.open[function],
                min_ns=low,
                avg_ns=sums.all[function] // timed if timed else 0,
                max_ns=high,
                p99_ns=min(max(quantiles.get(function, 0), low), high),
            )
        )
    found.sort(key=lambda each: (-each.total_ns, -each.calls, each.name))
    return found


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


def _sum_up(
    sums: dict[int, int],
    ids: NDArray[np.int32],
    where: NDArray[np.intp],
    values: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_],
) -> None:
    totals = np.bincount(where, weights=values, minlength=len(ids))
    for function, total in zip(
        ids.tolist(), np.rint(totals).astype(np.int64).tolist(), strict=True
    ):
        sums[function] += total


def _bucket(durations: NDArray[np.int64]) -> NDArray[np.int64]:
    fraction, exponent = np.frexp(durations.astype(np.float64))
    step = ((fraction - 0.5) * 2 * _STEPS).astype(np.int64)
    return np.where(durations > 0, exponent.astype(np.int64) * _STEPS + step, 0)


def _quantiles(buckets: dict[int, int], share: float) -> dict[int, int]:
    by_function: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for key in sorted(buckets):
        by_function[key // _BUCKETS].append((key % _BUCKETS, buckets[key]))
    found = {}
    for function, counts in by_function.items():
        left = share * sum(count for _, count in counts)
        for bucket, count in counts:
            left -= count
            if left <= 0:
                # The upper end of the bucket, so that the claim holds.
                exponent, step = divmod(bucket + 1, _STEPS)
                found[function] = int((0.5 + step / (2 * _STEPS)) * 2.0**exponent)
                break
    return found
