"""The calls of many hosts as one tree, with a column that says where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uftrace_remote.cli._lines import HEADER, LineFormatter
from uftrace_remote.fleet.merged_events import SOURCE_SHIFT, MergedEvents
from uftrace_remote.fleet.stream_values import MergedBatch
from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.records import RECORD_DTYPE
from uftrace_remote.trace.tree import CallTree, TreeFilter, TreeLine
from uftrace_remote.values import ClockAnchor, EventBatch, ThreadRecords

_FUNCTION_BITS = np.uint64(((1 << 24) - 1) << 4)
_TID_MASK = (1 << SOURCE_SHIFT) - 1


class MergedTree:
    """Makes lines of merged batches.

    A thread of the tree is an origin (source and thread); a function is a name, whatever
    its id is on each host.

    Args:
        labels: What to call the sources.
        functions: Of each source, the names of the functions to be shown, by id.
        wanted: What to show of them; its functions and threads are not looked at.
        tids: Only these threads; none shows all.
        color: Whether to use colours.
    """

    def __init__(
        self,
        labels: Sequence[str],
        functions: Sequence[dict[int, str]],
        wanted: TreeFilter,
        tids: frozenset[int],
        color: bool,
    ) -> None:
        self._labels = labels
        self._width = max(map(len, [*labels, "HOST"]))
        self._tids = np.array(sorted(tids), np.int64)
        # 0 stands for functions of others, which are not shown.
        self._names = ["", *sorted({name for of in functions for name in of.values()})]
        numbers = {name: number for number, name in enumerate(self._names)}
        tables = [_table(of, numbers) for of in functions]
        lengths = [len(table) for table in tables]
        self._numbers = np.concatenate(tables)
        self._last = np.array(lengths, np.int64) - 1
        self._begin = np.cumsum([0, *lengths[:-1]])
        self._wanted = TreeFilter(
            function_ids=frozenset(range(1, len(self._names))),
            max_depth=wanted.max_depth,
            min_duration_ns=wanted.min_duration_ns,
        )
        self._tree: CallTree | None = None
        self._formatter = LineFormatter(lambda number: self._names[number], color)

    @property
    def header(self) -> str:
        """Titles of the columns."""
        return f"# {'HOST':<{self._width}}{HEADER[1:]}"

    @property
    def calls_shown(self) -> int:
        """Calls with a line."""
        return self._tree.calls_shown if self._tree else 0

    @property
    def calls_dropped(self) -> int:
        """Calls that were left out because there was no room."""
        return self._tree.calls_dropped if self._tree else 0

    def feed(self, batch: MergedBatch, room: int) -> list[str]:
        """Takes the next batch; so many calls of it may be shown."""
        complete_to = batch.certainty.complete_to_ns
        if not complete_to:
            return []
        if self._tree is None:
            # Times are nanoseconds already: these are far from 0, and differences are exact.
            clock = Clock([ClockAnchor(complete_to, complete_to, 0, 1e9)])
            self._tree = CallTree(self._wanted, clock)
        threads = self._threads(batch.events)
        merged = EventBatch(1, threads, watermark_ticks=complete_to)
        return self._format(self._tree.feed(merged, room))

    def finish(self) -> list[str]:
        """Calls that are still open."""
        return self._format(self._tree.finish()) if self._tree else []

    def _threads(self, events: MergedEvents) -> list[ThreadRecords]:
        if not len(events):
            return []
        source, function = events.source, events.function
        at = self._begin[source] + np.minimum(function, self._last[source])
        packed = np.empty(len(events), RECORD_DTYPE)
        packed["ticks"] = events.time_ns
        packed["word"] = (events.word & ~_FUNCTION_BITS) | (self._numbers[at] << np.uint64(4))
        origin = events.origin
        if len(self._tids):
            chosen = np.isin(events.tid, self._tids)
            packed, origin = packed[chosen], origin[chosen]
            if not len(packed):
                return []
        order = np.argsort(origin, kind="stable")
        packed, origin = packed[order], origin[order]
        first = np.flatnonzero(np.concatenate([[True], origin[1:] != origin[:-1]]))
        pieces = np.split(packed, first[1:])
        return [
            ThreadRecords(number, piece.tobytes())
            for number, piece in zip(origin[first].tolist(), pieces, strict=True)
        ]

    def _format(self, lines: Sequence[TreeLine]) -> list[str]:
        labels, width, line_text = self._labels, self._width, self._formatter.format
        return [
            f"  {labels[line.tid >> SOURCE_SHIFT]:<{width}}"
            f"{line_text(line._replace(tid=line.tid & _TID_MASK))}"
            for line in lines
        ]


# The number of each function by its id on one host; the last place is for all others.
def _table(functions: dict[int, str], numbers: dict[str, int]) -> np.ndarray:
    table = np.zeros(max(functions, default=0) + 2, np.uint64)
    for function_id, name in functions.items():
        table[function_id] = numbers[name]
    return table
