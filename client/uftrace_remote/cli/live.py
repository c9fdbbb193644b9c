"""`live`: patch, and show the calls as they happen."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._leases import command_lease, renewing
from uftrace_remote.cli._lines import HEADER, LineFormatter, LinePrinter, use_color
from uftrace_remote.cli._options import (
    duration_option,
    duration_type,
    patch_options,
    to_patch_options,
)
from uftrace_remote.cli._refusals import print_refusals
from uftrace_remote.cli._settings import Settings, pass_settings, run_until_interrupted
from uftrace_remote.cli._throttles import ThrottleNotes
from uftrace_remote.cli._tracing import (
    BatchPump,
    Hold,
    active_ids,
    describe_end,
    end_error,
    hold,
    patch_functions,
    releasing,
)
from uftrace_remote.cli.live_fleet import FleetRequest, live_fleet
from uftrace_remote.enums import EndReason, LossStage
from uftrace_remote.fleet.coordinated_patch import PatchPlan
from uftrace_remote.fleet.rollout import RolloutPolicy
from uftrace_remote.target import Target
from uftrace_remote.trace.summary import TraceSummary
from uftrace_remote.trace.tree import CallTree, TreeFilter
from uftrace_remote.values import EventBatch, PatchOptions, PatchResult

# So many lines may wait for the terminal before calls are dropped.
_BACKLOG_LINES = 20_000
# Showing falls behind what happens by so much before calls are dropped, and
# has to be as near as this before they are shown again.
_BEHIND_NS = 300_000_000
_CAUGHT_UP_NS = 100_000_000

_TICK_SECONDS = 0.2
_NOTE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Request:
    target: Target
    patterns: tuple[str, ...]
    options: PatchOptions
    duration_ns: int | None
    keep: bool
    max_depth: int
    min_duration_ns: int
    tids: frozenset[int]


@click.command()
@click.argument("target")
@click.argument("patterns", nargs=-1, required=True, metavar="FUNC...")
@duration_option
@patch_options
@click.option("--keep", is_flag=True, help="Leave the tracepoints enabled at the end.")
@click.option("--max-depth", type=click.IntRange(min=1), help="Show so many levels of nesting.")
@click.option(
    "--min-duration",
    type=duration_type("us"),
    default="0",
    metavar="TIME",
    help="Show only calls that took so long (10us, 1ms).",
)
@click.option("--tid", "tids", type=int, multiple=True, help="Show only this thread.")
@click.option(
    "--best-effort",
    is_flag=True,
    help="Of several hosts: leave out every process that fails.",
)
@pass_settings
def live(
    settings: Settings,
    target: str,
    patterns: tuple[str, ...],
    duration_ns: int | None,
    writer: str,
    entry_only: bool,
    all_or_nothing: bool,
    multi: bool,
    cpu: float | None,
    rate: float | None,
    pending: bool,
    keep: bool,
    max_depth: int | None,
    min_duration: int,
    tids: tuple[int, ...],
    best_effort: bool,
) -> None:
    """Patch functions of a running process, or of many, and show their calls live.

    At the end, or at Ctrl-C, everything is unpatched again. The processes of a TARGET of
    several hosts (web[01-16]:nginx, @web:nginx) are patched at one moment, and their
    calls are shown in one order.
    """
    options = to_patch_options(
        writer,
        entry_only,
        all_or_nothing,
        multi,
        cpu,
        rate,
        pending=pending,
        lease=None if keep else command_lease("live"),
    )
    if _fleet.is_fleet_target(target):
        if pending:
            raise click.UsageError("--pending is for one process: name a single host and process")
        policy = RolloutPolicy(None if best_effort else 0)
        wanted = TreeFilter(
            tids=frozenset(tids), max_depth=max_depth or 0, min_duration_ns=min_duration
        )
        plan = PatchPlan(patterns, options, policy)
        live_fleet(settings, FleetRequest(target, plan, duration_ns, keep, wanted))
        return
    if best_effort:
        raise click.UsageError(
            "--best-effort is for several hosts: web[01-16]:nginx, web1,web2:nginx or @web:nginx"
        )
    request = _Request(
        settings.target(target),
        patterns,
        options,
        duration_ns,
        keep,
        max_depth or 0,
        min_duration,
        frozenset(tids),
    )
    run_until_interrupted(lambda stop: _live(settings, request, stop))


async def _live(settings: Settings, request: _Request, stop: asyncio.Event) -> None:
    async with settings.connect(request.target.endpoint) as agent:
        process = await agent.resolve_process(request.target.process)
        held = await hold(agent, process)
        async with releasing(held, request.keep) as patched:
            # In a session of our own nothing can be missed; in somebody
            # else's the stream has to run before the first tracepoint does.
            stream = agent.stream(held.session_id, include_buffered=held.created)
            pump = BatchPump(stream)
            try:
                if not held.created:
                    await pump.wait_for_first()
                result = await patch_functions(held, request.patterns, request.options)
                patched.append(result)
                async with renewing(agent, held.session_id, request.options.lease):
                    last = await _show(held, pump, result, settings, request, stop)
            finally:
                await pump.close()
    error = end_error(last) if last is not None else None
    if error is not None:
        raise error


# Shows batches until something ends it; returns the last batch of the stream
# where it was the stream that ended.
async def _show(
    held: Hold,
    pump: BatchPump,
    result: PatchResult,
    settings: Settings,
    request: _Request,
    stop: asyncio.Event,
) -> EventBatch | None:
    loop = asyncio.get_running_loop()
    printer = LinePrinter(lambda: loop.call_soon_threadsafe(stop.set))
    view = _View(request, result, settings, printer)
    _output.note(
        f"tracing {_output.plural(view.function_count, 'function')} of {held.process.pid} "
        f"({held.process.command_name}), {_output.pause(result.longest_pause_ns)}; Ctrl-C stops"
    )
    print_refusals(result.results)
    deadline = None if request.duration_ns is None else time.monotonic() + request.duration_ns / 1e9
    last = None
    try:
        while not stop.is_set() and (deadline is None or time.monotonic() < deadline):
            left = _TICK_SECONDS if deadline is None else deadline - time.monotonic()
            try:
                batch = await pump.next(max(min(left, _TICK_SECONDS), 0.001))
            except TimeoutError:
                continue
            if batch is None:
                break
            view.show(batch)
            if batch.end is not EndReason.NONE:
                last = batch
                break
    finally:
        view.finish()
        await asyncio.to_thread(printer.close)
    view.print_summary(last)
    if printer.broken:
        raise BrokenPipeError
    return last


# The tree on stdout, and what there is to say about it on stderr.
class _View:
    def __init__(
        self, request: _Request, result: PatchResult, settings: Settings, printer: LinePrinter
    ) -> None:
        ids = active_ids(result.results)
        self.function_count = len(ids)
        self._printer = printer
        self._throttles = ThrottleNotes(str(request.target))
        self._summary = TraceSummary()
        self._names = {each.function_id: each.function.name for each in result.results}
        self._tree = CallTree(
            TreeFilter(
                function_ids=ids,
                tids=request.tids,
                max_depth=request.max_depth,
                min_duration_ns=request.min_duration_ns,
            )
        )
        self._formatter = LineFormatter(self._name, use_color(settings.color))
        self._noted_at = time.monotonic()
        self._noted = (0, 0, 0)
        self._least_offset: int | None = None
        self._behind = False
        printer.print([HEADER])

    def show(self, batch: EventBatch) -> None:
        self._summary.add(batch)
        self._throttles.show(batch)
        room = 0 if self._behind else _BACKLOG_LINES - self._printer.backlog
        self._printer.print(self._formatter.format_all(self._tree.feed(batch, room)))
        self._behind = self._lag_ns() >= (_CAUGHT_UP_NS if self._behind else _BEHIND_NS)
        if time.monotonic() - self._noted_at >= _NOTE_SECONDS:
            self._note_losses()

    def finish(self) -> None:
        self._printer.print(self._formatter.format_all(self._tree.finish()))

    def print_summary(self, last: EventBatch | None) -> None:
        if last is not None:
            _output.note(f"stream ended: {describe_end(last)}")
        shed = self._tree.calls_dropped
        _output.note(
            f"{_output.plural(self._tree.calls_shown, 'call')} shown"
            + (f", {shed:,} not shown (too fast for the terminal)" if shed else "")
            + f", {_output.plural(self._summary.records_lost, 'record')} lost"
        )

    # How far the watermark is behind our clock, compared with the best so far:
    # the two clocks are of different hosts, but run at the same rate.
    def _lag_ns(self) -> int:
        if not self._tree.watermark_ns:
            return 0
        offset = time.monotonic_ns() - self._tree.watermark_ns
        if self._least_offset is None or offset < self._least_offset:
            self._least_offset = offset
        return offset - self._least_offset

    def _name(self, function_id: int) -> str:
        return self._names.get(function_id) or self._summary.function_name(function_id)

    def _note_losses(self) -> None:
        unread = sum(
            loss.records for loss in self._summary.losses if loss.stage is LossStage.STREAM
        )
        lost, shed = self._summary.records_lost - unread, self._tree.calls_dropped
        parts = []
        if lost > self._noted[0]:
            count = _output.plural(lost - self._noted[0], "record")
            parts.append(f"{count} lost: the target's rings were full")
        if unread > self._noted[1]:
            count = _output.plural(unread - self._noted[1], "record")
            parts.append(f"{count} lost: too fast for this client")
        if shed > self._noted[2]:
            parts.append(
                f"{_output.plural(shed - self._noted[2], 'call')} not shown: too fast "
                "for the terminal (choose fewer functions or --min-duration, or use record)"
            )
        if parts:
            _output.note(f"# {', '.join(parts)}")
        self._noted = (lost, unread, shed)
        self._noted_at = time.monotonic()
