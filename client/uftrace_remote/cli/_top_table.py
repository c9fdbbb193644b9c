# What `top` shows of an interval.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from uftrace_remote.cli import _output
from uftrace_remote.trace.fleet_tallies import FunctionKey
from uftrace_remote.trace.tallies import Tally, sum_of

SORTS: Final = ("time", "calls", "avg", "p99")
# More columns would not be read.
_MOST_HOSTS: Final = 8


@dataclass(frozen=True, slots=True)
class Interval:
    """What several processes did for a while.

    Attributes:
        seconds: How long that was.
        tallies: By process, the calls that ended.
        states: What is wrong with a process, by name; empty where nothing is.
    """

    seconds: float
    tallies: Mapping[str, Mapping[FunctionKey, Tally]]
    states: Mapping[str, str]

    def totals(self, sort: str, limit: int | None) -> list[tuple[FunctionKey, Tally]]:
        """Every function with its tally of all processes, the largest first."""
        keys = dict.fromkeys(key for each in self.tallies.values() for key in each)
        sums = [
            (key, sum_of(each[key] for each in self.tallies.values() if key in each))
            for key in keys
        ]
        return sorted(sums, key=lambda each: (-self.figure(each[1], sort), each[0]))[:limit]

    def figure(self, tally: Tally, sort: str) -> float:
        """The figure by which it is sorted: a rate, or nanoseconds."""
        if sort == "calls":
            return tally.calls / self.seconds
        if sort == "time":
            return tally.total_ns / self.seconds
        return tally.avg_ns if sort == "avg" else tally.quantile(0.99)

    def shown(self, tally: Tally, sort: str) -> str:
        """The same for people."""
        figure = self.figure(tally, sort)
        if sort == "calls":
            return f"{figure:,.0f}"
        return _output.brief_duration(figure) if tally.timed_calls else "-"


def columns(interval: Interval, sort: str) -> list[tuple[str, str]]:
    """Titles; those of hosts show the figure that is sorted by."""
    found = [("CALLS/S", "right"), ("TIME/S", "right"), ("AVG", "right"), ("P99", "right")]
    names = list(interval.tallies)
    if 1 < len(names) <= _MOST_HOSTS:
        found += [(f"{sort.upper()} {name}", "right") for name in names]
    elif len(names) > 1:
        found += [(f"{sort.upper()} LEAST", "right"), (f"{sort.upper()} MOST", "left")]
    return [*found, ("FUNCTION", "left")]


def rows(interval: Interval, sort: str, limit: int | None) -> list[tuple[str, ...]]:
    """One row for each function."""
    return [
        (
            *(interval.shown(tally, each) for each in ("calls", "time", "avg", "p99")),
            *_of_hosts(interval, key, sort),
            key[0],
        )
        for key, tally in interval.totals(sort, limit)
    ]


def _of_hosts(interval: Interval, key: FunctionKey, sort: str) -> Sequence[str]:
    tallies = {name: each.get(key, Tally()) for name, each in interval.tallies.items()}
    if len(tallies) < 2:
        return ()
    if len(tallies) <= _MOST_HOSTS:
        return [interval.shown(each, sort) for each in tallies.values()]
    ordered = sorted(tallies.items(), key=lambda each: interval.figure(each[1], sort))
    (_, least), (name, most) = ordered[0], ordered[-1]
    return [interval.shown(least, sort), f"{interval.shown(most, sort)} ({name})"]


def to_json(interval: Interval, sort: str, limit: int | None, unix_ns: int) -> dict[str, Any]:
    """One interval for programs."""
    return {
        "unix_ns": unix_ns,
        "seconds": round(interval.seconds, 3),
        "processes": dict(interval.states),
        "functions": [
            {
                "name": key[0],
                "module": key[1],
                **_figures(interval, tally),
                "processes": {
                    name: _figures(interval, each[key])
                    for name, each in interval.tallies.items()
                    if key in each
                },
            }
            for key, tally in interval.totals(sort, limit)
        ],
    }


def _figures(interval: Interval, tally: Tally) -> dict[str, Any]:
    return {
        "calls": tally.calls,
        "calls_per_second": round(tally.calls / interval.seconds, 1),
        "ns_per_second": round(tally.total_ns / interval.seconds),
        "avg_ns": tally.avg_ns,
        "p99_ns": tally.quantile(0.99),
        "max_ns": tally.max_ns,
    }
