"""`record`: patch, and write what happens to a trace directory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from uftrace_remote._version import client_version
from uftrace_remote.cli import _output
from uftrace_remote.cli._leases import command_lease, renewing
from uftrace_remote.cli._options import (
    duration_option,
    json_option,
    patch_options,
    to_patch_options,
)
from uftrace_remote.cli._progress import clear_line, show_line
from uftrace_remote.cli._refusals import print_refusals
from uftrace_remote.cli._settings import Settings, pass_settings, run_until_interrupted
from uftrace_remote.cli._throttles import ThrottleNotes
from uftrace_remote.cli._tracing import (
    BatchPump,
    Hold,
    describe_end,
    end_error,
    hold,
    patch_functions,
    release,
    releasing,
    unpatch_own,
)
from uftrace_remote.enums import EndReason, LossStage
from uftrace_remote.errors import OutputError, UftraceError
from uftrace_remote.target import Target
from uftrace_remote.trace.store import TraceWriter
from uftrace_remote.trace.summary import TraceSummary
from uftrace_remote.values import AgentInfo, EventBatch, PatchOptions, PatchResult, Process

_TICK_SECONDS = 0.2
_PROGRESS_SECONDS = 0.5
# After unpatching, how long to wait for what the rings still hold.
_DRAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Request:
    target: Target
    patterns: tuple[str, ...]
    options: PatchOptions
    duration_ns: int | None
    directory: Path
    force: bool


@dataclass(frozen=True, slots=True)
class RecordSummary:
    """What came of a recording.

    Attributes:
        produced: Records that the target produced, as the agent counts.
        delivered: Records in the trace.
        lost: Records lost, at all stages.
        exact: Whether produced = delivered + lost; None where the agent could
            not be asked any more.
        event_bytes: Size of the events.
    """

    directory: str
    seconds: float
    produced: int
    delivered: int
    lost: int
    losses: dict[str, int]
    exact: bool | None
    event_bytes: int
    end: str


@click.command()
@click.argument("target")
@click.argument("patterns", nargs=-1, required=True, metavar="FUNC...")
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Directory for the trace: new or empty.",
)
@duration_option
@patch_options
@click.option("--force", is_flag=True, help="Replace a trace in DIR.")
@json_option
@pass_settings
def record(
    settings: Settings,
    target: str,
    patterns: tuple[str, ...],
    directory: Path,
    duration_ns: int | None,
    writer: str,
    entry_only: bool,
    all_or_nothing: bool,
    multi: bool,
    cpu: float | None,
    rate: float | None,
    pending: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Patch functions of a running process and record their calls.

    At the end, or at Ctrl-C, everything is unpatched again.
    """
    request = _Request(
        settings.target(target),
        patterns,
        to_patch_options(
            writer,
            entry_only,
            all_or_nothing,
            multi,
            cpu,
            rate,
            pending=pending,
            lease=command_lease("record"),
        ),
        duration_ns,
        directory,
        force,
    )
    summary, error = run_until_interrupted(lambda stop: _record(settings, request, stop))
    if as_json:
        _output.print_json(summary)
    else:
        _print_summary(summary)
    if error is not None:
        raise error


async def _record(
    settings: Settings, request: _Request, stop: asyncio.Event
) -> tuple[RecordSummary, UftraceError | None]:
    async with settings.connect(request.target.endpoint) as agent:
        info = await agent.info()
        process = await agent.resolve_process(request.target.process)
        metadata = _metadata(info, process, request)
        with TraceWriter(request.directory, metadata, force=request.force) as trace:
            try:
                held = await hold(agent, process)
                async with releasing(held, keep=True) as patched:
                    recording = _Recording(held, trace, request)
                    return await recording.run(patched, stop)
            except UftraceError as error:
                clear_line()
                _close_after_error(trace, error)
                raise


def _close_after_error(trace: TraceWriter, error: UftraceError) -> None:
    if not trace.record_count:
        trace.discard()
        return
    with contextlib.suppress(OutputError):
        trace.finish({"end": error.message})
    if not isinstance(error, OutputError):
        _output.note(f"kept {_output.plural(trace.record_count, 'record')} in {trace.directory}")


