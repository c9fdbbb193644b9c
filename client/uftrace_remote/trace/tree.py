"""The call tree as it happens: batches in, lines out, no I/O.

A call gets one line if nothing of what it called is shown, else one at its
begin and one at its end. What a call is becomes known only later, so its
first line is held back until it ends, a callee is shown, or it has been open
for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from uftrace_remote.enums import EndReason
from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.model import CallFlag, PairedChunk, empty_calls
from uftrace_remote.trace.paired import StreamPairer
from uftrace_remote.values import EventBatch

_UNLIMITED = 1 << 62
_SHOW_OPEN_AFTER_NS = 250_000_000


class LineKind(Enum):
    """Which line of a call it is."""

    LEAF = auto()
    BEGIN = auto()
    END = auto()


class TreeLine(NamedTuple):
    """One line of the tree (a tuple: there are a hundred thousand a second).

    Attributes:
        duration_ns: Time from entry to exit; None where it is not known.
        depth: How many shown calls are around it.
        skipped: The frame was left by longjmp, an exception or the thread's end.
        time_ns: The moment at which the line was due: they rise from line to line.
    """

    kind: LineKind
    tid: int
    function_id: int
    depth: int
    duration_ns: int | None = None
    skipped: bool = False
    time_ns: int = 0


@dataclass(frozen=True, slots=True)
class TreeFilter:
    """What to show.

    Attributes:
        function_ids: Only these functions; None shows all.
        tids: Only these threads (or goroutines); none shows all.
        max_depth: Only so many levels of nesting; 0 is no limit.
        min_duration_ns: Only calls that took so long.
    """

    function_ids: frozenset[int] | None = None
    tids: frozenset[int] = frozenset()
    max_depth: int = 0
    min_duration_ns: int = 0


# A begin that was not ended yet. `depth` counts shown calls only.
@dataclass(slots=True, eq=False)
class _OpenCall:
    tid: int
    function_id: int
    start_ns: int
    depth: int
    shown: bool
    parent: _OpenCall | None
    printed: bool = False


# One begin or end, ready to be put in order with those of other threads: time
# in ns, order of coming, tid, whether it is a begin, begin_seq, parent_seq,
# function id, flags.
_Event = tuple[int, int, int, bool, int, int, int, int]


@dataclass(slots=True)
class _Thread:
    open: dict[int, _OpenCall] = field(default_factory=dict)
    latest_ns: int = 0


class CallTree:
    """Makes lines of batches.

    Args:
        wanted: What to show.
        clock: The clock of the whole trace where it is known already; else
            the tree learns it from the batches.

    Attributes:
        calls_shown: Calls with a line.
        calls_dropped: Calls that were left out because there was no room.
        pairer: For its count of orphan exits.
    """

    def __init__(self, wanted: TreeFilter | None = None, clock: Clock | None = None) -> None:
        self.pairer = StreamPairer()
        self.clock = clock or Clock(keep=256)
        self._learns_clock = clock is None
        self.calls_shown = 0
        self.calls_dropped = 0
        self._wanted = wanted or TreeFilter()
        self._threads: dict[int, _Thread] = {}
        self._waiting: list[_Event] = []
        self._order = 0
        self._watermark_ns = 0
        # When the latest line was due.
        self._now_ns = 0

    def feed(self, batch: EventBatch, room: int = _UNLIMITED) -> list[TreeLine]:
        """Takes the next batch.

        Args:
            batch: The batch.
            room: How many calls of it may be shown; the others are dropped
                with all that they called, and counted.
        """
        if self._learns_clock:
            self.clock.add(batch.anchors)
        ended = batch.end is not EndReason.NONE
        for thread in batch.threads:
            chunk = self.pairer.feed(thread.tid, thread.records)
            room -= self._collect(thread.tid, chunk, max(room, 0))
        for number, chunk in self.pairer.release(None if ended else batch.watermark_ticks):
            room -= self._collect(number, chunk, max(room, 0))
        lines: list[TreeLine] = []
        if batch.watermark_ticks:
            self._watermark_ns = self.clock.nanosecond(batch.watermark_ticks)
        last = ended or not batch.watermark_ticks
        self._apply(lines, _UNLIMITED if last else self._watermark_ns)
        self._show_long_open(lines)
        return lines

    def finish(self) -> list[TreeLine]:
        """What is left at the end: calls that are still open get their first line."""
        lines: list[TreeLine] = []
        for number, chunk in self.pairer.release(None):
            self._collect(number, chunk, _UNLIMITED)
        self._apply(lines, _UNLIMITED)
        for call in self._open_calls():
            self._print_begin(call, lines)
        return lines

    @property
    def watermark_ns(self) -> int:
        """All records up to here have come; 0 where that is not known."""
        return self._watermark_ns

    @property
    def open_count(self) -> int:
        """Calls that have begun and not ended."""
        return sum(len(thread.open) for thread in self._threads.values())

    def _thread(self, tid: int) -> _Thread:
        thread = self._threads.get(tid)
        if thread is None:
            thread = self._threads[tid] = _Thread()
        return thread

    # Turns a chunk into events; returns how many calls of it will be shown.
    def _collect(self, tid: int, chunk: PairedChunk, room: int) -> int:
        if self._wanted.tids and tid not in self._wanted.tids:
            return 0
        chunk = self._without_hidden(chunk)
        numbers = np.concatenate([chunk.finished["begin_seq"], chunk.opened["begin_seq"]])
        new = np.sort(numbers[numbers >= chunk.first_seq])
        if len(new) > room:
            cutoff = int(new[room])
            late = chunk.finished["begin_seq"] >= cutoff
            self.calls_dropped += int(late.sum())
            chunk = PairedChunk(chunk.finished[~late], chunk.opened, chunk.first_seq)
        if not len(chunk.finished) and not len(chunk.opened):
            return 0
        rows = np.concatenate([chunk.finished, chunk.opened])
        moments = self.clock.nanoseconds(np.concatenate([rows["start"], rows["end"]]))
        # A new anchor may set the clock back a little: not within a thread.
        thread = self._thread(tid)
        moments = np.maximum(moments, thread.latest_ns)
        thread.latest_ns = int(moments.max())
        times = moments.tolist()
        columns = [rows[name].tolist() for name in ("begin_seq", "parent_seq", "function", "flags")]
        begin_seq, parent_seq, function, flags = columns
        order, count = self._order, len(rows)
        begins, places = chunk.event_order()
        for is_begin, row in zip(begins.tolist(), places.tolist(), strict=True):
            order += 1
            self._waiting.append(
                (
                    times[row if is_begin else row + count],
                    order,
                    tid,
                    is_begin,
                    begin_seq[row],
                    parent_seq[row],
                    function[row],
                    flags[row],
                )
            )
        self._order = order
        return min(len(new), room)

    # Leaves out what can never be shown, whole subtrees at a time. The rest
    # of the work is a Python loop.
    def _without_hidden(self, chunk: PairedChunk) -> PairedChunk:
        finished, opened = chunk.finished, chunk.opened
        if self._wanted.max_depth:
            finished = finished[finished["depth"] < self._wanted.max_depth]
            opened = opened[opened["depth"] < self._wanted.max_depth]
        if self._wanted.min_duration_ns and len(finished):
            took = self.clock.nanoseconds(finished["end"]) - self.clock.nanoseconds(
                finished["start"]
            )
            earlier = finished["begin_seq"] < chunk.first_seq
            finished = finished[earlier | (took >= self._wanted.min_duration_ns)]
        return PairedChunk(finished, opened if len(opened) else empty_calls(), chunk.first_seq)

    def _apply(self, lines: list[TreeLine], until: int) -> None:
        if not self._waiting:
            return
        self._waiting.sort()
        ready = len(self._waiting)
        while ready and self._waiting[ready - 1][0] > until:
            ready -= 1
        for event in self._waiting[:ready]:
            time_ns, _, tid, is_begin, begin_seq, parent_seq, function, flags = event
            # A clock that learns may go back a little.
            self._now_ns = max(self._now_ns, time_ns)
            thread = self._thread(tid)
            if is_begin:
                self._begin(thread, tid, begin_seq, parent_seq, function, time_ns)
            else:
                self._end(thread, begin_seq, time_ns, flags, lines)
        del self._waiting[:ready]

    def _begin(
        self,
        thread: _Thread,
        tid: int,
        begin_seq: int,
        parent_seq: int,
        function: int,
        start_ns: int,
    ) -> None:
        parent = thread.open.get(parent_seq)
        depth = 0 if parent is None else parent.depth + parent.shown
        ids = self._wanted.function_ids
        shown = ids is None or function in ids
        thread.open[begin_seq] = _OpenCall(tid, function, start_ns, depth, shown, parent)

    def _end(
        self, thread: _Thread, begin_seq: int, end_ns: int, flags: int, lines: list[TreeLine]
    ) -> None:
        call = thread.open.pop(begin_seq, None)
        if call is None or not call.shown:
            return
        duration = None
        if not flags & CallFlag.ENTRY_ONLY:
            duration = max(end_ns - call.start_ns, 0)
        if not call.printed:
            if (duration or 0) < self._wanted.min_duration_ns:
                return
            self._print_parents(call, lines)
            self.calls_shown += 1
        kind = LineKind.END if call.printed else LineKind.LEAF
        skipped = bool(flags & CallFlag.SKIPPED)
        lines.append(
            TreeLine(kind, call.tid, call.function_id, call.depth, duration, skipped, self._now_ns)
        )

    def _print_parents(self, call: _OpenCall, lines: list[TreeLine]) -> None:
        chain = []
        parent = call.parent
        while parent is not None and not parent.printed:
            chain.append(parent)
            parent = parent.parent
        for parent in reversed(chain):
            self._print_line(parent, lines)

    def _print_begin(self, call: _OpenCall, lines: list[TreeLine]) -> None:
        if not call.printed:
            self._print_parents(call, lines)
            self._print_line(call, lines)

    def _print_line(self, call: _OpenCall, lines: list[TreeLine]) -> None:
        call.printed = True
        if call.shown:
            self.calls_shown += 1
            lines.append(
                TreeLine(
                    LineKind.BEGIN,
                    call.tid,
                    call.function_id,
                    call.depth,
                    time_ns=self._now_ns,
                )
            )

    def _show_long_open(self, lines: list[TreeLine]) -> None:
        if not self._watermark_ns:
            return
        self._now_ns = max(self._now_ns, self._watermark_ns)
        least = max(self._wanted.min_duration_ns, _SHOW_OPEN_AFTER_NS)
        for call in self._open_calls():
            if not call.printed and self._watermark_ns - call.start_ns >= least:
                self._print_begin(call, lines)

    def _open_calls(self) -> Iterable[_OpenCall]:
        calls = [call for thread in self._threads.values() for call in thread.open.values()]
        calls.sort(key=lambda call: call.start_ns)
        return calls
