"""Times per function of many processes, and processes that did alike. No I/O but reading traces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from uftrace_remote.trace.recordings import MemberTrace
from uftrace_remote.trace.tallies import Tally, function_tallies, sum_of

# Processes whose means follow each other so closely are alike, as long as the
# slowest of them is not twice as slow as the fastest.
_NEXT: Final = 1.3
_MOST: Final = 2.0

# Name and module: ids differ from process to process.
FunctionKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class FunctionOfFleet:
    """What one function did in several processes.

    Attributes:
        name: Of the function.
        module: Of the function.
        tallies: By process, in their order; one that traced it and saw no call has zeros.
        total: All together.
    """

    name: str
    module: str
    tallies: dict[MemberTrace, Tally]
    total: Tally

    @property
    def called(self) -> list[MemberTrace]:
        """The processes that called it."""
        return [member for member, tally in self.tallies.items() if tally.calls]

    @property
    def slowest(self) -> tuple[MemberTrace, float] | None:
        """The process with the longest mean time, and how many times that of all; None for
        fewer than two processes with times."""
        timed = [(tally.avg_ns, m) for m, tally in self.tallies.items() if tally.timed_calls]
        if len(timed) < 2:
            return None
        longest, member = max(timed, key=lambda each: each[0])
        return member, longest / max(self.total.avg_ns, 1)


def fleet_functions(members: Sequence[MemberTrace]) -> list[FunctionOfFleet]:
    """Every function that was called in one of the processes, the largest total first."""
    tallies: dict[FunctionKey, dict[MemberTrace, Tally]] = {}
    for member in members:
        by_key: dict[FunctionKey, Tally] = {
            (each.name, each.module): Tally() for each in member.trace.summary.functions.values()
        }
        for function, tally in function_tallies(member.trace).items():
            known = member.trace.summary.functions.get(function)
            key = (member.trace.summary.function_name(function), known.module if known else "")
            by_key.setdefault(key, Tally()).add(tally)
        for key, tally in by_key.items():
            tallies.setdefault(key, {})[member] = tally
    found = [
        FunctionOfFleet(*key, each, sum_of(each.values()))
        for key, each in tallies.items()
        if any(tally.calls for tally in each.values())
    ]
    found.sort(key=lambda each: (-each.total.total_ns, -each.total.calls, each.name))
    return found


def alike(tallies: Iterable[tuple[MemberTrace, Tally]]) -> list[list[MemberTrace]]:
    """Processes in which a function takes about as long on average, those without any call
    together.

    Returns:
        Groups, the largest first, those of equal size by falling time.
    """
    ordered = sorted(tallies, key=lambda each: (bool(each[1].calls), each[1].avg_ns))
    times = {member: tally.avg_ns for member, tally in ordered}
    groups: list[list[MemberTrace]] = []
    first = last = None
    for member, tally in ordered:
        if first is not None and last is not None and _goes_with(first, last, tally):
            groups[-1].append(member)
        else:
            groups.append([member])
            first = tally
        last = tally
    return sorted(groups, key=lambda each: (-len(each), -times[each[0]]))


def _goes_with(first: Tally, last: Tally, tally: Tally) -> bool:
    if bool(last.calls) != bool(tally.calls):
        return False
    return tally.avg_ns <= last.avg_ns * _NEXT and tally.avg_ns <= first.avg_ns * _MOST
