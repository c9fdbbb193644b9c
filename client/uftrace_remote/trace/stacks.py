"""Time by call stack: the tree that a flame graph draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.model import CallArray, CallFlag, PairedChunk
from uftrace_remote.trace.paired import StreamPairer, paired_chunks
from uftrace_remote.trace.store import TraceReader
from uftrace_remote.trace.tallies import close_open_calls

_FUNCTIONS = 1 << 24


@dataclass(slots=True)
class StackNode:
    """One function below one chain of callers.

    Attributes:
        self_ns: Time in it without traced callees.
        calls: How often it was called from there.
    """

    function_id: int
    parent: int
    self_ns: int = 0
    calls: int = 0


class StackTree:
    """All stacks of a trace. A node's parent comes before it; -1 is the root.

    Attributes:
        nodes: The nodes.
    """

    def __init__(self) -> None:
        self.nodes: list[StackNode] = []
        self._index: dict[int, int] = {}
        # Nodes of calls that have not ended, by thread and begin number.
        self._open: dict[int, dict[int, int]] = {}

    def add(self, tid: int, chunk: PairedChunk, clock: Clock) -> None:
        """Takes the next chunk of a thread."""
        carried = self._open.setdefault(tid, {})
        rows = chunk.begun()
        nodes = self._nodes_of(rows, carried)
        ended = rows["end_seq"] >= 0
        self._charge(rows[ended], nodes[ended], clock)
        earlier = chunk.finished[chunk.finished["begin_seq"] < chunk.first_seq]
        ends = [carried.pop(seq) for seq in earlier["begin_seq"].tolist()]
        self._charge(earlier, np.array(ends, np.int64), clock)
        still_open = rows[~ended]["begin_seq"].tolist()
        carried.update(zip(still_open, nodes[~ended].tolist(), strict=True))

    def add_open(self, tid: int, rows: CallArray, clock: Clock) -> None:
        """Takes the calls of a thread that never ended, with an end filled in."""
        carried = self._open.get(tid, {})
        nodes = [carried[seq] for seq in rows["begin_seq"].tolist()]
        self._charge(rows, np.array(nodes, np.int64), clock)

    def total_ns(self) -> list[int]:
        """For each node its time with all callees."""
        totals = [node.self_ns for node in self.nodes]
        for index in range(len(self.nodes) - 1, -1, -1):
            parent = self.nodes[index].parent
            if parent >= 0:
                totals[parent] += totals[index]
        return totals

    # The node of each row, one level of nesting after the other.
    def _nodes_of(self, rows: CallArray, carried: dict[int, int]) -> NDArray[np.int64]:
        nodes = np.full(len(rows), -1, np.int64)
        begins, parents = rows["begin_seq"], rows["parent_seq"]
        places = np.minimum(np.searchsorted(begins, parents), max(len(rows) - 1, 0))
        for depth in np.unique(rows["depth"]).tolist():
            level = np.flatnonzero(rows["depth"] == depth)
            known = begins[places[level]] == parents[level]
            above = np.where(known, nodes[places[level]], -1)
            for place in np.flatnonzero(~known & (parents[level] >= 0)).tolist():
                above[place] = carried.get(int(parents[level][place]), -1)
            keys = (above + 1) * _FUNCTIONS + rows["function"][level]
            distinct, where = np.unique(keys, return_inverse=True)
            found = [self._node(key) for key in distinct.tolist()]
            nodes[level] = np.array(found, np.int64)[where]
        return nodes

    def _node(self, key: int) -> int:
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self.nodes)
            above, function = divmod(key, _FUNCTIONS)
            self.nodes.append(StackNode(function, above - 1))
        return index

    def _charge(self, rows: CallArray, nodes: NDArray[np.int64], clock: Clock) -> None:
        if not len(rows):
            return
        took = clock.nanoseconds(rows["end"]) - clock.nanoseconds(rows["start"])
        ticks = np.maximum(rows["end"] - rows["start"], 1)
        own = took * (1.0 - np.minimum(rows["children"] / ticks, 1.0))
        own[(rows["flags"] & int(CallFlag.ENTRY_ONLY)) != 0] = 0
        distinct, where = np.unique(nodes, return_inverse=True)
        times = np.bincount(where, weights=own).tolist()
        calls = np.bincount(where).tolist()
        for index, time, count in zip(distinct.tolist(), times, calls, strict=True):
            self.nodes[index].self_ns += round(time)
            self.nodes[index].calls += count


def stack_tree(trace: TraceReader) -> StackTree:
    """The stacks of a whole trace; open calls count up to its end."""
    pairer = StreamPairer()
    summary = trace.summary
    tree = StackTree()
    for tid, chunk in paired_chunks(trace.batches(), pairer):
        tree.add(tid, chunk, summary.clock)
    for tid, thread in pairer.threads.items():
        rows = close_open_calls(thread.open_calls(), summary.last_ticks)
        tree.add_open(tid, rows, summary.clock)
    return tree
