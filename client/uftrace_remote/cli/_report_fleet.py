# `report` of many processes: by function, or by function and host.
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.trace.fleet_tallies import FunctionOfFleet, alike
from uftrace_remote.trace.recordings import MemberTrace
from uftrace_remote.trace.statistics import statistics_of
from uftrace_remote.trace.tallies import Tally, sum_of

_FIGURES = (
    ("TOTAL", "right"),
    ("SELF", "right"),
    ("CALLS", "right"),
    ("MIN", "right"),
    ("AVG", "right"),
    ("MAX", "right"),
    ("P99", "right"),
)


def print_totals(found: Sequence[FunctionOfFleet], color: bool | None) -> None:
    """One line for each function, all processes together."""
    _output.print_table(
        [*_FIGURES, ("HOSTS", "right"), ("SLOWEST", "left"), ("FUNCTION", "left")],
        (
            (*figures(each.total), _hosts(each), _slowest(each), _named(each.name, each.total))
            for each in found
        ),
        color=color,
    )


def print_by_host(found: Sequence[FunctionOfFleet], color: bool | None, *, every: bool) -> None:
    """One line for each function and all processes in which it took about as long.

    Args:
        every: One line for each process instead.
    """
    _output.print_table(
        [*_FIGURES, ("ON", "left"), ("FUNCTION", "left")],
        (row for each in found for row in _rows_by_host(each, every)),
        color=color,
    )


def _rows_by_host(each: FunctionOfFleet, every: bool) -> Iterator[tuple[str, ...]]:
    groups = [[member] for member in each.tallies] if every else alike(each.tallies.items())
    for members in groups:
        tally = sum_of(each.tallies[member] for member in members)
        yield (*figures(tally), where(members), _named(each.name, tally))


def where(members: Sequence[MemberTrace]) -> str:
    """Several processes as ranges of hosts."""
    if len(members) == 1:
        return members[0].name
    hosts = {member.host for member in members}
    text = _fleet.fold(Endpoint.parse(host) for host in hosts)
    return text if len(hosts) == len(members) else f"{text} ({len(members):,} processes)"


def figures(tally: Tally) -> tuple[str, ...]:
    """The cells of a tally."""
    if not tally.timed_calls:
        return ("-", "-", f"{tally.calls:,}", "-", "-", "-", "-")
    times = [_output.duration(value) for value in (tally.total_ns, tally.self_ns)]
    spread = [
        _output.duration(value)
        for value in (tally.min_ns, tally.avg_ns, tally.max_ns, tally.quantile(0.99))
    ]
    return (*times, f"{tally.calls:,}", *spread)


def to_json(found: Sequence[FunctionOfFleet]) -> list[dict[str, Any]]:
    """All figures, of all together and of each process."""
    return [
        {
            **_figures_json(each, each.total),
            "processes": [
                {
                    "process": member.name,
                    "host": member.host,
                    "pid": member.pid,
                    **_figures_json(each, tally),
                }
                for member, tally in each.tallies.items()
            ],
        }
        for each in found
    ]


def _figures_json(each: FunctionOfFleet, tally: Tally) -> dict[str, Any]:
    told: dict[str, Any] = _output.to_json(statistics_of(tally, each.name, each.module))
    # Ids differ from process to process.
    del told["function_id"]
    return told


def _hosts(each: FunctionOfFleet) -> str:
    called, traced = len(each.called), len(each.tallies)
    return f"{called:,}" if called == traced else f"{called:,} of {traced:,}"


def _slowest(each: FunctionOfFleet) -> str:
    slowest = each.slowest
    if slowest is None:
        return "-"
    member, factor = slowest
    return f"{member.name} ({factor:.1f}x)"


def _named(name: str, tally: Tally) -> str:
    return f"{name}  ({tally.open_calls:,} not ended)" if tally.open_calls else name
