"""`budget`: what tracing may cost."""

from __future__ import annotations

import click

from uftrace_remote.agent import AgentClient
from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._each import on_every_session
from uftrace_remote.cli._find_session import find_session
from uftrace_remote.cli._options import json_option, limit_options
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.cli._throttles import (
    advice,
    describe_cost,
    describe_limits,
    describe_throttle,
    share,
)
from uftrace_remote.values import AgentInfo, Limits, LimitsResult, Tracepoint


@click.command()
@click.argument("target")
@click.argument("patterns", nargs=-1, metavar="[FUNC]...")
@limit_options(of="the session, or of FUNC alone,", cpu="--cpu", rate="--rate")
@json_option
@pass_settings
def budget(
    settings: Settings,
    target: str,
    patterns: tuple[str, ...],
    cpu: float | None,
    rate: float | None,
    as_json: bool,
) -> None:
    """Show or set what tracing a process may cost.

    What costs more is unpatched within a second, the hottest function first, and stays
    so. Functions that are named get limits of their own and count no longer for the
    session's; `patch` takes a function again once its limit was raised.
    """
    change = Limits(cpu, rate)
    changes = change != Limits()
    if patterns and not changes:
        raise click.UsageError("say what FUNC may cost: --cpu or --rate")
    if _fleet.is_fleet_target(target):

        async def ask(agent: AgentClient, session_id: str) -> LimitsResult:
            if changes:
                return await agent.set_limits(session_id, change, patterns)
            sessions = {each.session_id: each for each in await agent.sessions()}
            return LimitsResult(sessions[session_id])

        what = "setting limits" if changes else "asking"
        on_every_session(settings, target, ask, _describe, what=what, as_json=as_json)
        return
    where = settings.target(target)

    async def work() -> tuple[AgentInfo, LimitsResult, tuple[Tracepoint, ...]]:
        async with settings.connect(where.endpoint) as agent:
            session = await find_session(agent, where.process)
            result = LimitsResult(session)
            if changes:
                result = await agent.set_limits(session.session_id, change, patterns)
            found = await agent.tracepoints(session.session_id)
            return await agent.info(), result, found

    info, result, tracepoints = run(work)
    session = result.session
    if as_json:
        _output.print_json({"limits": session.limits, "cpu": session.cpu, "result": result})
        return
    if patterns:
        click.echo(
            f"{_output.plural(result.function_count, 'function')}: {describe_limits(change)}"
            if None not in (cpu, rate)
            else f"set limits of {_output.plural(result.function_count, 'function')}"
        )
    click.echo(f"session {session.session_id}: {describe_limits(session.limits)}")
    click.echo(f"now {share(session.cpu)} of a processor; {describe_cost(info.probe_cost)}")
    for each in tracepoints:
        if each.limits != Limits() and each.throttle is None:
            click.echo(f"  {each.patch.function.name}: {describe_limits(each.limits)}")
    for throttle in session.throttled:
        click.echo(
            f"  {throttle.function} throttled: {describe_throttle(throttle)} "
            f"({advice(throttle, target)})"
        )
    if result.raised_count:
        click.echo(f"{_output.plural(result.raised_count, 'function')} may be patched again")


def _describe(result: LimitsResult) -> str:
    session = result.session
    parts = [describe_limits(session.limits)]
    if result.function_count:
        parts.append(f"limits of {_output.plural(result.function_count, 'function')} set")
    parts += [f"{each.function} throttled" for each in session.throttled]
    if result.raised_count:
        parts.append(f"{_output.plural(result.raised_count, 'function')} may be patched again")
    return ", ".join(parts)
