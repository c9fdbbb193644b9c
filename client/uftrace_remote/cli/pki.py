"""`pki`: one certificate authority for a fleet."""

from __future__ import annotations

from pathlib import Path

import click

from uftrace_remote.credentials import config_directory, fleet_directory

_DIR = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    show_default="~/.config/uftrace-remote/pki",
    help="The authority's folder.",
)
_DAYS = click.IntRange(1, 36500)


@click.group()
def pki() -> None:
    """Certificates for many agents and their clients, of one authority."""


@pki.command()
@_DIR
def init(directory: Path | None) -> None:
    """Make the authority. Its ca.key signs everything: keep it off the fleet's hosts."""
    from uftrace_remote import pki as authority

    made = authority.init(_folder(directory))
    click.echo(f"made {made}; its key is beside it, and signs for the whole fleet")
    click.echo("next: uftrace-remote pki issue agent HOST, and pki issue client NAME --role ROLE")


@pki.group()
def issue() -> None:
    """Make a key and a certificate; again for the same name renews it."""


@issue.command()
@click.argument("name")
@click.option("--host", "hosts", multiple=True, help="Further name or address of its host.")
@click.option("--days", type=_DAYS, default=365, show_default=True, help="How long it is valid.")
@_DIR
def agent(name: str, hosts: tuple[str, ...], days: int, directory: Path | None) -> None:
    """For the agent on the host NAME."""
    from uftrace_remote import pki as authority

    folder = authority.issue_agent(_folder(directory), name, hosts, days=days)
    click.echo(f"made {folder}; copy it to the host, mode 0700, and there:")
    click.echo("uftrace-agent --listen :50051 --tls-dir FOLDER")


@issue.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(("view", "trace", "admin")),
    default="trace",
    show_default=True,
    help="What its owner may do.",
)
@click.option("--days", type=_DAYS, default=90, show_default=True, help="How long it is valid.")
@_DIR
def client(name: str, role: str, days: int, directory: Path | None) -> None:
    """For the person or program NAME."""
    from uftrace_remote import pki as authority

    folder = authority.issue_client(_folder(directory), name, role, days=days)
    click.echo(f"made {folder}; its owner keeps it as {fleet_directory()},")
    click.echo("or names it with --tls-dir or UFTRACE_TLS_DIR")


def _folder(directory: Path | None) -> Path:
    return directory or config_directory() / "pki"
