"""`version`."""

from __future__ import annotations

import click

from uftrace_remote._version import client_version
from uftrace_remote.cli import _output
from uftrace_remote.cli._options import json_option


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version of this client."""
    if as_json:
        _output.print_json({"version": client_version()})
        return
    click.echo(f"uftrace-remote {client_version()}")
