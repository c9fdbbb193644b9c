"""The command `uftrace-agent`.

Exit codes: 0 ended by a signal, with every process left as it was; 1 a bug;
2 wrong usage; 3 cannot listen; 4 the state directory cannot be used.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from uftrace_agent import __version__
from uftrace_agent.config import (
    DEFAULT_PORT,
    AgentConfig,
    ListenAddress,
    parse_listen_address,
)
from uftrace_agent.logging_setup import LogFormat, set_up_logging
from uftrace_agent.state_directory import (
    StateDirectory,
    StateDirectoryError,
    default_state_directory,
)


class CannotListen(click.ClickException):
    """An address is taken, unknown or not allowed."""

    exit_code = 3


class CannotKeepState(click.ClickException):
    """The state directory cannot be used."""

    exit_code = 4


def _parse_listen(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[ListenAddress, ...]:
    try:
        return tuple(map(parse_listen_address, texts))
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--listen",
    callback=_parse_listen,
    multiple=True,
    metavar="ADDRESS",
    help="HOST:PORT, :PORT for all interfaces, or unix:PATH; port 0 takes a free one. "
    f"Give it several times for several.  [default: 127.0.0.1:{DEFAULT_PORT} and agent.sock "
    "in the state directory]",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_state_directory,
    show_default="$UFTRACE_STATE_DIR, else /var/lib/uftrace-agent for root, else "
    "~/.local/state/uftrace-agent",
    help="Folder of keys, certificates and token, made on first start.",
)
@click.option(
    "--log-format",
    type=click.Choice(["json", "console"]),
    default="console",
    show_default=True,
    help="Form of the log on standard error.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Lowest level that is logged.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="No TLS and no token: whoever reaches the port can change every process.",
)
@click.version_option(__version__, prog_name="uftrace-agent")
def main(
    listen: tuple[ListenAddress, ...],
    state_dir: Path,
    log_format: LogFormat,
    log_level: str,
    insecure: bool,
) -> None:
    """Trace functions of the running processes of this host, for uftrace-remote.

    Prints "listening on ADDRESS" for each address once it is ready. SIGTERM
    or SIGINT ends it, after every process is as it was before.
    """
    set_up_logging(log_format, log_level)
    # gRPC writes its own lines to standard error, in its own form; what they
    # say reaches us as errors of its calls too. It reads this at import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from uftrace_agent.rpc.lifecycle import serve
    from uftrace_agent.rpc.server import ListenError
    from uftrace_agent.session.manager import SessionManager

    try:
        state = StateDirectory(state_dir.absolute())
    except StateDirectoryError as error:
        raise CannotKeepState(str(error)) from error
    default = (ListenAddress("127.0.0.1"), ListenAddress(path=state.socket_path))
    config = AgentConfig(listen=listen or default, state_dir=state.path, insecure=insecure)

    async def run() -> None:
        await serve(config, state, SessionManager(state.path), announce=click.echo)

    try:
        asyncio.run(run())
    except ListenError as error:
        raise CannotListen(str(error)) from error


if __name__ == "__main__":
    main()
