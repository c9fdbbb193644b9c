"""What a whole stream said beside its records."""

from __future__ import annotations

from collections.abc import Sequence

from uftrace_remote.enums import EndReason
from uftrace_remote.trace.clock import Clock
from uftrace_remote.values import (
    ClockAnchor,
    EventBatch,
    Loss,
    MappedModule,
    TracedFunction,
)


class TraceSummary:
    """Collects it batch by batch.

    Attributes:
        functions: By id.
        modules: The latest list.
        thread_names: By tid; every thread that wrote a record is in it.
        losses: The latest cumulative counts.
        record_count: Records seen.
        records_total: Records of the session up to the last batch, as the agent counts.
        last_ticks: The latest moment that the stream knows of.
    """

    def __init__(self) -> None:
        self.functions: dict[int, TracedFunction] = {}
        self.modules: Sequence[MappedModule] = ()
        self.thread_names: dict[int, str] = {}
        self.losses: Sequence[Loss] = ()
        self.record_count = 0
        self.records_total = 0
        self.last_ticks = 0
        self.end = EndReason.NONE
        self.end_detail = ""
        self._anchors: list[ClockAnchor] = []
        self._clock: Clock | None = None

    def add(self, batch: EventBatch) -> None:
        """Takes the next batch."""
        for function in batch.functions:
            self.functions[function.function_id] = function
        if batch.modules:
            self.modules = batch.modules
        if batch.anchors:
            self._anchors += batch.anchors
            self._clock = None
        for thread in batch.threads:
            if thread.name or thread.tid not in self.thread_names:
                self.thread_names[thread.tid] = thread.name
            if len(thread.records) >= 16:
                latest = int.from_bytes(thread.records[-16:-8], "little")
                self.last_ticks = max(self.last_ticks, latest)
        if batch.losses:
            self.losses = batch.losses
        self.record_count += batch.record_count
        self.records_total = max(self.records_total, batch.records_total)
        self.last_ticks = max(self.last_ticks, batch.watermark_ticks)
        if batch.end is not EndReason.NONE:
            self.end, self.end_detail = batch.end, batch.end_detail

    @property
    def clock(self) -> Clock:
        """The clock of all anchors."""
        if self._clock is None:
            self._clock = Clock(self._anchors)
        return self._clock

    @property
    def records_lost(self) -> int:
        """Records lost at all stages."""
        return sum(loss.records for loss in self.losses)

    def function_name(self, function_id: int) -> str:
        """The name behind an id; `func_ID` where it was never said."""
        function = self.functions.get(function_id)
        return function.name if function else f"func_{function_id}"
