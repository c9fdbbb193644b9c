"""Times per function of a whole trace."""

from __future__ import annotations

from dataclasses import dataclass

from uftrace_remote.trace.store import TraceReader
from uftrace_remote.trace.tallies import Tally, function_tallies


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


def function_statistics(trace: TraceReader) -> list[FunctionStatistics]:
    """The statistics of every function that was called, the largest total first."""
    summary = trace.summary
    found = []
    for function, tally in function_tallies(trace).items():
        known = summary.functions.get(function)
        name, module = summary.function_name(function), known.module if known else ""
        found.append(statistics_of(tally, name, module, function))
    found.sort(key=lambda each: (-each.total_ns, -each.calls, each.name))
    return found


def statistics_of(tally: Tally, name: str, module: str, function_id: int = 0) -> FunctionStatistics:
    """The figures of a tally."""
    return FunctionStatistics(
        function_id=function_id,
        name=name,
        module=module,
        total_ns=tally.total_ns,
        self_ns=tally.self_ns,
        calls=tally.calls,
        timed_calls=tally.timed_calls,
        open_calls=tally.open_calls,
        min_ns=tally.min_ns,
        avg_ns=tally.avg_ns,
        max_ns=tally.max_ns,
        p99_ns=tally.quantile(0.99),
    )
