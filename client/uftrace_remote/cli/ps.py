"""`ps`: the processes of a host."""

from __future__ import annotations

import click

from uftrace_remote.cli import _output
from uftrace_remote.cli._options import json_option
from uftrace_remote.cli._settings import Settings, pass_settings, run
from uftrace_remote.values import Process


@click.command()
@click.argument("host", required=False, metavar="[HOST[:PORT]]")
@click.option("--name", default="", help="Only those whose name or command line contains this.")
@click.option("--all", "everything", is_flag=True, help="Also those that cannot be attached to.")
@json_option
@pass_settings
def ps(settings: Settings, host: str | None, name: str, everything: bool, as_json: bool) -> None:
    """List the processes of a host."""

    async def work() -> tuple[Process, ...]:
        async with settings.connect(settings.host(host)) as agent:
            return await agent.processes(name, include_unattachable=everything)

    processes = run(work)
    if as_json:
        _output.print_json(processes)
        return
    _output.print_table(
        [
            ("PID", "right"),
            ("UID", "right"),
            ("THREADS", "right"),
            ("MEMORY", "right"),
            ("STATE", "left"),
            ("COMMAND", "left"),
        ],
        (
            (
                str(each.pid),
                str(each.uid),
                str(each.thread_count),
                _output.size(each.resident_bytes),
                _state(each),
                " ".join(each.command_line) or f"[{each.command_name}]",
            )
            for each in processes
        ),
        color=settings.color,
    )


def _state(process: Process) -> str:
    if process.session_id:
        return f"session {process.session_id[:8]}"
    if not process.attachable:
        return process.refusal_reason.lower().replace("_", " ") or "not attachable"
    return "-"
