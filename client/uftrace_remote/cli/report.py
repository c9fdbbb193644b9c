"""`report`: where the time went, by function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from uftrace_remote.cli import _output
from uftrace_remote.cli._options import json_option
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._settings import Settings, pass_settings
from uftrace_remote.cli._trace_notes import note_about
from uftrace_remote.trace.statistics import FunctionStatistics, function_statistics
from uftrace_remote.trace.store import TraceReader

_KEYS: dict[str, Callable[[FunctionStatistics], int]] = {
    "total": lambda each: each.total_ns,
    "self": lambda each: each.self_ns,
    "calls": lambda each: each.calls,
    "max": lambda each: each.max_ns,
}


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--sort", "key", type=click.Choice(list(_KEYS)), default="total", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Show only so many functions.")
@json_option
@pass_settings
def report(settings: Settings, directory: Path, key: str, limit: int | None, as_json: bool) -> None:
    """Show times and calls by function."""
    with spinner("reading the trace"):
        trace = TraceReader(directory)
        found = function_statistics(trace)
    found.sort(key=_KEYS[key], reverse=True)
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
    note_about(trace)


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
