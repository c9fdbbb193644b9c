"""`export`: a trace in another tool's format."""

from __future__ import annotations

from pathlib import Path

import click

from uftrace_remote.cli import _output
from uftrace_remote.cli._progress import spinner
from uftrace_remote.export import FORMATS
from uftrace_remote.trace.store import TraceReader


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
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
def export(directory: Path, name: str, output: Path) -> None:
    """Write a trace in another format."""
    with spinner(f"writing {output}"):
        result = FORMATS[name].write(TraceReader(directory), output)
    click.echo(f"wrote {_output.plural(result.calls, 'call')} to {result.path}")
    for remark in result.remarks:
        _output.note(f"note: {remark}")
