# `functions` of many processes: those of the same program once.
from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._plan_fleet import without_addresses
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._settings import Settings, run
from uftrace_remote.errors import NoSuchFunctionError
from uftrace_remote.fleet.address import FleetTarget
from uftrace_remote.fleet.fan_out import Outcome, fan_out
from uftrace_remote.fleet.member import Member
from uftrace_remote.values import FunctionInfo

# Symbols of a large program are read for the first time.
_SECONDS = 60.0

_Outcomes = Sequence[Outcome[Member, list[FunctionInfo]]]


def list_fleet_functions(
    settings: Settings,
    target: str,
    patterns: Sequence[str],
    *,
    explain: bool,
    limit: int,
    as_json: bool,
    print_functions: Callable[[Sequence[FunctionInfo]], None],
) -> None:
    """List the functions of every process that TARGET means; equal lists are one.

    Args:
        settings: The global options.
        target: What the user wrote.
        patterns: Which functions.
        explain: As `AgentClient.functions` has it.
        limit: Likewise.
        as_json: Print JSON.
        print_functions: Prints one list.

    Raises:
        UftraceError: It failed somewhere; all is printed before.
    """
    where = FleetTarget.parse(target)

    async def ask(member: Member) -> list[FunctionInfo]:
        listing = member.agent.client.functions(
            member.process.reference, patterns, explain=explain, limit=limit
        )
        found = [each async for each in listing]
        if not found and patterns:
            raise NoSuchFunctionError(
                f"no function matches {' '.join(patterns)}",
                hint="use a glob such as '*name*', or name the module: libfoo*!name",
            )
        return found

    async def work() -> tuple[_Outcomes, _fleet.Failures]:
        async with _fleet.open_fleet(settings, where) as fleet:
            found = await fleet.members(where.process)
            outcomes = await fan_out(
                found.values, ask, deadline=_SECONDS, name=lambda member: member.agent
            )
            return outcomes, found.failures

    with spinner("reading symbols"):
        outcomes, unreached = run(work)
    failures = [(each.host.agent.endpoint, each.error) for each in outcomes if each.error]
    failures += unreached
    groups: dict[Hashable, tuple[list[Member], list[FunctionInfo]]] = {}
    for each in outcomes:
        if each.value is not None:
            groups.setdefault(_key(each.value), ([], each.value))[0].append(each.host)
    if as_json:
        _output.print_json(
            [
                {"processes": list(map(str, members)), "functions": found}
                for members, found in groups.values()
            ]
        )
    else:
        for number, (members, found) in enumerate(groups.values()):
            click.echo(f"{chr(10) if number else ''}{_title(members)}:")
            print_functions(found)
    _fleet.note_failures(failures)
    count = len(outcomes) + len(unreached)
    _fleet.raise_failures([error for _, error in failures], count, "processes")


# Where the program lies, what is mapped around it, and who has patched what, is no
# difference of programs.
def _key(found: Sequence[FunctionInfo]) -> Hashable:
    return tuple(
        replace(
            each,
            function=replace(each.function, address=0),
            enabled=False,
            detail=without_addresses(each.detail) if each.refusal or each.exit_refusal else "",
        )
        for each in found
    )


def _title(members: Sequence[Member]) -> str:
    process = members[0].process
    where = str(members[0])
    if len(members) > 1:
        hosts = _fleet.fold(each.agent.endpoint for each in members)
        where = f"{hosts} ({len(members):,} processes; addresses are those of {members[0]})"
    builds = {each.process.build_id[:16] for each in members}
    build = f", build id {builds.pop()}" if len(builds) == 1 and "" not in builds else ""
    return f"{where}: {process.executable or process.command_name}{build}"
