"""What one agent sends, as columns on our clock. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.enums import EndReason, LossStage
from uftrace_remote.fleet.source_clock import SmoothOffset, SourceClock
from uftrace_remote.trace.records import RECORD_DTYPE, packed_records
from uftrace_remote.trace.strands import StrandSorter
from uftrace_remote.values import EventBatch, TracedFunction

# Threads whose last moment is remembered before those of long ago are forgotten.
_MOST_THREADS: Final = 4096


@dataclass(frozen=True, slots=True)
class Columns:
    """Records of one source, in the order of each thread.

    Attributes:
        time_ns: int64, our CLOCK_MONOTONIC.
        tid: int64, the thread on its host, or the number of a goroutine.
        word: uint64, as in `trace/records.py`.
        watermark_ns: Nothing earlier will come; 0 is unknown.
    """

    time_ns: NDArray[np.int64]
    tid: NDArray[np.int64]
    word: NDArray[np.uint64]
    watermark_ns: int


class SourceColumns:
    """Turns the batches of one stream into columns, and keeps what they say beside.

    Args:
        offset: The clock of its host.

    Attributes:
        functions: By id.
        thread_names: By tid.
        losses: Records lost since the stream began, by stage.
        markers: Records that only said whose those after them are; they are no events.
        records: Records that came, with the markers.
        held: Records of goroutines that wait for what may come before them.
    """

    def __init__(self, offset: SmoothOffset) -> None:
        self.functions: dict[int, TracedFunction] = {}
        self.thread_names: dict[int, str] = {}
        self.losses: Mapping[LossStage, int] = {}
        self.records = 0
        self.markers = 0
        self._clock = SourceClock(offset)
        self._strands = StrandSorter()
        self._named_strands = 0
        self._latest: dict[int, int] = {}

    @property
    def held(self) -> int:
        """Records of goroutines that wait."""
        return self._strands.held

    def take(self, batch: EventBatch) -> Columns:
        """Takes the next batch."""
        for anchor in batch.anchors:
            self._clock.add(anchor)
        for function in batch.functions:
            self.functions[function.function_id] = function
        if batch.losses:
            losses: dict[LossStage, int] = {}
            for loss in batch.losses:
                losses[loss.stage] = losses.get(loss.stage, 0) + loss.records
            self.losses = losses
        for thread in batch.threads:
            if thread.name:
                self.thread_names[thread.tid] = thread.name
        is_last = batch.end is not EndReason.NONE
        watermark_ns = 0
        if batch.watermark_ticks and self._clock.is_set:
            watermark_ns = self._clock.nanosecond(batch.watermark_ticks)
        tids, lengths, packed = self._pieces(batch, is_last)
        if not lengths:
            empty = np.zeros(0, np.int64)
            return Columns(empty, empty, np.zeros(0, np.uint64), watermark_ns)
        ticks, word = _ordered(packed, lengths)
        ends = np.cumsum(lengths)
        time_ns = self._clock.nanoseconds(ticks)
        self._keep_order(time_ns, tids, lengths, ends)
        if len(self._latest) > _MOST_THREADS and watermark_ns:
            self._latest = {tid: at for tid, at in self._latest.items() if at >= watermark_ns}
        return Columns(time_ns, np.repeat(np.array(tids, np.int64), lengths), word, watermark_ns)

    # The records of each thread in a row, those of goroutines as of threads of their own.
    def _pieces(self, batch: EventBatch, is_last: bool) -> tuple[list[int], list[int], Any]:
        self.records += batch.record_count
        tids, pieces = [], []
        count = self._strands.held
        for thread in batch.threads:
            packed = packed_records(thread.records)
            count += len(packed)
            own = self._strands.take(packed)
            if len(own):
                tids.append(thread.tid)
                pieces.append(own)
        if self._strands.held and (is_last or batch.watermark_ticks):
            for number, packed in self._strands.release(None if is_last else batch.watermark_ticks):
                tids.append(number)
                pieces.append(packed)
            names = self._strands.names()
            if len(names) > self._named_strands:
                self.thread_names |= names
                self._named_strands = len(names)
        lengths = [len(piece) for piece in pieces]
        self.markers += count - sum(lengths) - self._strands.held
        if len(pieces) == 1:
            return tids, lengths, pieces[0]
        joined = np.concatenate(pieces) if pieces else np.zeros(0, RECORD_DTYPE)
        return tids, lengths, joined

    # A thread's records are in order, and not before those that came before: a probe that
    # a signal handler interrupted, or an anchor that was missing, may be off by a little.
    def _keep_order(
        self,
        time_ns: NDArray[np.int64],
        tids: list[int],
        lengths: list[int],
        ends: NDArray[np.int64],
    ) -> None:
        firsts = time_ns[ends - lengths].tolist()
        lasts = time_ns[ends - 1].tolist()
        latest = self._latest
        for place, (tid, first, last) in enumerate(zip(tids, firsts, lasts, strict=True)):
            before = latest.get(tid, 0)
            if first < before:
                end = int(ends[place])
                piece = time_ns[end - lengths[place] : end]
                np.maximum(piece, before, out=piece)
            latest[tid] = max(last, before)


# Ticks and words of pieces that lie in a row, each put in order of time.
def _ordered(packed: Any, lengths: list[int]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    ticks = packed["ticks"].astype(np.int64)
    word = np.ascontiguousarray(packed["word"])
    falls = np.count_nonzero(ticks[1:] < ticks[:-1])
    if falls >= len(lengths) or (falls and _falls_inside(ticks, lengths)):
        piece = np.repeat(np.arange(len(lengths)), lengths)
        order = np.lexsort((ticks, piece))
        ticks, word = ticks[order], word[order]
    return ticks, word


def _falls_inside(ticks: NDArray[np.int64], lengths: list[int]) -> bool:
    falls = np.flatnonzero(ticks[1:] < ticks[:-1]) + 1
    return not bool(np.isin(falls, np.cumsum(lengths)).all())
