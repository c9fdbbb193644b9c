"""The records of one thread in uftrace's own format.

u64 time    CLOCK_MONOTONIC, ns
u64 word    bits 0-1 type (0 entry, 1 exit), bit 2 more, bits 3-5 magic 5,
            bits 6-15 depth, bits 16-63 address
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.model import CallArray, PairedChunk

MAX_DEPTH = 1023

_ENTRY = 0
_EXIT = 1
_MAGIC = 5 << 3
_DTYPE = np.dtype([("time", "<u8"), ("word", "<u8")])


class ThreadEncoder:
    """Encodes the chunks of one thread.

    uftrace knows one stack for each thread. Where calls do not nest (fibers),
    a call that is left behind on its stack is ended when another stack goes
    on, and entered again when its own does.

    Args:
        address_of: Addresses by function id.
        clock: The trace's clock.

    Attributes:
        calls: Calls encoded.
        cut: Calls left out because they are nested too deep for the format.
        pieces: Times that a call was ended before its time.
    """

    def __init__(self, address_of: NDArray[np.uint64], clock: Clock) -> None:
        self.calls = 0
        self.cut = 0
        self.pieces = 0
        self._address_of = address_of
        self._clock = clock
        self._latest = 0
        # begin_seq of the calls that the reader has open, outermost first.
        self._stack: list[int] = []
        # Function and parent of open calls by begin_seq: needed only once
        # something did not nest.
        self._open: dict[int, tuple[int, int]] = {}
        self._irregular = False

    def encode(self, chunk: PairedChunk) -> bytes:
        """The next chunk as records."""
        rows = np.concatenate([chunk.finished, chunk.opened])
        is_begin, row = chunk.event_order()
        if not len(row):
            return b""
        ticks = np.where(is_begin, rows["start"][row], rows["end"][row])
        times = np.maximum(np.maximum.accumulate(self._clock.nanoseconds(ticks)), self._latest)
        self._latest = int(times[-1])
        self.calls += int(is_begin.sum())
        if not self._irregular and self._nests(rows, row, is_begin):
            encoded = self._pack(
                times, ~is_begin, rows["depth"][row], self._address_of[rows["function"][row]]
            )
        else:
            self._irregular = True
            encoded = self._one_by_one(rows, row, is_begin, times)
        self._remember_open(rows, chunk.opened)
        return encoded

    # Whether begins and ends are those of one stack.
    def _nests(self, rows: CallArray, row: NDArray[np.int64], is_begin: NDArray[np.bool_]) -> bool:
        after = len(self._stack) + np.cumsum(np.where(is_begin, 1, -1))
        level = np.where(is_begin, after - 1, after)
        return bool((level == rows["depth"][row]).all())

    def _pack(
        self,
        times: NDArray[np.int64],
        exits: NDArray[np.bool_],
        depth: NDArray[np.int32] | NDArray[np.int64],
        address: NDArray[np.uint64],
    ) -> bytes:
        fits = depth <= MAX_DEPTH
        self.cut += int((~fits & ~exits).sum())
        records = np.empty(len(times), _DTYPE)
        records["time"] = times
        records["word"] = (
            np.where(exits, _EXIT, _ENTRY).astype(np.uint64)
            | np.uint64(_MAGIC)
            | (depth.astype(np.uint64) << np.uint64(6))
            | (address << np.uint64(16))
        )
        return records[fits].tobytes()

    def _one_by_one(
        self,
        rows: CallArray,
        row: NDArray[np.int64],
        is_begin: NDArray[np.bool_],
        times: NDArray[np.int64],
    ) -> bytes:
        out: list[tuple[int, int, int, int]] = []
        function = rows["function"].tolist()
        begin_seq = rows["begin_seq"].tolist()
        parent_seq = rows["parent_seq"].tolist()
        for index, begins, time in zip(
            row.tolist(), is_begin.tolist(), times.tolist(), strict=True
        ):
            seq = begin_seq[index]
            if begins:
                self._open[seq] = (function[index], parent_seq[index])
                self._switch_to(parent_seq[index], time, out)
                self._enter(seq, time, out)
            elif seq in self._stack:
                self._leave_down_to(seq, time, out)
                self._leave(time, out)
                del self._open[seq]
            else:
                self._open.pop(seq, None)
        columns = np.array(out, np.int64).reshape(-1, 4)
        address = self._address_of[columns[:, 3]]
        return self._pack(columns[:, 0], columns[:, 1] == _EXIT, columns[:, 2], address)

    # Makes a call the innermost one: ends what is above it, or enters it
    # again with its callers.
    def _switch_to(self, seq: int, time: int, out: list[tuple[int, int, int, int]]) -> None:
        chain: list[int] = []
        while seq in self._open and seq not in self._stack:
            chain.append(seq)
            seq = self._open[seq][1]
        self._leave_down_to(seq if seq in self._stack else -1, time, out)
        for again in reversed(chain):
            self._enter(again, time, out)

    def _leave_down_to(self, seq: int, time: int, out: list[tuple[int, int, int, int]]) -> None:
        while self._stack and self._stack[-1] != seq:
            self.pieces += 1
            self._leave(time, out)

    def _enter(self, seq: int, time: int, out: list[tuple[int, int, int, int]]) -> None:
        out.append((time, _ENTRY, len(self._stack), self._open[seq][0]))
        self._stack.append(seq)

    def _leave(self, time: int, out: list[tuple[int, int, int, int]]) -> None:
        seq = self._stack.pop()
        out.append((time, _EXIT, len(self._stack), self._open[seq][0]))

    # After a regular chunk, the reader's stack is what is open.
    def _remember_open(self, rows: CallArray, opened: CallArray) -> None:
        if self._irregular:
            return
        ended = set(rows["begin_seq"][rows["end_seq"] >= 0].tolist())
        self._stack = [seq for seq in self._stack if seq not in ended]
        for seq in ended:
            self._open.pop(seq, None)
        for call in opened[np.argsort(opened["begin_seq"])]:
            seq = int(call["begin_seq"])
            self._stack.append(seq)
            self._open[seq] = (int(call["function"]), int(call["parent_seq"]))
