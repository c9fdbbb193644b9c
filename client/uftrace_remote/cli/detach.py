"""`detach`: leave a process as it was."""

from __future__ import annotations

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._each import on_every_session
from uftrace_remote.cli._find_session import find_session
from uftrace_remote.cli._options import json_option
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.values import DetachResult


@click.command()
@click.argument("target")
@json_option
@pass_settings
def detach(settings: Settings, target: str, as_json: bool) -> None:
    """Unpatch everything and let a process go."""
    if _fleet.is_fleet_target(target):
        on_every_session(
            settings,
            target,
            lambda agent, session_id: agent.detach(session_id),
            _describe,
            what="detaching",
            as_json=as_json,
        )
        return
    where = settings.target(target)

    async def work() -> DetachResult:
        async with settings.connect(where.endpoint) as agent:
            session = await find_session(agent, where.process)
            return await agent.detach(session.session_id)

    with spinner(f"detaching from {where}"):
        result = run(work)
    if as_json:
        _output.print_json(result)
        return
    click.echo(
        f"detached: {_output.plural(result.restored_sites, 'site')} restored, "
        f"{_output.pause(result.longest_pause_ns)}; "
        f"{_output.plural(result.records_produced, 'record')}, {result.records_lost:,} lost"
    )
    if result.conflicting_sites:
        _output.note(
            f"{_output.plural(result.conflicting_sites, 'site')} left alone: "
            "somebody else changed them since"
        )


# What differs from host to host, such as counts of records, is not told of many.
def _describe(done: DetachResult) -> str:
    words = f"detached: {_output.plural(done.restored_sites, 'site')} restored"
    if done.conflicting_sites:
        words += f", {_output.plural(done.conflicting_sites, 'site')} left alone: changed since"
    return words
