# `replay` of many processes: their calls in one order, on one clock.
from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterator
from typing import Any

from uftrace_remote.cli import _output
from uftrace_remote.cli._lines import HEADER, LineFormatter
from uftrace_remote.trace.model import Call
from uftrace_remote.trace.recordings import MemberTrace, Recording
from uftrace_remote.trace.tree import CallTree, TreeFilter, TreeLine

# What to show of a process.
Wanted = Callable[[MemberTrace], TreeFilter]


def print_merged(recording: Recording, wanted: Wanted, color: bool) -> None:
    """The trees of all processes, with a column that says where each line is from."""
    members = recording.members
    width = max(len("HOST"), *(len(each.name) for each in members))
    formatters = [LineFormatter(each.trace.summary.function_name, color) for each in members]
    labels = [f"  {each.name:<{width}}" for each in members]
    sys.stdout.write(f"# {'HOST':<{width}}{HEADER[1:]}\n")
    streams = [_lines(place, each, wanted(each)) for place, each in enumerate(members)]
    # Lines of one process are in order already: of each one line is in memory.
    for _, place, line in heapq.merge(*streams, key=lambda each: each[:2]):
        sys.stdout.write(f"{labels[place]}{formatters[place].format(line)}\n")
    sys.stdout.flush()


def describe_order(recording: Recording) -> str:
    """How sure the order of lines of different hosts is, in words."""
    count = len({each.host for each in recording.members})
    if count < 2:
        return ""
    unknown = [each.name for each in recording.members if not each.clock.is_known]
    if unknown:
        return f"the clock of {', '.join(unknown)} is not known: its lines may stand anywhere"
    return (
        f"lines of different hosts that are less than "
        f"{_output.brief_duration(recording.bound_ns)} apart may be in the wrong order: their "
        "clocks are not known better"
    )


def json_of(member: MemberTrace, call: Call) -> dict[str, Any]:
    """A call, on the common clock."""
    told: dict[str, Any] = _output.to_json(call)
    told["start_ns"] = member.clock.moment(call.start_ns)
    if call.end_ns is not None:
        told["end_ns"] = told["start_ns"] + call.end_ns - call.start_ns
    return {"process": member.name, "host": member.host, "pid": member.pid, **told}


def _lines(
    place: int, member: MemberTrace, wanted: TreeFilter
) -> Iterator[tuple[int, int, TreeLine]]:
    tree = CallTree(wanted, member.trace.summary.clock)
    moment = member.clock.moment
    for batch in member.trace.batches():
        for line in tree.feed(batch):
            yield moment(line.time_ns), place, line
    for line in tree.finish():
        yield moment(line.time_ns), place, line
