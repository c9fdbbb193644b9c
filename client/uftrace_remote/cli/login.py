"""`login`: certificate and token of an agent on another host."""

from __future__ import annotations

import asyncio
import sys

import click

from uftrace_remote.cli._settings import Settings, pass_settings
from uftrace_remote.credentials import host_directory
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import AuthenticationError, UsageError
from uftrace_remote.login import (
    check_fingerprint,
    fetch_authority,
    fingerprint,
    parse_fingerprint,
    store,
    try_token,
)


@click.command()
@click.argument("host", metavar="HOST[:PORT]")
@click.option(
    "--fingerprint",
    "expected",
    metavar="SHA256",
    help="What the agent's authority has to have; without it you are asked.",
)
@pass_settings
def login(settings: Settings, host: str, expected: str | None) -> None:
    """Get to know the agent of another host, once.

    On that host, `uftrace-agent credentials` prints the fingerprint, and
    `uftrace-agent credentials --token trace` a token. The token is asked for, or
    read from standard input; nothing is kept unless the agent takes it.
    """
    endpoint = Endpoint.parse(host)
    if endpoint.is_unix or settings.credentials.insecure:
        raise UsageError(
            "there is nothing to log in to without TLS",
            hint="login is for agents that are reached as HOST[:PORT]",
        )
    wanted = parse_fingerprint(expected) if expected else None
    interactive = sys.stdin.isatty()
    if wanted is None and not interactive:
        raise UsageError(
            "nobody is there to compare the fingerprint",
            reason="FINGERPRINT_MISSING",
            hint="say it with --fingerprint; on the agent's host: uftrace-agent credentials",
        )
    authority = fetch_authority(endpoint, settings.timeout)
    if wanted is not None:
        check_fingerprint(authority, wanted, endpoint)
    else:
        click.echo(f"{endpoint} shows the authority with SHA-256\n  {fingerprint(authority)}")
        if not click.confirm("Is that what `uftrace-agent credentials` prints there?"):
            raise AuthenticationError(
                "the fingerprint was not confirmed; nothing is kept", reason="WRONG_FINGERPRINT"
            )
    token = _read_token(interactive)
    info = asyncio.run(try_token(endpoint, authority, token, settings.timeout))
    directory = host_directory(endpoint)
    store(directory, authority, token)
    click.echo(f"logged in to {info.hostname} ({endpoint}); kept in {directory}")


def _read_token(interactive: bool) -> str:
    if interactive:
        token = click.prompt("Token", hide_input=True, type=str)
    else:
        token = sys.stdin.readline()
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UsageError(
            "there is no token on standard input",
            reason="TOKEN_MISSING",
            hint="ssh HOST uftrace-agent credentials --token trace | uftrace-remote login HOST "
            "--fingerprint SHA256",
        )
    return str(token)
