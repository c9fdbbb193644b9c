# What commands for many hosts share: finding them, and telling what became of them.
from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from uftrace_remote.cli import _output
from uftrace_remote.cli._settings import Settings
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import SomeHostsFailedError, UftraceError
from uftrace_remote.fleet.address import FleetTarget, is_plural
from uftrace_remote.fleet.fan_out import Outcome, failure_of
from uftrace_remote.fleet.fleet import Fleet
from uftrace_remote.fleet.grouping import fold_endpoints, group_answers, host_label
from uftrace_remote.fleet.inventory_file import load_inventory
from uftrace_remote.fleet.resolution import FleetHost, FleetHosts, resolve_hosts, resolve_target
from uftrace_remote.target import split_process

# More would not be read.
_MOST_NAMED = 8

# Hosts that failed before anything was done there.
Failures = Sequence[tuple[Endpoint, UftraceError]]


def is_fleet_target(text: str) -> bool:
    """Whether a TARGET argument names several hosts: a list, a range or a group."""
    place, process = split_process(text)
    return is_plural((place or process,))


@asynccontextmanager
async def open_fleet(settings: Settings, target: FleetTarget) -> AsyncIterator[Fleet]:
    """The agents that a TARGET argument names."""
    found = await resolve_target(target, load_inventory(settings.inventory), settings.endpoint)
    _note_repeated(found)
    fleet = Fleet(found.hosts, settings.timeout, options=settings.credentials)
    async with fleet:
        yield fleet


async def find_hosts(settings: Settings, written: Sequence[str]) -> FleetHosts:
    """The hosts that arguments mean; says so where one is named twice."""
    found = await resolve_hosts(written, load_inventory(settings.inventory))
    _note_repeated(found)
    return found


def _note_repeated(found: FleetHosts) -> None:
    if found.repeated:
        names = fold(host.endpoint for host in found.repeated)
        _output.note(f"named more than once, counted once: {names}")


def fold(hosts: Iterable[Endpoint]) -> str:
    """Hosts as ranges, and how many more there are where that is too long."""
    patterns = fold_endpoints(hosts)
    more = len(patterns) - _MOST_NAMED
    shown = ", ".join(patterns[:_MOST_NAMED])
    return f"{shown} and {more:,} more" if more > 0 else shown


def brief(error: UftraceError, host: FleetHost | Endpoint) -> str:
    """An error beside the name of its host: without it."""
    text = error.message
    for name in _names(host):
        for before, after in ((" at", " there"), (" in", ""), (" with", ""), (" for", "")):
            text = re.sub(rf"{before} {name}(?![\w.:-])", after, text)
    # Where something was looked for is named after the host too.
    return re.sub(r" \(looked in [^)]*\)", "", text)


# Longest first: one may begin with another.
def _names(host: FleetHost | Endpoint) -> list[str]:
    endpoint = host if isinstance(host, Endpoint) else host.endpoint
    address = endpoint if isinstance(host, Endpoint) else host.address or endpoint
    names = {str(address), str(endpoint), host_label(endpoint)}
    return sorted(map(re.escape, names), key=len, reverse=True)


def note_hints(failures: Failures) -> None:
    """What to do about failures that a table has told of; each hint once."""
    for hint in dict.fromkeys(_general(error, where) for where, error in failures):
        if hint:
            _output.note(f"hint: {hint}")


# A hint for many hosts is said once.
def _general(error: UftraceError, host: FleetHost | Endpoint) -> str:
    text = error.hint
    for name in _names(host):
        text = re.sub(rf"(?<![\w.:-]){name}(?![\w.:-])", "HOST", text)
    return text


def print_failures(outcomes: Sequence[Outcome[FleetHost, Any]]) -> None:
    """The hosts that failed, those with the same error on one line of stderr."""
    _note(
        (each.host.endpoint, brief(each.error, each.host), _general(each.error, each.host))
        for each in outcomes
        if each.error is not None
    )


def note_failures(failures: Failures) -> None:
    """The same for hosts and their errors."""
    _note((where, brief(error, where), _general(error, where)) for where, error in failures)


def _note(failures: Iterable[tuple[Endpoint, str, str]]) -> None:
    said = set()
    for group in group_answers((where, (what, hint)) for where, what, hint in failures):
        what, hint = group.value
        _output.note(f"{fold(group.hosts)}: {what}")
        if hint and hint not in said:
            said.add(hint)
            _output.note(f"    hint: {hint}")


def raise_failure(outcomes: Sequence[Outcome[FleetHost, Any]]) -> None:
    """Ends a command whose output is printed with its error, if there is one."""
    failure = failure_of(outcomes)
    if failure is not None:
        raise failure


def raise_failures(errors: Sequence[UftraceError], count: int, what: str) -> None:
    """The same for things that are not hosts.

    Args:
        errors: Those that failed.
        count: How many there were.
        what: What they are, in the plural.

    Raises:
        UftraceError: One of them failed.
    """
    if not errors:
        return
    if len(errors) == count == 1:
        raise errors[0]
    if len(errors) < count:
        raise SomeHostsFailedError(
            f"{len(errors):,} of {count:,} {what} failed",
            hint="the others are done; each failure is shown with its host",
        )
    first = errors[0]
    if all(type(each) is type(first) for each in errors):
        raise type(first)(
            f"all {count:,} {what} failed",
            reason=first.reason,
            hint="each failure is shown with its host",
        )
    raise SomeHostsFailedError(
        f"all {count:,} {what} failed, for several reasons",
        hint="each failure is shown with its host",
    )


def error_json(error: UftraceError | None) -> dict[str, str] | None:
    """An error for `--json`."""
    if error is None:
        return None
    return {"reason": error.reason, "message": error.message, "hint": error.hint}
