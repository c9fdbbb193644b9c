"""`export`: a trace in another tool's format."""

from __future__ import annotations

from pathlib import Path

import click

from uftrace_remote.cli import _output
from uftrace_remote.cli._progress import spinner
from uftrace_remote.export import FORMATS
from uftrace_remote.export.fleet import write_fleet
from uftrace_remote.trace.recordings import open_recording


@click.command()
@click.argument("directory", metavar="DIR")
@click.option(
    "-f",
    "--format",
    "name",
    type=click.Choice(list(FORMATS)),
    required=True,
    help="; ".join(f"{each.name}: {each.description}" for each in FORMATS.values()),
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUT",
    help="File to write; for uftrace a new or empty directory.",
)
@click.option("--by-host", is_flag=True, help="Flame graph of many hosts: one root for each.")
def export(directory: str, name: str, output: Path, by_host: bool) -> None:
    """Write a trace in another format.

    DIR is a trace, a recording of many hosts, or a part of one: DIR:HOST, DIR:@GROUP,
    DIR:build-id=HEX.
    """
    recording = open_recording(directory)
    if by_host and (name != "flamegraph" or not recording.is_fleet):
        raise click.UsageError("--by-host is for flame graphs of recordings of many hosts")
    with spinner(f"writing {output}"):
        if recording.is_fleet:
            result = write_fleet(name, recording, output, by_host=by_host)
        else:
            result = FORMATS[name].write(recording.members[0].trace, output)
    click.echo(f"wrote {_output.plural(result.calls, 'call')} to {result.path}")
    for remark in result.remarks:
        _output.note(f"note: {remark}")
