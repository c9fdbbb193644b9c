"""The stream of one process: from before its first tracepoint to behind its last record."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from uftrace_remote.cli._progress import clear_line
from uftrace_remote.cli._throttles import ThrottleNotes
from uftrace_remote.cli._tracing import BatchPump, Hold, release, unpatch_own
from uftrace_remote.enums import EndReason, LossStage
from uftrace_remote.errors import UftraceError
from uftrace_remote.trace.summary import TraceSummary
from uftrace_remote.values import EventBatch, PatchResult

_TICK_SECONDS = 0.2
# After unpatching, how long to wait for what the rings still hold.
_DRAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What came of a stream.

    Attributes:
        produced: Records that the target produced, as the agent counts.
        delivered: Records that came.
        lost: Records lost, at all stages.
        losses: The same by stage.
        exact: Whether produced = delivered + lost; None where the agent could
            not be asked any more.
    """

    produced: int
    delivered: int
    lost: int
    losses: dict[str, int]
    exact: bool | None


class Reading:
    """Reads everything that a process records, and leaves it as it was.

    `begin`, patch, `collect`, `leave`; `close` whatever happens.

    Args:
        held: The process.
        take: Given every batch.
        target: What the user called it.
        on_silence: Told when nothing has come for too long; None prints a line.

    Attributes:
        seen: What the stream said.
        last: The batch that ended the stream; None where it was not the stream that ended.
    """

    def __init__(
        self,
        held: Hold,
        take: Callable[[EventBatch], None],
        target: str,
        on_silence: Callable[[], None] | None = None,
    ) -> None:
        self.held = held
        self.seen = TraceSummary()
        self.last: EventBatch | None = None
        self._broken_at = 0.0
        self._take_batch = take
        self._throttles = ThrottleNotes(target)
        self._before_first: int | None = None
        self._produced: int | None = None
        # In a session of our own nothing can be missed; in somebody else's the stream has
        # to run before the first tracepoint does.
        stream = held.agent.stream(
            held.session_id, include_buffered=held.created, on_break=self._note_break
        )
        self._pump = BatchPump(stream, on_silence)

    async def begin(self) -> None:
        """Returns when the next call that is traced will be seen."""
        if not self.held.created:
            await self._pump.wait_for_first()

    async def collect(
        self,
        stop: asyncio.Event,
        deadline: float | None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Reads until something ends it.

        Args:
            stop: Ends it.
            deadline: Ends it, in seconds of `time.monotonic()`.
            tick: Called some times a second.

        Raises:
            UftraceError: The stream broke, or a batch could not be taken.
        """
        while not stop.is_set():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                break
            wait = _TICK_SECONDS if deadline is None else min(deadline - now, _TICK_SECONDS)
            with contextlib.suppress(TimeoutError):
                batch = await self._pump.next(max(wait, 0.001))
                if batch is None:
                    break
                if self._take(batch):
                    self.last = batch
                    return
            tick()

    async def leave(self, result: PatchResult | None) -> None:
        """Unpatches, takes what the rings still hold, and detaches if we attached.

        Args:
            result: What this command enabled; None: nothing.
        """
        held = self.held
        if self.last is not None:
            detached = await release(held, result)
            self._produced = detached.records_produced if detached else self._stream_total()
            return
        await unpatch_own(held, result)
        await self._drain()
        if not held.created:
            self._produced = self._stream_total()
            return
        detached = await release(held, result)
        # What threads recorded between the last look and the detach.
        deadline = time.monotonic() + _DRAIN_SECONDS
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < deadline:
                batch = await self._pump.next(deadline - time.monotonic())
                if batch is None or self._take(batch):
                    break
        self._produced = detached.records_produced if detached else None

    async def close(self) -> None:
        """Ends the stream."""
        await self._pump.close()

    @property
    def silent_seconds(self) -> float:
        """How long nothing has come, not even a heartbeat."""
        return self._pump.silent_seconds

    @property
    def is_broken(self) -> bool:
        """Whether the connection broke, and nothing has come since."""
        return self._broken_at > self._pump.latest

    @property
    def counts(self) -> Counts:
        """What came of it, so far."""
        losses: dict[str, int] = {}
        for loss in self.seen.losses:
            name = loss.stage.name.lower()
            losses[name] = losses.get(name, 0) + loss.records
        total = self.seen.record_count + self.seen.records_lost
        return Counts(
            produced=total if self._produced is None else self._produced,
            delivered=self.seen.record_count,
            lost=self.seen.records_lost,
            losses=losses,
            exact=None if self._produced is None else self._produced == total,
        )

    def _note_break(self, error: UftraceError) -> None:
        self._broken_at = time.monotonic()

    async def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        wanted = await self._session_produced()
        while time.monotonic() < deadline:
            have = self.seen.record_count + self.seen.records_lost
            if not self._pump.waiting and (not self.held.created or have >= wanted):
                return
            with contextlib.suppress(TimeoutError):
                batch = await self._pump.next(_TICK_SECONDS)
                if batch is None or self._take(batch):
                    return

    async def _session_produced(self) -> int:
        for session in await self.held.agent.sessions():
            if session.session_id == self.held.session_id:
                return session.records_produced
        return 0

    # Hands a batch on; returns whether it was the last.
    def _take(self, batch: EventBatch) -> bool:
        if self._before_first is None:
            self._before_first = batch.records_total - batch.record_count
        self._take_batch(batch)
        self.seen.add(batch)
        if batch.throttled:
            clear_line()
            self._throttles.show(batch)
        return batch.end is not EndReason.NONE

    # In a session that others use too, only what the session put into batches
    # while we listened is ours to account for, and what its rings lost.
    def _stream_total(self) -> int:
        before = self._before_first or 0
        in_rings = sum(
            loss.records
            for loss in self.seen.losses
            if loss.stage not in (LossStage.STREAM, LossStage.AGENT)
        )
        return self.seen.records_total - before + in_rings
