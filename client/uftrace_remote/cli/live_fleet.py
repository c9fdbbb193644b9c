"""`live` on many hosts: patch all at one moment, and show their calls in one order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._leases import renewing
from uftrace_remote.cli._lines import LinePrinter, use_color
from uftrace_remote.cli._merged_tree import MergedTree
from uftrace_remote.cli._patch_fleet import print_refused, raise_failures
from uftrace_remote.cli._progress import clear_line, show_line
from uftrace_remote.cli._settings import Settings, run_until_interrupted
from uftrace_remote.cli._source_notes import SourceNotes, ending
from uftrace_remote.cli._throttles import describe_throttle
from uftrace_remote.cli._tracing import Hold, active_ids, end_error, release
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import EndReason
from uftrace_remote.errors import StreamBrokenError, UftraceError
from uftrace_remote.fleet.address import FleetTarget
from uftrace_remote.fleet.coordinated_patch import FleetPatch, PatchPlan
from uftrace_remote.fleet.fan_out import fan_out
from uftrace_remote.fleet.fleet import Fleet
from uftrace_remote.fleet.grouping import host_label
from uftrace_remote.fleet.member import Member
from uftrace_remote.fleet.stream import FleetStream
from uftrace_remote.fleet.stream_values import (
    MergedBatch,
    SourceState,
    SourceStatus,
    StreamOptions,
)
from uftrace_remote.trace.tree import TreeFilter
from uftrace_remote.values import Session

# So many lines may wait for the terminal before calls are dropped.
_BACKLOG_LINES: Final = 20_000
# Showing falls behind what could be shown by so much before calls are dropped, and has
# to be as near as this before they are shown again.
_BEHIND_NS: Final = 300_000_000
_CAUGHT_UP_NS: Final = 100_000_000
_EVENTS_AT_ONCE: Final = 1 << 16
_TICK_SECONDS: Final = 0.2
_RELEASE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """What `live` was asked for.

    Attributes:
        target: As it was written.
        plan: What to patch, and how.
        duration_ns: Stop after so long; None: when asked to.
        keep: Leave the tracepoints enabled.
        wanted: What to show.
    """

    target: str
    plan: PatchPlan
    duration_ns: int | None
    keep: bool
    wanted: TreeFilter


def live_fleet(settings: Settings, request: FleetRequest) -> None:
    """Patch every process that a TARGET of several hosts means, and show the calls of all."""
    run_until_interrupted(lambda stop: _live(settings, request, stop))


async def _live(settings: Settings, request: FleetRequest, stop: asyncio.Event) -> None:
    where = FleetTarget.parse(request.target)
    async with _fleet.open_fleet(settings, where) as fleet:
        try:
            show_line("asking who is there")
            found = await fleet.members(where.process)
            done = await fleet.patch(found, request.plan, show_line)
        finally:
            clear_line()
        failures = [
            *((m.member.agent.endpoint, m.error) for m in done.failed if m.error is not None),
            *done.unreached,
        ]
        _fleet.note_failures(failures)
        print_refused(done)
        if not done.is_enabled:
            raise_failures(done)
            return
        members = [each.member for each in done.enabled]
        async with _releasing(members, request.keep), AsyncExitStack() as stack:
            for member in members:
                lease = request.plan.options.lease
                await stack.enter_async_context(
                    renewing(member.agent.client, member.session_id, lease, str(member))
                )
            sources = await _show(fleet, members, done, settings, request, stop)
    _raise(sources, failures)


# Shows batches until something ends it; says how it was with each process.
async def _show(
    fleet: Fleet,
    members: Sequence[Member],
    done: FleetPatch,
    settings: Settings,
    request: FleetRequest,
    stop: asyncio.Event,
) -> tuple[SourceStatus, ...]:
    loop = asyncio.get_running_loop()
    printer = LinePrinter(lambda: loop.call_soon_threadsafe(stop.set))
    view = _View(members, settings, request, printer)
    _output.note(
        f"tracing {len(members):,} {'process' if len(members) == 1 else 'processes'} on "
        f"{_fleet.fold(each.agent.endpoint for each in members)}, changed within "
        f"{_output.brief_duration(done.skew_ns)}; Ctrl-C stops"
    )
    stream = fleet.stream(members, StreamOptions(most_at_once=_EVENTS_AT_ONCE))
    deadline = None if request.duration_ns is None else time.monotonic() + request.duration_ns / 1e9
    try:
        async with stream:
            await _read(stream, view, stop, deadline)
        view.show(stream.rest())
    finally:
        view.finish()
        await asyncio.to_thread(printer.close)
    view.print_summary(stream.sources)
    if printer.broken:
        raise BrokenPipeError
    return stream.sources


async def _read(
    stream: FleetStream, view: _View, stop: asyncio.Event, deadline: float | None
) -> None:
    while not stop.is_set() and (deadline is None or time.monotonic() < deadline):
        left = _TICK_SECONDS if deadline is None else deadline - time.monotonic()
        try:
            # What has been taken out of the merge is given at once: nothing gets lost.
            async with asyncio.timeout(max(min(left, _TICK_SECONDS), 0.001)):
                batch = await anext(stream)
        except TimeoutError:
            continue
        except StopAsyncIteration:
            return
        view.show(batch)


# The tree on stdout, and what there is to say about it on stderr.
class _View:
    def __init__(
        self,
        members: Sequence[Member],
        settings: Settings,
        request: FleetRequest,
        printer: LinePrinter,
    ) -> None:
        self._labels = _labels(members)
        self._printer = printer
        self._notes = SourceNotes()
        self._behind = False
        self._uncertainty_ns = 0
        self._target = request.target
        self._tree = MergedTree(
            self._labels,
            [_functions(member) for member in members],
            request.wanted,
            request.wanted.tids,
            use_color(settings.color),
        )
        printer.print([self._tree.header])

    def show(self, batch: MergedBatch) -> None:
        self._notes.show(batch)
        for number, throttle in batch.throttled:
            _output.note(
                f"# {self._labels[number]}: {throttle.function} taken out, it cost too much: "
                f"{describe_throttle(throttle)}"
            )
        room = 0 if self._behind else _BACKLOG_LINES - self._printer.backlog
        self._printer.print(self._tree.feed(batch, room))
        lag = _lag_ns(batch)
        self._behind = lag >= (_CAUGHT_UP_NS if self._behind else _BEHIND_NS)
        self._uncertainty_ns = batch.certainty.uncertainty_ns or self._uncertainty_ns

    def finish(self) -> None:
        self._printer.print(self._tree.finish())

    def print_summary(self, sources: Sequence[SourceStatus]) -> None:
        self._notes.show_losses(sources)
        shed = self._tree.calls_dropped
        lost = sum(source.lost for source in sources)
        late = sum(source.counts.late for source in sources)
        _output.note(
            f"{_output.plural(self._tree.calls_shown, 'call')} shown"
            + (f", {shed:,} not shown (too fast for the terminal)" if shed else "")
            + (f", {_output.plural(late, 'event')} came late" if late else "")
            + f", {_output.plural(lost, 'record')} lost; the order between hosts is known to "
            f"{_output.brief_duration(self._uncertainty_ns)}"
        )


# How far what is shown is behind what could be.
def _lag_ns(batch: MergedBatch) -> int:
    missing = set(batch.certainty.missing)
    come = [
        source.watermark_ns
        for source in batch.sources
        if source.number not in missing and source.state is not SourceState.ENDED
    ]
    return min(come) - batch.certainty.complete_to_ns if come else 0


# Hosts are enough, unless there are two processes on one.
def _labels(members: Sequence[Member]) -> list[str]:
    hosts = [host_label(member.agent.endpoint) for member in members]
    if len(set(hosts)) == len(hosts):
        return hosts
    return [f"{host}:{member.process.pid}" for host, member in zip(hosts, members, strict=True)]


def _functions(member: Member) -> dict[int, str]:
    if member.commit is None:
        return {}
    results = member.commit.patch.results
    ids = active_ids(results)
    return {each.function_id: each.function.name for each in results if each.function_id in ids}


# Whatever happens inside, every process is left as it was found.
@asynccontextmanager
async def _releasing(members: Sequence[Member], keep: bool) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await asyncio.shield(_release_all(members))
        raise
    if not keep:
        await _release_all(members)


async def _release_all(members: Sequence[Member]) -> None:
    outcomes = await fan_out(members, _release, deadline=_RELEASE_SECONDS)
    for outcome in outcomes:
        if outcome.error is not None:
            _output.note(
                f"# {outcome.host} could not be left ({outcome.error.message}): what is enabled "
                "there ends with its lease, within 30 s"
            )


async def _release(member: Member) -> None:
    session = Session(member.session_id, member.process)
    held = Hold(member.agent.client, member.process, session, member.created)
    await release(held, member.commit.patch if member.commit else None)


def _raise(
    sources: Sequence[SourceStatus], failures: Sequence[tuple[Endpoint, UftraceError]]
) -> None:
    errors = [error for _, error in failures]
    for source in sources:
        error = _error_of(source)
        if error is not None:
            errors.append(error)
    _fleet.raise_failures(errors, len(sources) + len(failures), "processes")


# What its end means; nothing where it goes on, or ended by itself.
def _error_of(source: SourceStatus) -> UftraceError | None:
    if source.state is SourceState.ENDED:
        if source.end is EndReason.NONE:
            return source.error
        return end_error(ending(source))
    if source.state in (SourceState.SILENT, SourceState.BROKEN):
        return StreamBrokenError(
            f"nothing came from {source.member} at the end",
            hint="is the agent frozen, or a firewall in between?",
        )
    return None
