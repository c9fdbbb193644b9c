"""The command `uftrace-agent`.

Exit codes: 0 ended by a signal, with every process left as it was; 1 a bug;
2 wrong usage; 3 cannot listen; 4 the state directory, the certificates or the
policy cannot be used.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import click

from uftrace_agent import __version__
from uftrace_agent.config import (
    DEFAULT_PORT,
    AgentConfig,
    ListenAddress,
    parse_listen_address,
    parse_rate,
    parse_share,
)
from uftrace_agent.logging_setup import LogFormat, set_up_logging
from uftrace_agent.memory_use import limit_arenas
from uftrace_agent.state_directory import (
    TOKEN_FILES,
    StateDirectory,
    StateDirectoryError,
    default_state_directory,
)


class CannotListen(click.ClickException):
    """An address is taken, unknown or not allowed."""

    exit_code = 3


class CannotKeepState(click.ClickException):
    """The state directory, a fleet's certificates or the policy cannot be used."""

    exit_code = 4


def _parse_listen(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[ListenAddress, ...]:
    try:
        return tuple(map(parse_listen_address, texts))
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


def _parse_limit(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> float | None:
    if text is None:
        return None
    try:
        return (parse_share if parameter.name == "budget" else parse_rate)(text)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
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
@click.option(
    "--budget",
    callback=_parse_limit,
    default="5%",
    show_default=True,
    metavar="SHARE",
    help="Processor time that the probes of one session may take, in percent of one "
    "processor, or off. What takes more is unpatched, the hottest first.",
)
@click.option(
    "--rate-limit",
    callback=_parse_limit,
    metavar="CALLS",
    help="Calls per second that one tracepoint may have (500k, 1M, off).  [default: 1M; off "
    "with --budget off]",
)
@click.option(
    "--tls-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="UFTRACE_AGENT_TLS_DIR",
    show_envvar=True,
    help="Folder with a fleet's ca.pem, server.pem and server.key (uftrace-remote pki issue "
    "agent); clients then need certificates of that CA.",
)
@click.option(
    "--policy",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="UFTRACE_AGENT_POLICY",
    show_envvar=True,
    help="File of rules: which processes may be touched by whom, and what that may cost.",
)
@click.option(
    "--audit",
    metavar="FILE",
    help="File of changes, one JSON object a line, or log for the log alone.  "
    "[default: audit.jsonl in the state directory]",
)
@click.version_option(__version__, prog_name="uftrace-agent")
@click.pass_context
def main(
    context: click.Context,
    listen: tuple[ListenAddress, ...],
    state_dir: Path,
    log_format: LogFormat,
    log_level: str,
    insecure: bool,
    budget: float,
    rate_limit: float | None,
    tls_dir: Path | None,
    policy: Path | None,
    audit: str | None,
) -> None:
    """Trace functions of the running processes of this host, for uftrace-remote.

    Prints "listening on ADDRESS" for each address once it is ready. SIGTERM
    or SIGINT ends it, after every process is as it was before. An agent that
    was killed leaves its processes running and instrumented: the next one goes
    on where it stopped.
    """
    context.obj = state_dir.absolute()
    if context.invoked_subcommand is not None:
        return
    set_up_logging(log_format, log_level)
    # gRPC writes its own lines to standard error, in its own form; what they
    # say reaches us as errors of its calls too. It reads this at import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from uftrace_agent.rpc.lifecycle import serve
    from uftrace_agent.rpc.server import ListenError
    from uftrace_agent.session.budget import NO_LIMITS, Limits
    from uftrace_agent.session.manager import SessionManager
    from uftrace_agent.trust.policy import PolicyError

    state = _open_state(state_dir.absolute())
    default = (ListenAddress("127.0.0.1"), ListenAddress(path=state.socket_path))
    config = AgentConfig(
        listen=listen or default,
        state_dir=state.path,
        insecure=insecure,
        tls_dir=tls_dir,
        policy=policy,
        audit=None if audit == "log" else Path(audit or state.path / "audit.jsonl"),
    )

    default_rate = NO_LIMITS.rate if budget == NO_LIMITS.cpu else Limits().rate
    limits = Limits(budget, default_rate if rate_limit is None else rate_limit)

    async def run() -> None:
        await serve(config, state, SessionManager(state.path, limits), announce=click.echo)

    limit_arenas()
    try:
        asyncio.run(run())
    except ListenError as error:
        raise CannotListen(str(error)) from error
    except (StateDirectoryError, PolicyError) as error:
        raise CannotKeepState(str(error)) from error


def _open_state(path: Path) -> StateDirectory:
    try:
        return StateDirectory(path)
    except StateDirectoryError as error:
        raise CannotKeepState(str(error)) from error


_ROLES = click.Choice(list(TOKEN_FILES))


@main.command()
@click.option("--token", "shown", type=_ROLES, help="Print the token of this role, alone.")
@click.option("--renew", "renewed", type=_ROLES, help="Make a new token for this role first.")
@click.pass_obj
def credentials(state_dir: Path, shown: str | None, renewed: str | None) -> None:
    """Print what another host needs to log in: fingerprint, and where the tokens are.

    No token is printed unless it is asked for. A running agent takes a new
    token, and no longer the old one, at once. A role whose file is removed
    cannot be had by a token.
    """
    state = _open_state(state_dir)
    if renewed:
        state.renew_token(renewed)
    if shown:
        try:
            click.echo(state.token_of(shown))
        except OSError as error:
            raise CannotKeepState(f"{error.filename}: {error.strerror}") from error
        return
    click.echo(f"fingerprint of ca.pem (SHA-256): {state.ca_fingerprint}")
    for role, name in TOKEN_FILES.items():
        click.echo(f"token for {role}: {state.path / name}")
    click.echo(
        f"on the other host: uftrace-remote login {socket.gethostname()} "
        f"--fingerprint {state.ca_fingerprint}"
    )
    click.echo("it asks for a token: uftrace-agent credentials --token trace")


@main.command()
@click.option("--pid", type=click.IntRange(1), multiple=True, help="This process; repeatable.")
@click.option("--all", "everywhere", is_flag=True, help="Every process of this host.")
def restore(pid: tuple[int, ...], everywhere: bool) -> None:
    """Set processes back that an agent which died has left instrumented.

    Needs no agent, no network and no files: what to set back stands in each
    process's own memory. Processes that a living agent holds are left alone.

    Exit codes: 0 all is as it was; 1 some process could not be restored.
    """
    set_up_logging("console", "error")
    from uftrace_agent.errors import (
        AgentError,
        AlreadyHeldError,
        NoSuchProcessError,
        TargetGoneError,
    )
    from uftrace_agent.process.identity import ProcessId, resolve
    from uftrace_agent.session.restoring import (
        instrumented_processes,
        restore_orphan,
        restore_process,
    )

    if bool(pid) == everywhere:
        raise click.UsageError("give either --pid PID or --all")
    failed = False
    chosen = instrumented_processes() if everywhere else [ProcessId(one) for one in pid]
    for process in chosen:
        try:
            named = resolve(process)
            restored = restore_orphan(named) if everywhere else restore_process(named)
        except AgentError as error:
            # Of all processes, those that are traced right now are not meant, nor those
            # that have ended since they were listed.
            if everywhere and isinstance(error, (NoSuchProcessError, TargetGoneError)):
                continue
            failed |= not (everywhere and isinstance(error, AlreadyHeldError))
            hint = f" ({error.hint})" if error.hint else ""
            click.echo(f"process {process.pid}: {error.message}{hint}", err=True)
            continue
        if restored or not everywhere:
            click.echo(f"process {process.pid}: {restored} sites restored")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
