"""`report`: where the time went, by function."""

from __future__ import annotations

import click

from uftrace_remote.cli import _output, _report_fleet
from uftrace_remote.cli._options import json_option
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._settings import Settings, pass_settings
from uftrace_remote.cli._trace_notes import note_about, note_about_fleet
from uftrace_remote.trace.fleet_tallies import fleet_functions
from uftrace_remote.trace.recordings import Recording, open_recording
from uftrace_remote.trace.statistics import FunctionStatistics, function_statistics

_FIELDS = {"total": "total_ns", "self": "self_ns", "calls": "calls", "max": "max_ns"}


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--sort", "key", type=click.Choice(list(_FIELDS)), default="total", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Show only so many functions.")
@click.option(
    "--by",
    type=click.Choice(["function", "host"]),
    default="function",
    show_default=True,
    help="Of a recording of many hosts: show hosts together, or by what they did.",
)
@click.option("-v", "--verbose", is_flag=True, help="With --by host: a line for every process.")
@json_option
@pass_settings
def report(
    settings: Settings,
    directory: str,
    key: str,
    limit: int | None,
    by: str,
    verbose: bool,
    as_json: bool,
) -> None:
    """Show times and calls by function.

    DIR is a trace, a recording of many hosts, or a part of one: DIR:HOST, DIR:@GROUP,
    DIR:build-id=HEX.
    """
    recording = open_recording(directory)
    if recording.is_fleet:
        _report_of_fleet(settings, recording, key, limit, by, verbose, as_json)
        return
    if by == "host":
        raise click.UsageError(f"{directory} is of one process: --by host is for several hosts")
    (alone,) = recording.members
    with spinner("reading the trace"):
        found = function_statistics(alone.trace)
    found.sort(key=lambda each: int(getattr(each, _FIELDS[key])), reverse=True)
    shown = found[:limit]
    if as_json:
        _output.print_json(shown)
        return
    _output.print_table(
        [
            ("TOTAL", "right"),
            ("SELF", "right"),
            ("CALLS", "right"),
            ("MIN", "right"),
            ("AVG", "right"),
            ("MAX", "right"),
            ("P99", "right"),
            ("FUNCTION", "left"),
        ],
        (_row(each) for each in shown),
        color=settings.color,
    )
    note_about(alone.trace)


def _report_of_fleet(
    settings: Settings,
    recording: Recording,
    key: str,
    limit: int | None,
    by: str,
    verbose: bool,
    as_json: bool,
) -> None:
    with spinner("reading the traces"):
        found = fleet_functions(recording.members)
    found.sort(key=lambda each: int(getattr(each.total, _FIELDS[key])), reverse=True)
    shown = found[:limit]
    if as_json:
        _output.print_json(_report_fleet.to_json(shown))
        return
    if by == "host":
        _report_fleet.print_by_host(shown, settings.color, every=verbose)
    else:
        _report_fleet.print_totals(shown, settings.color)
    note_about_fleet(recording)


def _row(each: FunctionStatistics) -> tuple[str, ...]:
    name = each.name
    if each.open_calls:
        name += f"  ({each.open_calls:,} not ended)"
    if not each.timed_calls:
        return ("-", "-", f"{each.calls:,}", "-", "-", "-", "-", name)
    times = [_output.duration(value) for value in (each.total_ns, each.self_ns)]
    spread = [
        _output.duration(value) for value in (each.min_ns, each.avg_ns, each.max_ns, each.p99_ns)
    ]
    return (*times, f"{each.calls:,}", *spread, name)
