"""`ps`: the processes of a host, or of many."""

from __future__ import annotations

from collections.abc import Sequence

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._options import json_option
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.fleet.address import is_plural
from uftrace_remote.fleet.agents import list_processes
from uftrace_remote.fleet.fan_out import Outcome
from uftrace_remote.fleet.grouping import fold_endpoints
from uftrace_remote.fleet.programs import Program, find_programs
from uftrace_remote.fleet.resolution import FleetHost
from uftrace_remote.values import Process

_Outcomes = Sequence[Outcome[FleetHost, tuple[Process, ...]]]

_COLUMNS = (
    ("PID", "right"),
    ("UID", "right"),
    ("THREADS", "right"),
    ("MEMORY", "right"),
    ("STATE", "left"),
    ("COMMAND", "left"),
)


@click.command()
@click.argument("hosts", nargs=-1, metavar="[HOST...]")
@click.option("--name", default="", help="Only those whose name or command line contains this.")
@click.option("--all", "everything", is_flag=True, help="Also those that cannot be attached to.")
@click.option("--programs", is_flag=True, help="A line for each program and build, not process.")
@json_option
@pass_settings
def ps(
    settings: Settings,
    hosts: tuple[str, ...],
    name: str,
    everything: bool,
    programs: bool,
    as_json: bool,
) -> None:
    """List the processes of hosts.

    HOST is a host, a range (web[01-16]), a list (web1,web2) or a group of the inventory (@web).
    """
    if is_plural(hosts) or programs:
        _many(settings, hosts, name, everything, programs, as_json)
    else:
        _one(settings, hosts[0] if hosts else None, name, everything, as_json)


def _one(settings: Settings, host: str | None, name: str, everything: bool, as_json: bool) -> None:
    async def work() -> tuple[Process, ...]:
        async with settings.connect(settings.host(host)) as agent:
            return await agent.processes(name, include_unattachable=everything)

    processes = run(work)
    if as_json:
        _output.print_json(processes)
        return
    _output.print_table(_COLUMNS, map(_row, processes), color=settings.color)


def _many(
    settings: Settings,
    hosts: tuple[str, ...],
    name: str,
    everything: bool,
    programs: bool,
    as_json: bool,
) -> None:
    async def work() -> _Outcomes:
        found = await _fleet.find_hosts(settings, hosts or (str(settings.endpoint),))
        return await list_processes(
            found.hosts,
            name,
            settings.credentials,
            include_unattachable=everything,
            timeout=settings.timeout,
        )

    outcomes = run(work)
    if as_json and programs:
        _output.print_json([_program_json(each) for each in _programs(outcomes)])
    elif as_json:
        _output.print_json([_to_json(each) for each in outcomes])
    else:
        _print(outcomes, programs, settings.color)
    if len(outcomes) > 1:
        _fleet.print_failures(outcomes)
    _fleet.raise_failure(outcomes)


def _print(outcomes: _Outcomes, programs: bool, color: bool | None) -> None:
    if programs:
        columns = (
            ("HOSTS", "right"),
            ("PROCESSES", "right"),
            ("THREADS", "right"),
            ("MEMORY", "right"),
            ("BUILD ID", "left"),
            ("PROGRAM", "left"),
            ("ON", "left"),
        )
        _output.print_table(columns, map(_program_row, _programs(outcomes)), color=color)
    else:
        rows = (
            (str(each.host), *_row(process)) for each in outcomes for process in each.value or ()
        )
        _output.print_table((("HOST", "left"), *_COLUMNS), rows, color=color)
    counts = [len(each.value) for each in outcomes if each.value is not None]
    failed = len(outcomes) - len(counts)
    click.echo(
        f"{_processes(sum(counts))} on {_output.plural(len(counts), 'host')}"
        + (f", {_output.plural(failed, 'host')} failed" if failed else "")
    )


def _processes(count: int) -> str:
    return f"{count:,} process" if count == 1 else f"{count:,} processes"


def _programs(outcomes: _Outcomes) -> tuple[Program, ...]:
    return find_programs(
        (each.host.endpoint, each.value) for each in outcomes if each.value is not None
    )


def _row(process: Process) -> tuple[str, ...]:
    return (
        str(process.pid),
        str(process.uid),
        str(process.thread_count),
        _output.size(process.resident_bytes),
        _state(process),
        " ".join(process.command_line) or f"[{process.command_name}]",
    )


def _program_row(program: Program) -> tuple[str, ...]:
    return (
        f"{len(program.hosts):,}",
        f"{program.process_count:,}",
        f"{program.thread_count:,}",
        _output.size(program.resident_bytes),
        program.build_id[:16] or "-",
        program.name,
        ",".join(fold_endpoints(program.hosts)),
    )


def _state(process: Process) -> str:
    if process.session_id:
        return f"session {process.session_id[:8]}"
    if not process.attachable:
        return process.refusal_reason.lower().replace("_", " ") or "not attachable"
    return "-"


def _to_json(outcome: Outcome[FleetHost, tuple[Process, ...]]) -> dict[str, object]:
    return {
        "host": str(outcome.host.endpoint),
        "processes": outcome.value,
        "error": _fleet.error_json(outcome.error),
    }


def _program_json(program: Program) -> dict[str, object]:
    return {
        "name": program.name,
        "build_id": program.build_id,
        "hosts": list(map(str, program.hosts)),
        "process_count": program.process_count,
        "thread_count": program.thread_count,
        "resident_bytes": program.resident_bytes,
    }
