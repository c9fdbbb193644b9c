"""The calls of a trace one by one, for programs that want objects."""

from __future__ import annotations

from collections.abc import Iterator

from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.model import Call, CallArray, CallFlag
from uftrace_remote.trace.paired import StreamPairer, paired_chunks
from uftrace_remote.trace.store import TraceReader
from uftrace_remote.trace.summary import TraceSummary


def read_calls(trace: TraceReader) -> Iterator[Call]:
    """All calls, a piece of a thread at a time; those that never ended come last."""
    pairer = StreamPairer()
    summary = trace.summary
    clock = summary.clock
    for tid, chunk in paired_chunks(trace.batches(), pairer):
        yield from _calls(tid, chunk.finished, summary, clock)
    for tid, thread in pairer.threads.items():
        yield from _calls(tid, thread.open_calls(), summary, clock)


def _calls(tid: int, rows: CallArray, summary: TraceSummary, clock: Clock) -> Iterator[Call]:
    for start, end, function, depth, flags in zip(
        clock.nanoseconds(rows["start"]).tolist(),
        clock.nanoseconds(rows["end"]).tolist(),
        rows["function"].tolist(),
        rows["depth"].tolist(),
        rows["flags"].tolist(),
        strict=True,
    ):
        entry_only = bool(flags & CallFlag.ENTRY_ONLY)
        yield Call(
            tid=tid,
            function=summary.function_name(function),
            start_ns=start,
            end_ns=None if flags & CallFlag.OPEN or entry_only else end,
            depth=depth,
            skipped=bool(flags & CallFlag.SKIPPED),
            entry_only=entry_only,
        )
