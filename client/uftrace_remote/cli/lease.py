"""`keep` and `release`: what becomes of tracepoints that were patched for some time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import click

from uftrace_remote.agent import AgentClient
from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._each import on_every_session
from uftrace_remote.cli._find_session import find_session
from uftrace_remote.cli._options import duration_type, json_option
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.values import Lease, LeaseResult


@click.command()
@click.argument("target")
@click.argument("name")
@click.option(
    "--for",
    "duration_ns",
    type=duration_type("s"),
    metavar="TIME",
    help="Keep them for so long from now (10m, 2h).  [default: until they are unpatched]",
)
@json_option
@pass_settings
def keep(
    settings: Settings, target: str, name: str, duration_ns: int | None, as_json: bool
) -> None:
    """Keep the tracepoints of a lease: for good, or for longer.

    `status` shows the leases, by the names that `patch --lease` gave.
    """

    async def prolong(agent: AgentClient, session_id: str) -> LeaseResult:
        if duration_ns is None:
            return await agent.release_lease(session_id, name, keep=True)
        renewed = await agent.renew_lease(session_id, Lease(name, duration_ns))
        held = (lease for lease in renewed.leases if lease.name == name)
        return LeaseResult(renewed, next((lease.tracepoint_count for lease in held), 0))

    def describe(result: LeaseResult) -> str:
        until = _output.brief_duration(duration_ns) if duration_ns else "until they are unpatched"
        count = _output.plural(result.tracepoint_count, "tracepoint")
        return f"{count} of lease {name} kept {'for ' if duration_ns else ''}{until}"

    _change(settings, target, prolong, describe, "keeping", as_json)


@click.command()
@click.argument("target")
@click.argument("name")
@json_option
@pass_settings
def release(settings: Settings, target: str, name: str, as_json: bool) -> None:
    """End a lease now: what it alone holds is unpatched."""

    def describe(result: LeaseResult) -> str:
        count = _output.plural(result.tracepoint_count, "function")
        return f"released {name}: unpatched {count}"

    _change(
        settings,
        target,
        lambda agent, session_id: agent.release_lease(session_id, name),
        describe,
        "releasing",
        as_json,
    )


def _change(
    settings: Settings,
    target: str,
    ask: Callable[[AgentClient, str], Awaitable[LeaseResult]],
    describe: Callable[[LeaseResult], str],
    what: str,
    as_json: bool,
) -> None:
    if _fleet.is_fleet_target(target):
        on_every_session(settings, target, ask, describe, what=what, as_json=as_json)
        return
    where = settings.target(target)

    async def work() -> LeaseResult:
        async with settings.connect(where.endpoint) as agent:
            session = await find_session(agent, where.process)
            return await ask(agent, session.session_id)

    result = run(work)
    if as_json:
        _output.print_json(result)
    else:
        click.echo(describe(result))
