"""What functions do at the moment: windows of a stream, in columns. No I/O."""

from __future__ import annotations

from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.fleet_tallies import FunctionKey
from uftrace_remote.trace.paired import StreamPairer
from uftrace_remote.trace.tallies import Tallies, Tally
from uftrace_remote.values import EventBatch, TracedFunction


class RateMeter:
    """Adds up the calls that ended since it was last asked."""

    def __init__(self) -> None:
        self._pairer = StreamPairer()
        self._clock = Clock(keep=256)
        self._functions: dict[int, TracedFunction] = {}
        self._tallies = Tallies()

    def feed(self, batch: EventBatch) -> None:
        """Takes the next batch."""
        for function in batch.functions:
            self._functions[function.function_id] = function
        self._clock.add(batch.anchors)
        for thread in batch.threads:
            chunk = self._pairer.feed(thread.tid, thread.records)
            still_open = self._pairer.threads[thread.tid].open_calls()
            self._tallies.add_chunk(chunk, still_open, self._clock)
        for number, chunk in self._pairer.release(batch.watermark_ticks):
            still_open = self._pairer.threads[number].open_calls()
            self._tallies.add_chunk(chunk, still_open, self._clock)

    def take(self) -> dict[FunctionKey, Tally]:
        """The calls that ended since the last time, by name and module."""
        taken: dict[FunctionKey, Tally] = {}
        for function, tally in self._tallies.by_function.items():
            known = self._functions.get(function)
            name = known.name if known else f"func_{function}"
            taken.setdefault((name, known.module if known else ""), Tally()).add(tally)
        self._tallies = Tallies()
        return taken
