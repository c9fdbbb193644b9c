"""`replay`: the calls of a trace as a tree."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase

import click

from uftrace_remote.cli import _output, _replay_fleet
from uftrace_remote.cli._lines import HEADER, LineFormatter, use_color
from uftrace_remote.cli._options import duration_type
from uftrace_remote.cli._settings import Settings, pass_settings
from uftrace_remote.cli._trace_notes import note_about, note_about_fleet
from uftrace_remote.errors import NoSuchFunctionError
from uftrace_remote.trace.calls import read_calls
from uftrace_remote.trace.model import Call
from uftrace_remote.trace.recordings import Recording, open_recording
from uftrace_remote.trace.store import TraceReader
from uftrace_remote.trace.tree import CallTree, TreeFilter


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--tid", "tids", type=int, multiple=True, help="Show only this thread.")
@click.option(
    "--function", "patterns", multiple=True, metavar="GLOB", help="Show only these functions."
)
@click.option("--max-depth", type=click.IntRange(min=1), help="Show so many levels of nesting.")
@click.option(
    "--min-duration",
    type=duration_type("us"),
    default="0",
    metavar="TIME",
    help="Show only calls that took so long (10us, 1ms).",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line for each call.")
@pass_settings
def replay(
    settings: Settings,
    directory: str,
    tids: tuple[int, ...],
    patterns: tuple[str, ...],
    max_depth: int | None,
    min_duration: int,
    as_json: bool,
) -> None:
    """Show the calls of a trace in order of time.

    DIR is a trace, a recording of many hosts, or a part of one: DIR:HOST, DIR:@GROUP,
    DIR:build-id=HEX.
    """
    recording = open_recording(directory)
    _check_patterns(recording, patterns)

    def filter_of(trace: TraceReader) -> TreeFilter:
        return TreeFilter(
            function_ids=_matching(trace, patterns),
            tids=frozenset(tids),
            max_depth=max_depth or 0,
            min_duration_ns=min_duration,
        )

    if recording.is_fleet:
        if as_json:
            _output.print_json_lines(
                _replay_fleet.json_of(member, call)
                for member in recording.members
                for call in _wanted_calls(member.trace, filter_of(member.trace))
            )
            return
        color = use_color(settings.color)
        _replay_fleet.print_merged(recording, lambda each: filter_of(each.trace), color)
        order = _replay_fleet.describe_order(recording)
        if order:
            _output.note(f"note: {order}")
        note_about_fleet(recording)
        return
    trace = recording.members[0].trace
    wanted = filter_of(trace)
    if as_json:
        _output.print_json_lines(_wanted_calls(trace, wanted))
        return
    formatter = LineFormatter(trace.summary.function_name, use_color(settings.color))
    tree = CallTree(wanted, trace.summary.clock)
    sys.stdout.write(HEADER + "\n")
    for batch in trace.batches():
        for line in tree.feed(batch):
            sys.stdout.write(formatter.format(line) + "\n")
    for line in tree.finish():
        sys.stdout.write(formatter.format(line) + "\n")
    sys.stdout.flush()
    note_about(trace)


def _check_patterns(recording: Recording, patterns: tuple[str, ...]) -> None:
    if not patterns or any(_matching(each.trace, patterns) for each in recording.members):
        return
    names = sorted(
        {f.name for each in recording.members for f in each.trace.summary.functions.values()}
    )
    raise NoSuchFunctionError(
        f"no function of the trace matches {' '.join(patterns)}",
        hint=f"it has {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}",
    )


def _matching(trace: TraceReader, patterns: tuple[str, ...]) -> frozenset[int] | None:
    if not patterns:
        return None
    return frozenset(
        each.function_id
        for each in trace.summary.functions.values()
        for pattern in patterns
        if each.name == pattern or fnmatchcase(each.name, pattern)
    )


def _wanted_calls(trace: TraceReader, wanted: TreeFilter) -> Iterator[Call]:
    names = None
    if wanted.function_ids is not None:
        names = {trace.summary.function_name(each) for each in wanted.function_ids}
    for call in read_calls(trace):
        if wanted.tids and call.tid not in wanted.tids:
            continue
        if names is not None and call.function not in names:
            continue
        if wanted.max_depth and call.depth >= wanted.max_depth:
            continue
        took = (call.end_ns or call.start_ns) - call.start_ns
        if took >= wanted.min_duration_ns:
            yield call
