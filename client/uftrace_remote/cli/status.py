"""`status`: the agent, its sessions and their tracepoints."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import click

from uftrace_remote.agent import AgentClient
from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._options import json_option
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.cli._throttles import (
    advice,
    describe_cost,
    describe_limits,
    describe_throttle,
    share,
)
from uftrace_remote.enums import TracepointState
from uftrace_remote.errors import NoSuchSessionError
from uftrace_remote.fleet.address import is_plural
from uftrace_remote.fleet.agents import ask_agents
from uftrace_remote.fleet.fan_out import Outcome
from uftrace_remote.fleet.resolution import FleetHost
from uftrace_remote.values import AgentInfo, Session, Tracepoint

_COLUMNS = (
    ("SESSION", "left"),
    ("PID", "right"),
    ("COMMAND", "left"),
    ("OWNER", "left"),
    ("SINCE", "left"),
    ("TRACEPOINTS", "right"),
    ("RECORDS", "right"),
    ("LOST", "right"),
    ("STREAMS", "right"),
    ("CPU", "right"),
    ("MEMORY", "right"),
    ("STATE", "left"),
)


@dataclass(frozen=True, slots=True)
class _SessionStatus:
    session: Session
    tracepoints: tuple[Tracepoint, ...]


@dataclass(frozen=True, slots=True)
class _Status:
    agent: AgentInfo
    sessions: tuple[_SessionStatus, ...]


@click.command()
@click.argument("hosts", nargs=-1, metavar="[HOST...]")
@click.option("-v", "--verbose", is_flag=True, help="List every tracepoint.")
@json_option
@pass_settings
def status(settings: Settings, hosts: tuple[str, ...], verbose: bool, as_json: bool) -> None:
    """Show an agent, its sessions and what is patched; or the sessions of many agents.

    HOST is a host, a range (web[01-16]), a list (web1,web2) or a group of the inventory (@web).
    """
    if is_plural(hosts):
        _many(settings, hosts, as_json)
        return
    endpoint = settings.host(hosts[0] if hosts else None)

    async def work() -> _Status:
        async with settings.connect(endpoint) as agent:
            return await _ask(agent)

    result = run(work)
    if as_json:
        _output.print_json(result)
        return
    _print_one(result, verbose, settings.color)


async def _ask(agent: AgentClient) -> _Status:
    info = await agent.info()
    found = []
    for session in await agent.sessions():
        try:
            tracepoints = await agent.tracepoints(session.session_id)
        except NoSuchSessionError:
            continue  # detached meanwhile
        found.append(_SessionStatus(session, tracepoints))
    return _Status(info, tuple(found))


def _many(settings: Settings, hosts: tuple[str, ...], as_json: bool) -> None:
    async def work() -> Sequence[Outcome[FleetHost, _Status]]:
        found = await _fleet.find_hosts(settings, hosts)
        return await ask_agents(found.hosts, _ask, settings.credentials, timeout=settings.timeout)

    outcomes = run(work)
    if as_json:
        _output.print_json(
            [
                {
                    "host": str(each.host.endpoint),
                    "status": each.value,
                    "error": _fleet.error_json(each.error),
                }
                for each in outcomes
            ]
        )
    else:
        rows = [
            (str(each.host), *_row(session.session))
            for each in outcomes
            if each.value is not None
            for session in each.value.sessions
        ]
        if rows:
            _output.print_table((("HOST", "left"), *_COLUMNS), rows, color=settings.color)
        answered = sum(each.error is None for each in outcomes)
        click.echo(f"{_output.plural(len(rows), 'session')} on {_output.plural(answered, 'host')}")
    _fleet.print_failures(outcomes)
    _fleet.raise_failure(outcomes)


def _print_one(result: _Status, verbose: bool, color: bool | None) -> None:
    agent = result.agent
    click.echo(
        f"agent {agent.version} on {agent.hostname} ({agent.architecture.name.lower()}, "
        f"Linux {agent.kernel_release}), pid {agent.pid}, since {_moment(agent.started_unix_ns)}"
    )
    click.echo(f"{describe_cost(agent.probe_cost)}; budget: {describe_limits(agent.limits)}")
    if not result.sessions:
        click.echo("no sessions")
        return
    _output.print_table(
        _COLUMNS,
        (_row(each.session) for each in result.sessions),
        color=color,
    )
    for each in result.sessions:
        _print_throttled(each.session)
        _print_leases(each.session)
    if verbose:
        for each in result.sessions:
            _print_tracepoints(each, color)


def _row(session: Session) -> tuple[str, ...]:
    return (
        session.session_id,
        str(session.process.pid),
        session.process.command_name,
        session.owner,
        _moment(session.attached_unix_ns),
        f"{session.tracepoint_count:,}",
        f"{session.records_produced:,}",
        f"{session.records_lost:,}",
        str(session.stream_count),
        _cpu(session),
        _memory(session),
        session.end_reason or "running",
    )


def _cpu(session: Session) -> str:
    limit = session.limits.cpu
    return f"{share(session.cpu)} of {share(limit)}" if limit else "no limit"


def _memory(session: Session) -> str:
    used, limit = _output.size(session.annex_bytes), session.annex_limit_bytes
    return f"{used} of {_output.size(limit)}" if limit else used


def _print_throttled(session: Session) -> None:
    for throttle in session.throttled:
        click.echo(
            f"session {session.session_id}: {throttle.function} throttled: "
            f"{describe_throttle(throttle)} ({advice(throttle, str(session.process.pid))})"
        )


def _print_leases(session: Session) -> None:
    for lease in session.leases:
        click.echo(
            f"session {session.session_id}: lease {lease.name} holds "
            f"{_output.plural(lease.tracepoint_count, 'tracepoint')} for another "
            f"{_output.brief_duration(lease.remaining_ns)}"
        )
    if session.pending_patterns:
        click.echo(
            f"session {session.session_id}: pending in modules that are loaded later: "
            f"{', '.join(session.pending_patterns)}"
        )


def _print_tracepoints(status: _SessionStatus, color: bool | None) -> None:
    click.echo(f"\nsession {status.session.session_id}:")
    _output.print_table(
        [
            ("ID", "right"),
            ("STATE", "left"),
            ("CALLS/S", "right"),
            ("FORM", "left"),
            ("WRITER", "left"),
            ("EXIT", "left"),
            ("OWNER", "left"),
            ("MODULE", "left"),
            ("FUNCTION", "left"),
        ],
        (
            (
                str(each.patch.function_id),
                "throttled" if each.state is TracepointState.THROTTLED else "enabled",
                f"{each.calls_per_second:,.0f}",
                each.patch.form.name.lower(),
                each.patch.writer.name.lower(),
                "no" if each.patch.exit_refusal else "yes",
                each.owner,
                each.patch.function.module,
                each.patch.function.name,
            )
            for each in status.tracepoints
        ),
        color=color,
    )


def _moment(unix_ns: int) -> str:
    if not unix_ns:
        return "?"
    moment = datetime.datetime.fromtimestamp(unix_ns / 1e9).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")