# One recording, from the first batch to the last.
class _Recording:
    def __init__(self, held: Hold, trace: TraceWriter, request: _Request) -> None:
        self._held = held
        self._trace = trace
        self._request = request
        self._seen = TraceSummary()
        self._throttles = ThrottleNotes(str(request.target))
        self._before_first: int | None = None
        self._started = time.monotonic()
        self._progress_at = self._started
        self._progress_count = 0

    async def run(
        self, patched: list[PatchResult], stop: asyncio.Event
    ) -> tuple[RecordSummary, UftraceError | None]:
        held = self._held
        stream = held.agent.stream(held.session_id, include_buffered=held.created)
        pump = BatchPump(stream)
        try:
            if not held.created:
                await pump.wait_for_first()
            result = await patch_functions(held, self._request.patterns, self._request.options)
            patched.append(result)
            print_refusals(result.results)
            self._started = time.monotonic()
            async with renewing(held.agent, held.session_id, self._request.options.lease):
                last = await self._collect(pump, stop)
            seconds = time.monotonic() - self._started
            produced = await self._leave(pump, result, last)
        finally:
            clear_line()
            await pump.close()
        summary = self._summarize(seconds, produced, last)
        self._trace.finish(
            {
                "end": summary.end,
                "seconds": round(seconds, 3),
                "produced": summary.produced,
                "lost": summary.lost,
                "losses": summary.losses,
                "exact": summary.exact,
            }
        )
        return summary, end_error(last) if last is not None else None

    async def _collect(self, pump: BatchPump, stop: asyncio.Event) -> EventBatch | None:
        limit = self._request.duration_ns
        deadline = None if limit is None else time.monotonic() + limit / 1e9
        while not stop.is_set():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                break
            wait = _TICK_SECONDS if deadline is None else min(deadline - now, _TICK_SECONDS)
            with contextlib.suppress(TimeoutError):
                batch = await pump.next(max(wait, 0.001))
                if batch is None:
                    break
                if self._take(batch):
                    return batch
            self._show_progress()
        return None

    # Unpatches, takes what the rings still hold, and detaches if we attached.
    # Returns how many records the target produced, None if nobody can tell.
    async def _leave(
        self, pump: BatchPump, result: PatchResult, last: EventBatch | None
    ) -> int | None:
        held = self._held
        if last is not None:
            detached = await release(held, result)
            return detached.records_produced if detached else self._stream_total()
        await unpatch_own(held, result)
        await self._drain(pump)
        if not held.created:
            return self._stream_total()
        detached = await release(held, result)
        # What threads recorded between the last look and the detach.
        deadline = time.monotonic() + _DRAIN_SECONDS
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < deadline:
                batch = await pump.next(deadline - time.monotonic())
                if batch is None or self._take(batch):
                    break
        return detached.records_produced if detached else None

    async def _drain(self, pump: BatchPump) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        wanted = await self._session_produced()
        while time.monotonic() < deadline:
            have = self._seen.record_count + self._seen.records_lost
            if not pump.waiting and (not self._held.created or have >= wanted):
                return
            with contextlib.suppress(TimeoutError):
                batch = await pump.next(_TICK_SECONDS)
                if batch is None or self._take(batch):
                    return

    async def _session_produced(self) -> int:
        for session in await self._held.agent.sessions():
            if session.session_id == self._held.session_id:
                return session.records_produced
        return 0

    # Writes a batch; returns whether it was the last.
    def _take(self, batch: EventBatch) -> bool:
        if self._before_first is None:
            self._before_first = batch.records_total - batch.record_count
        self._trace.write(batch)
        self._seen.add(batch)
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
            for loss in self._seen.losses
            if loss.stage not in (LossStage.STREAM, LossStage.AGENT)
        )
        return self._seen.records_total - before + in_rings

    def _summarize(
        self, seconds: float, produced: int | None, last: EventBatch | None
    ) -> RecordSummary:
        seen = self._seen
        losses: dict[str, int] = {}
        for loss in seen.losses:
            name = loss.stage.name.lower()
            losses[name] = losses.get(name, 0) + loss.records
        total = seen.record_count + seen.records_lost
        return RecordSummary(
            directory=str(self._trace.directory),
            seconds=round(seconds, 3),
            produced=total if produced is None else produced,
            delivered=seen.record_count,
            lost=seen.records_lost,
            losses=losses,
            exact=None if produced is None else produced == total,
            event_bytes=self._trace.bytes_written,
            end=describe_end(last) if last is not None else "stopped",
        )

    def _show_progress(self) -> None:
        now = time.monotonic()
        if now - self._progress_at < _PROGRESS_SECONDS:
            return
        rate = (self._seen.record_count - self._progress_count) / (now - self._progress_at)
        self._progress_at, self._progress_count = now, self._seen.record_count
        show_line(
            f"recording {now - self._started:.1f} s: "
            f"{_output.plural(self._seen.record_count, 'record')} ({rate:,.0f}/s), "
            f"{self._seen.records_lost:,} lost, {_output.size(self._trace.bytes_written)}"
        )


def _metadata(info: AgentInfo, process: Process, request: _Request) -> dict[str, Any]:
    return {
        "recorded_by": f"uftrace-remote {client_version()}",
        "recorded_unix_ns": time.time_ns(),
        "agent": {
            "address": str(request.target.endpoint),
            "version": info.version,
            "hostname": info.hostname,
            "architecture": info.architecture.name.lower(),
            "kernel_release": info.kernel_release,
            "boot_id": info.boot_id,
        },
        "process": _output.to_json(process),
        "patterns": list(request.patterns),
    }


def _print_summary(summary: RecordSummary) -> None:
    if summary.end != "stopped":
        _output.note(f"stream ended: {summary.end}")
    click.echo(
        f"recorded {_output.plural(summary.delivered, 'record')} in {summary.seconds:.1f} s, "
        f"{summary.lost:,} lost, {_output.size(summary.event_bytes)} in {summary.directory}"
    )
    if summary.exact:
        click.echo(
            f"checked: {summary.produced:,} produced = {summary.delivered:,} delivered "
            f"+ {summary.lost:,} lost"
        )
    elif summary.exact is False:
        _output.note(
            f"warning: {summary.produced:,} produced is not {summary.delivered:,} delivered "
            f"+ {summary.lost:,} lost; please report this"
        )
