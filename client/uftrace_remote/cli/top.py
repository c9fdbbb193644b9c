"""`top`: which functions are called most and take most time, again and again."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from uftrace_remote.cli import _fleet, _output, _top_table
from uftrace_remote.cli._leases import command_lease
from uftrace_remote.cli._options import duration_option, duration_type, json_option
from uftrace_remote.cli._patch_fleet import print_patch, print_refused, raise_failures
from uftrace_remote.cli._progress import clear_line, show_line
from uftrace_remote.cli._rollout_options import failure_options
from uftrace_remote.cli._settings import Settings, pass_settings, run_until_interrupted
from uftrace_remote.cli._top_table import Interval
from uftrace_remote.cli._traced_fleet import Sink, Traced, TracedFleet
from uftrace_remote.errors import UftraceError
from uftrace_remote.fleet.address import FleetTarget
from uftrace_remote.fleet.coordinated_patch import PatchPlan
from uftrace_remote.fleet.fleet import Answers
from uftrace_remote.fleet.member import Member
from uftrace_remote.fleet.rollout import RolloutPolicy
from uftrace_remote.trace.rates import RateMeter
from uftrace_remote.values import PatchOptions


@dataclass(frozen=True, slots=True)
class _Request:
    target: str
    plan: PatchPlan
    duration_ns: int | None
    interval_ns: int
    sort: str
    limit: int | None
    as_json: bool


@click.command()
@click.argument("target")
@click.argument("patterns", nargs=-1, metavar="[FUNC]...")
@duration_option
@click.option(
    "--interval",
    "interval_ns",
    type=duration_type("s"),
    default="1s",
    show_default=True,
    metavar="TIME",
    help="Show figures of so long.",
)
@click.option("--sort", type=click.Choice(_top_table.SORTS), default="time", show_default=True)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Show only so many functions.",
)
@failure_options
@json_option
@pass_settings
def top(
    settings: Settings,
    target: str,
    patterns: tuple[str, ...],
    duration_ns: int | None,
    interval_ns: int,
    sort: str,
    limit: int | None,
    max_failures: int,
    best_effort: bool,
    as_json: bool,
) -> None:
    """Show calls and times of functions each second, of one process or of many.

    With FUNC, these are patched, and unpatched at the end. Without, it shows what is traced
    there already.
    """
    if interval_ns < 100_000_000:
        raise click.BadParameter("no less than 100ms", param_hint="--interval")
    options = PatchOptions(lease=command_lease("top"))
    policy = RolloutPolicy(None if best_effort else max_failures)
    plan = PatchPlan(patterns, options, policy)
    request = _Request(target, plan, duration_ns, interval_ns, sort, limit, as_json)
    errors, count = run_until_interrupted(lambda stop: _top(settings, request, stop))
    _fleet.raise_failures(errors, count, "processes")


async def _top(
    settings: Settings, request: _Request, stop: asyncio.Event
) -> tuple[list[UftraceError], int]:
    where = FleetTarget.parse(request.target)
    async with _fleet.open_fleet(settings, where) as fleet:
        show_line("asking who is there")
        found = await fleet.members(where.process)
        clear_line()
        if not _fleet.is_fleet_target(request.target):
            found = await _only(settings, request, found)
        if not found.values:
            _fleet.note_failures(found.failures)
            return [error for _, error in found.failures], len(found.failures)
        _fleet.note_failures(found.failures)
        watched = _Top(found, request, settings.color)
        try:
            return await watched.run(stop)
        finally:
            await watched.close()


# A single target means one process, as everywhere.
async def _only(settings: Settings, request: _Request, found: Answers[Member]) -> Answers[Member]:
    if found.failures:
        raise found.failures[0][1]
    target = settings.target(request.target)
    process = await found.values[0].agent.client.resolve_process(target.process)
    return Answers(tuple(m for m in found.values if m.process.reference == process.reference))


class _Top:
    def __init__(self, found: Answers[Member], request: _Request, color: bool | None) -> None:
        self._request = request
        self._color = color
        self._fleet = TracedFleet(found)
        self._meters: dict[Traced, RateMeter] = {}
        self._since = time.monotonic()
        self._live: Live | None = None

    async def run(self, stop: asyncio.Event) -> tuple[list[UftraceError], int]:
        fleet, plan = self._fleet, self._request.plan
        await fleet.attach(self._open_meter, join_only=not plan.patterns)
        if plan.patterns:
            done = await fleet.patch(plan, show_line)
            clear_line()
            if not done.is_enabled:
                print_patch(done, 1, self._color)
                raise_failures(done)
                return [], 0
            print_refused(done)
        else:
            _fleet.note_failures(
                [(e.member.agent.endpoint, e.error) for e in fleet.traced if e.error is not None]
            )
        if not fleet.going:
            return self._errors()
        _output.note(f"watching {_processes(len(fleet.going))}; Ctrl-C stops")
        self._since = time.monotonic()
        limit = self._request.duration_ns
        deadline = None if limit is None else self._since + limit / 1e9
        if sys.stdout.isatty() and not self._request.as_json:
            console = Console(no_color=self._color is False, highlight=False)
            with Live(console=console, auto_refresh=False) as self._live:
                await fleet.run(stop, deadline, self._tick)
            self._live = None
        else:
            await fleet.run(stop, deadline, self._tick)
        await fleet.leave()
        # What came between the last look and the end.
        self._show()
        return self._errors()

    def _errors(self) -> tuple[list[UftraceError], int]:
        fleet = self._fleet
        errors = [each.error for each in fleet.traced if each.error is not None]
        errors += [error for _, error in fleet.unreached]
        return errors, len(fleet.traced) + len(fleet.unreached)

    async def close(self) -> None:
        """Lets everything go."""
        await self._fleet.close()

    def _open_meter(self, traced: Traced) -> Sink:
        self._meters[traced] = meter = RateMeter()
        return meter.feed

    def _tick(self) -> None:
        if time.monotonic() - self._since >= self._request.interval_ns / 1e9:
            self._show()

    def _show(self) -> None:
        now = time.monotonic()
        interval = Interval(
            max(now - self._since, 1e-3),
            {each.name: meter.take() for each, meter in self._meters.items()},
            {each.name: _state(each) for each in self._fleet.traced},
        )
        self._since = now
        sort, limit = self._request.sort, self._request.limit
        if self._request.as_json:
            told = _top_table.to_json(interval, sort, limit, time.time_ns())
            _output.print_json_lines([told])
            sys.stdout.flush()
            return
        if self._live is not None:
            self._live.update(self._table(interval), refresh=True)
            return
        click.echo(self._title(interval))
        columns = _top_table.columns(interval, sort)
        _output.print_table(columns, _top_table.rows(interval, sort, limit), color=self._color)
        click.echo("")

    def _table(self, interval: Interval) -> Table:
        sort, limit = self._request.sort, self._request.limit
        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        table.title = self._title(interval)
        for title, justify in _top_table.columns(interval, sort):
            table.add_column(title, justify="right" if justify == "right" else "left", no_wrap=True)
        for row in _top_table.rows(interval, sort, limit):
            table.add_row(*map(Text, row))
        return table

    def _title(self, interval: Interval) -> str:
        wrong = [f"{name} {state}" for name, state in interval.states.items() if state]
        count = len(interval.states) - len(wrong)
        text = f"{_processes(count)}, {interval.seconds:.1f} s"
        lost = sum(each.reading.seen.records_lost for each in self._fleet.traced if each.reading)
        if lost:
            text += f", {lost:,} records lost so far"
        return f"{text}; {', '.join(wrong)}" if wrong else text


def _state(traced: Traced) -> str:
    if traced.error is not None:
        return "failed"
    return "silent" if traced.is_silent else ""


def _processes(count: int) -> str:
    return f"{count:,} process" if count == 1 else f"{count:,} processes"
