"""`unpatch`: disable tracepoints."""

from __future__ import annotations

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._each import on_every_session
from uftrace_remote.cli._find_session import find_session
from uftrace_remote.cli._options import WRITERS, json_option
from uftrace_remote.cli._progress import spinner
from uftrace_remote.cli._refusals import print_refusals
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.cli._writers import print_writers
from uftrace_remote.enums import PatchWriter
from uftrace_remote.values import UnpatchResult


@click.command()
@click.argument("target")
@click.argument("patterns", nargs=-1, metavar="[FUNC]...")
@click.option(
    "--writer",
    type=click.Choice(WRITERS),
    default="auto",
    show_default=True,
    help="How code bytes are set back.",
)
@json_option
@pass_settings
def unpatch(
    settings: Settings, target: str, patterns: tuple[str, ...], writer: str, as_json: bool
) -> None:
    """Disable tracepoints; all of the process without FUNC."""
    chosen = PatchWriter[writer.upper()]
    if _fleet.is_fleet_target(target):
        on_every_session(
            settings,
            target,
            lambda agent, session_id: agent.unpatch(session_id, patterns, chosen),
            lambda done: f"unpatched {_output.plural(done.disabled_count, 'function')}",
            what="unpatching",
            as_json=as_json,
        )
        return
    where = settings.target(target)

    async def work() -> UnpatchResult:
        async with settings.connect(where.endpoint) as agent:
            session = await find_session(agent, where.process)
            return await agent.unpatch(session.session_id, patterns, chosen)

    with spinner("unpatching"):
        result = run(work)
    if as_json:
        _output.print_json(result)
        return
    click.echo(
        f"unpatched {_output.plural(result.disabled_count, 'function')} in "
        f"{_output.brief_duration(result.elapsed_ns)}, "
        f"{_output.pause(result.longest_pause_ns, result.longest_pause_tid)}"
    )
    print_writers(result)
    print_refusals(result.results)
