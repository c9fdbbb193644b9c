"""`record`: patch, and write what happens to a trace directory."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._leases import command_lease, renewing
from uftrace_remote.cli._options import (
    duration_option,
    json_option,
    patch_options,
    to_patch_options,
)
from uftrace_remote.cli._progress import clear_line, show_line
from uftrace_remote.cli._reading import Reading
from uftrace_remote.cli._record_fleet import FleetRequest, record_fleet
from uftrace_remote.cli._refusals import print_refusals
from uftrace_remote.cli._rollout_options import failure_options
from uftrace_remote.cli._settings import Settings, pass_settings, run_until_interrupted
from uftrace_remote.cli._trace_metadata import outcome_metadata, trace_metadata
from uftrace_remote.cli._tracing import (
    Hold,
    describe_end,
    end_error,
    hold,
    patch_functions,
    releasing,
)
from uftrace_remote.errors import OutputError, UftraceError
from uftrace_remote.fleet.coordinated_patch import PatchPlan
from uftrace_remote.fleet.inventory_file import load_inventory
from uftrace_remote.fleet.rollout import RolloutPolicy
from uftrace_remote.target import Target
from uftrace_remote.trace.store import TraceWriter
from uftrace_remote.values import PatchOptions, PatchResult

_PROGRESS_SECONDS = 0.5


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
@failure_options
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
    max_failures: int,
    best_effort: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Patch functions of a running process, or of many, and record their calls.

    At the end, or at Ctrl-C, everything is unpatched again. Of a TARGET of several hosts
    (web[01-16]:nginx, @web:nginx), DIR holds one trace for each process.
    """
    options = to_patch_options(
        writer,
        entry_only,
        all_or_nothing,
        multi,
        cpu,
        rate,
        pending=pending,
        lease=command_lease("record"),
    )
    if _fleet.is_fleet_target(target):
        if pending:
            raise click.UsageError("--pending is for one process: name a single host and process")
        policy = RolloutPolicy(None if best_effort else max_failures)
        plan = PatchPlan(patterns, options, policy)
        inventory = load_inventory(settings.inventory)
        wanted = FleetRequest(plan, duration_ns, directory, force, inventory)
        record_fleet(settings, target, wanted, as_json=as_json)
        return
    if max_failures or best_effort:
        raise click.UsageError("--max-failures and --best-effort are for several hosts")
    request = _Request(settings.target(target), patterns, options, duration_ns, directory, force)
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
        metadata = trace_metadata(info, process, request.target.endpoint, request.patterns)
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
        self._trace = trace
        self._request = request
        self._reading = Reading(held, trace.write, str(request.target))
        self._started = time.monotonic()
        self._progress_at = self._started
        self._progress_count = 0

    async def run(
        self, patched: list[PatchResult], stop: asyncio.Event
    ) -> tuple[RecordSummary, UftraceError | None]:
        reading, held = self._reading, self._reading.held
        try:
            await reading.begin()
            result = await patch_functions(held, self._request.patterns, self._request.options)
            patched.append(result)
            print_refusals(result.results)
            self._started = time.monotonic()
            limit = self._request.duration_ns
            deadline = None if limit is None else self._started + limit / 1e9
            async with renewing(held.agent, held.session_id, self._request.options.lease):
                await reading.collect(stop, deadline, self._show_progress)
            seconds = time.monotonic() - self._started
            await reading.leave(result)
        finally:
            clear_line()
            await reading.close()
        last = reading.last
        end = describe_end(last) if last is not None else "stopped"
        outcome = outcome_metadata(reading.counts, seconds, end)
        self._trace.finish(outcome)
        summary = RecordSummary(
            directory=str(self._trace.directory),
            seconds=outcome["seconds"],
            event_bytes=self._trace.bytes_written,
            end=end,
            **dataclasses.asdict(reading.counts),
        )
        return summary, end_error(last) if last is not None else None

    def _show_progress(self) -> None:
        now = time.monotonic()
        if now - self._progress_at < _PROGRESS_SECONDS:
            return
        seen = self._reading.seen
        rate = (seen.record_count - self._progress_count) / (now - self._progress_at)
        self._progress_at, self._progress_count = now, seen.record_count
        show_line(
            f"recording {now - self._started:.1f} s: "
            f"{_output.plural(seen.record_count, 'record')} ({rate:,.0f}/s), "
            f"{seen.records_lost:,} lost, {_output.size(self._trace.bytes_written)}"
        )


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
