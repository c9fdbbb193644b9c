"""`attach`: hold a process."""

from __future__ import annotations

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._each import on_every_process
from uftrace_remote.cli._options import json_option, limit_options
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.values import AttachResult, Limits


@click.command()
@click.argument("target")
@limit_options(of="the session")
@json_option
@pass_settings
def attach(
    settings: Settings, target: str, cpu: float | None, rate: float | None, as_json: bool
) -> None:
    """Attach to a process, so that patching it later is quick."""
    if _fleet.is_fleet_target(target):
        on_every_process(
            settings,
            target,
            lambda agent, process: agent.attach(process.reference, limits=Limits(cpu, rate)),
            _describe,
            what="attaching",
            as_json=as_json,
        )
        return
    where = settings.target(target)

    async def work() -> AttachResult:
        async with settings.connect(where.endpoint) as agent:
            process = await agent.resolve_process(where.process)
            return await agent.attach(process.reference, limits=Limits(cpu, rate))

    with spinner(f"attaching to {where}"):
        result = run(work)
    if as_json:
        _output.print_json(result)
        return
    session = result.session
    if not result.created:
        click.echo(
            f"session {session.session_id} of {session.owner} holds {session.process.pid} already: "
            f"{_output.plural(session.tracepoint_count, 'tracepoint')}"
        )
        return
    click.echo(
        f"attached to {session.process.pid} ({session.process.command_name}): session "
        f"{session.session_id}, {_output.pause(result.longest_pause_ns)}"
    )
    if result.restored_sites:
        _output.note(f"restored {_output.plural(result.restored_sites, 'site')} of a dead agent")


def _describe(result: AttachResult) -> str:
    if result.created:
        return "attached"
    held = _output.plural(result.session.tracepoint_count, "tracepoint")
    return f"a session of {result.session.owner} holds it already: {held}"
