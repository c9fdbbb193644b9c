"""`hosts`: who is there."""

from __future__ import annotations

from collections.abc import Sequence

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._options import json_option
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.fleet.agents import HostReport, describe_hosts, same_agents
from uftrace_remote.fleet.clock_offset import ClockOffset
from uftrace_remote.fleet.fan_out import Outcome
from uftrace_remote.fleet.grouping import group_answers
from uftrace_remote.fleet.resolution import FleetHost

_Outcomes = Sequence[Outcome[FleetHost, HostReport]]


@click.command()
@click.argument("hosts", nargs=-1, metavar="[HOST...]")
@json_option
@pass_settings
def hosts(settings: Settings, hosts: tuple[str, ...], as_json: bool) -> None:
    """Show which agents are there: version, clock, round trip, sessions.

    HOST is a host, a range (web[01-16]), a list (web1,web2) or a group of the inventory (@web);
    without it, all of the inventory (@all).
    """

    async def work() -> _Outcomes:
        found = await _fleet.find_hosts(settings, hosts or ("@all",))
        return await describe_hosts(found.hosts, settings.credentials, timeout=settings.timeout)

    outcomes = run(work)
    if as_json:
        _output.print_json([_to_json(each) for each in outcomes])
    else:
        _print(outcomes, settings)
    _fleet.raise_failure(outcomes)


def _print(outcomes: _Outcomes, settings: Settings) -> None:
    _output.print_table(
        [
            ("HOST", "left"),
            ("NAME", "left"),
            ("VERSION", "left"),
            ("ARCH", "left"),
            ("CLOCK", "left"),
            ("ROUND TRIP", "right"),
            ("SESSIONS", "right"),
            ("STATE", "left"),
        ],
        map(_row, outcomes),
        color=settings.color,
    )
    answered = sum(each.error is None for each in outcomes)
    failed = len(outcomes) - answered
    click.echo(f"{_output.plural(len(outcomes), 'host')}: {answered:,} answered, {failed:,} failed")
    versions = group_answers(
        (each.host.endpoint, each.value.info.version) for each in outcomes if each.value is not None
    )
    if len(versions) > 1:
        shown = "; ".join(f"{each.value} on {each.where}" for each in versions)
        _output.note(f"agents of several versions: {shown}")
    for same in same_agents(outcomes):
        _output.note(f"several names of one agent: {', '.join(map(str, same))}")
    hints = dict.fromkeys(each.error.hint for each in outcomes if each.error is not None)
    for hint in hints if len(outcomes) > 1 else ():
        _output.note(f"hint: {hint}")


def _row(outcome: Outcome[FleetHost, HostReport]) -> tuple[str, ...]:
    report = outcome.value
    if outcome.error is not None or report is None:
        state = _fleet.brief(outcome.error, outcome.host) if outcome.error is not None else "?"
        return (str(outcome.host), *("-",) * 6, state)
    clock = report.clock
    return (
        str(outcome.host),
        report.info.hostname,
        report.info.version,
        report.info.architecture.name.lower(),
        _clock(clock) if clock else "?",
        _output.brief_duration(clock.round_trip_ns) if clock else "?",
        str(report.info.session_count),
        "ok",
    )


def _clock(clock: ClockOffset) -> str:
    sign = "-" if clock.offset_ns < 0 else "+"
    offset = _output.brief_duration(abs(clock.offset_ns))
    return f"{sign}{offset} +- {_output.brief_duration(clock.bound_ns)}"


def _to_json(outcome: Outcome[FleetHost, HostReport]) -> dict[str, object]:
    report = outcome.value
    return {
        "host": str(outcome.host.endpoint),
        "origins": outcome.host.origins,
        "agent": report.info if report else None,
        "clock": report.clock if report else None,
        "error": _fleet.error_json(outcome.error),
    }
