"""The events of many processes as one stream.

    async with fleet.stream(members) as stream:
        async for batch in stream:
            print(batch.certainty, batch.events.time_ns)

Each process has a reader of its own, which goes on after the last batch that came when
a connection breaks. Nobody waits for a slow, frozen or dead agent; `batch.sources` says
who is. A consumer that is slow costs records, which are counted, and no memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Final

from uftrace_remote.enums import EndReason
from uftrace_remote.errors import StreamBrokenError, UftraceError
from uftrace_remote.fleet.agents import measure_clocks
from uftrace_remote.fleet.member import Agent, Member
from uftrace_remote.fleet.merge import Merger
from uftrace_remote.fleet.merged_events import Certainty, MergedEvents, joined
from uftrace_remote.fleet.source_clock import SmoothOffset
from uftrace_remote.fleet.source_columns import SourceColumns
from uftrace_remote.fleet.stream_values import (
    MERGE,
    MergedBatch,
    SourceNames,
    SourceState,
    SourceStatus,
    StreamOptions,
)
from uftrace_remote.values import EventBatch, Throttle

# Something is given so often, also where nothing happens.
_HEARTBEAT_NS: Final = 1_000_000_000
# A measurement that takes longer than this says nothing that is worth it.
_MEASURE_SECONDS: Final = 5.0
_WATCH_SECONDS: Final = 0.1
# Our own loop stood still for so long: what waits at the sockets has to be read before
# anybody is called silent.
_STALL_NS: Final = 400_000_000
_CANCEL_SECONDS: Final = 1.0


class _Source:
    """One process, as far as this client has come with it."""

    def __init__(self, number: int, member: Member, offset: SmoothOffset) -> None:
        self.number = number
        self.member = member
        self.offset = offset
        self.columns = SourceColumns(offset)
        self.heard_ns = self.since_ns = time.monotonic_ns()
        self.state = SourceState.WAITING
        self.error: UftraceError | None = None
        self.end = EndReason.NONE
        self.detail = ""

    def is_in(self, state: SourceState, since_ns: int) -> None:
        if self.state not in (state, SourceState.ENDED):
            self.state, self.since_ns = state, since_ns


class FleetStream:
    """Merges the streams of processes; enter it, iterate, leave it.

    Args:
        members: The processes; each is attached to.
        options: How.
    """

    def __init__(self, members: Sequence[Member], options: StreamOptions | None = None) -> None:
        self._members = tuple(members)
        self._options = options or StreamOptions()
        self._merger = Merger(
            late_after_ns=self._options.late_after_ns, most_records=self._options.most_records
        )
        self._sources: list[_Source] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._throttled: list[tuple[int, Throttle]] = []
        self._told: list[tuple[SourceState, int]] = []
        self._told_ns = 0
        self._next_ns = 0
        self._watched_ns = time.monotonic_ns()
        self._calm_from_ns = self._stalled_ns = 0

    # -- for the consumer ----------------------------------------------------

    async def __aenter__(self) -> FleetStream:
        """Begins to read.

        Raises:
            UftraceError: The clock of a host that had not been measured could not be.
        """
        agents = {id(member.agent): member.agent for member in self._members}
        unmeasured = [agent for agent in agents.values() if agent.clock is None]
        await asyncio.gather(*(_measure(agent) for agent in unmeasured))
        now = time.monotonic_ns()
        offsets: dict[int, SmoothOffset] = {}
        for key, agent in agents.items():
            assert agent.clock is not None
            offsets[key] = SmoothOffset(agent.clock, now)
        for member in self._members:
            number = self._merger.add(now, id(member.agent))
            self._sources.append(_Source(number, member, offsets[id(member.agent)]))
        spread = self._options.clock_seconds / max(len(agents), 1)
        self._start(self._watch())
        for source in self._sources:
            self._start(self._read(source))
        for place, (key, agent) in enumerate(agents.items()):
            self._start(self._keep_time(agent, offsets[key], spread * (place + 1)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all streams. The agents keep sessions and tracepoints."""
        left = set(self._tasks)
        while left:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=_CANCEL_SECONDS)

    def __aiter__(self) -> AsyncIterator[MergedBatch]:
        return self

    async def __anext__(self) -> MergedBatch:
        """The next events; without any, at least every second, and when a state changes."""
        while True:
            await self._pause()
            is_over = all(each.state is SourceState.ENDED for each in self._sources)
            for source in self._sources:
                self._merger.set_bound(source.number, source.offset.bound_ns(self._watched_ns))
            events, certainty = self._merger.release(self._options.most_at_once)
            if self._merger.ready:
                self._next_ns = 0
            self._judge()
            now = time.monotonic_ns()
            states = [(each.state, each.since_ns) for each in self._sources]
            is_new = states != self._told or now - self._told_ns >= _HEARTBEAT_NS
            if len(events) or (is_new and not (is_over and states == self._told)):
                self._told, self._told_ns = states, now
                return self._batch(events, certainty)
            if is_over and not self._merger.held:
                self._raise_bugs()
                raise StopAsyncIteration

    def rest(self) -> MergedBatch:
        """What has come and was not given yet, once the stream is closed: also what lies
        behind the lowest watermark."""
        for source in self._sources:
            if source.state is not SourceState.ENDED:
                self._merger.end(source.number, is_complete=False)
        parts = []
        while self._merger.held:
            parts.append(self._merger.release(self._merger.held))
        events = joined([part for part, _ in parts])
        certainty = parts[-1][1] if parts else self._merger.release()[1]
        return self._batch(events, certainty)

    @property
    def sources(self) -> tuple[SourceStatus, ...]:
        """Each process, as it stands now."""
        now = time.monotonic_ns()
        return tuple(self._status(source, now) for source in self._sources)

    def names(self, number: int) -> SourceNames:
        """What the numbers in the columns of a source mean; the same object every time."""
        columns = self._sources[number].columns
        return SourceNames(columns.functions, columns.thread_names)

    # -- inside --------------------------------------------------------------

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    # What is given at a time is worth the sorting; where more waits, it comes at once.
    async def _pause(self) -> None:
        self._raise_bugs()
        left = (self._next_ns - time.monotonic_ns()) / 1e9
        await asyncio.sleep(max(left, 0))
        self._next_ns = time.monotonic_ns() + int(self._options.interval_seconds * 1e9)

    def _raise_bugs(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    def _batch(self, events: MergedEvents, certainty: Certainty) -> MergedBatch:
        throttled, self._throttled = tuple(self._throttled), []
        return MergedBatch(events, certainty, self.sources, throttled)

    def _status(self, source: _Source, now_ns: int) -> SourceStatus:
        counts = self._merger.counts(source.number)
        losses = {
            stage.name.lower(): count for stage, count in source.columns.losses.items() if count
        }
        if counts.dropped:
            losses[MERGE] = counts.dropped
        return SourceStatus(
            source.number,
            source.member,
            source.state,
            source.since_ns,
            self._merger.watermark_ns(source.number),
            source.offset.bound_ns(now_ns),
            counts,
            source.columns.records,
            source.columns.markers,
            losses,
            source.end,
            source.detail,
            source.error,
        )

    async def _read(self, source: _Source) -> None:
        member, options = source.member, self._options
        buffered = options.include_buffered
        batches = member.agent.client.stream(
            member.session_id,
            include_buffered=member.created if buffered is None else buffered,
            reconnect_seconds=options.reconnect_seconds,
            on_break=lambda error: _broke(source, error),
        )
        try:
            async with aclosing(batches) as reading:  # type: ignore[type-var]
                async for batch in reading:
                    self._take(source, batch)
            if source.end is EndReason.NONE:
                raise StreamBrokenError(f"the agent at {member.agent} closed the stream")
        except UftraceError as error:
            source.error, source.detail = error, error.message
        is_complete = source.end is not EndReason.NONE
        self._merger.end(source.number, is_complete=is_complete)
        source.is_in(SourceState.ENDED, time.monotonic_ns())

    def _take(self, source: _Source, batch: EventBatch) -> None:
        source.heard_ns = time.monotonic_ns()
        source.error, source.detail = None, ""
        columns = source.columns.take(batch)
        self._merger.push(
            source.number, columns.time_ns, columns.tid, columns.word, columns.watermark_ns
        )
        self._throttled += ((source.number, throttle) for throttle in batch.throttled)
        if batch.end is not EndReason.NONE:
            source.end, source.detail = batch.end, batch.end_detail
        if source.state is not SourceState.SLOW:
            source.is_in(SourceState.LIVE, source.heard_ns)

    # Who is silent, and who is slow.
    def _judge(self) -> None:
        now = self._calm_ns()
        limit = int(self._options.silent_seconds * 1e9)
        for source in self._sources:
            if source.state is SourceState.BROKEN:
                continue
            if now - source.heard_ns > limit:
                source.is_in(SourceState.SILENT, source.heard_ns)
            elif source.state in (SourceState.LIVE, SourceState.SLOW):
                is_late = self._merger.is_late(source.number)
                source.is_in(SourceState.SLOW if is_late else SourceState.LIVE, source.heard_ns)

    # A moment up to which everything that had come was read.
    def _calm_ns(self) -> int:
        now = time.monotonic_ns()
        if now < self._calm_from_ns:
            return self._stalled_ns
        return self._watched_ns if now - self._watched_ns > _STALL_NS else now

    async def _watch(self) -> None:
        while True:
            now = time.monotonic_ns()
            if now - self._watched_ns > _STALL_NS:
                self._stalled_ns, self._calm_from_ns = self._watched_ns, now + _STALL_NS
            self._watched_ns = now
            await asyncio.sleep(_WATCH_SECONDS)

    async def _keep_time(self, agent: Agent, offset: SmoothOffset, first: float) -> None:
        pause = first
        while True:
            await asyncio.sleep(pause)
            pause = self._options.clock_seconds
            # Who does not answer is silent on its stream as well.
            with suppress(UftraceError, TimeoutError):
                async with asyncio.timeout(_MEASURE_SECONDS):
                    clocks = await measure_clocks(agent.client)
                if offset.measured(clocks.monotonic, time.monotonic_ns()):
                    agent.clock = clocks.monotonic


def _broke(source: _Source, error: UftraceError) -> None:
    source.error, source.detail = error, error.message
    source.is_in(SourceState.BROKEN, time.monotonic_ns())


async def _measure(agent: Agent) -> None:
    clocks = await measure_clocks(agent.client)
    agent.info, agent.clock = clocks.info, clocks.monotonic
