"""`uftrace-remote`: the group, its options, and what becomes of errors."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import click

from uftrace_remote.cli import _output
from uftrace_remote.cli._settings import Settings
from uftrace_remote.cli.attach import attach
from uftrace_remote.cli.budget import budget
from uftrace_remote.cli.completion import completion
from uftrace_remote.cli.detach import detach
from uftrace_remote.cli.diff import diff
from uftrace_remote.cli.export import export
from uftrace_remote.cli.functions import functions
from uftrace_remote.cli.hosts import hosts
from uftrace_remote.cli.lease import keep, release
from uftrace_remote.cli.live import live
from uftrace_remote.cli.login import login
from uftrace_remote.cli.patch import patch
from uftrace_remote.cli.pki import pki
from uftrace_remote.cli.ps import ps
from uftrace_remote.cli.record import record
from uftrace_remote.cli.replay import replay
from uftrace_remote.cli.report import report
from uftrace_remote.cli.status import status
from uftrace_remote.cli.top import top
from uftrace_remote.cli.unpatch import unpatch
from uftrace_remote.cli.version import version
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import AgentInternalError, UftraceError

PROGRAM = "uftrace-remote"

_INTERRUPTED = 130

_EPILOG = """\b
TARGET is [HOST[:PORT]:]PID; PID is a number, a process name, exe=PATH,
build-id=HEX or cgroup=PATH.
    1234   nginx   web1:1234   web1:50051:nginx   [::1]:50051:1234
    unix:/run/agent.sock:1234

\b
HOST is HOST[:PORT]; where several may be named, also web[01-16], web1,web2,
@GROUP or @all of the inventory.

\b
FUNC is a name, a glob (*alloc*), module!name, or re:EXPRESSION.

\b
Exit codes:
     0  done                         8  the target died or ran another program
     1  other error                  9  the target could not be stopped in time
     2  wrong usage                 10  a table or quota is full
     3  agent not reachable         11  the agent went away during a stream
     4  not authenticated, not      12  output could not be written or read
        allowed                     13  functions were refused
     5  no such process, function   14  some hosts failed, others did not
        or session                  70  a bug of the agent or of this program
     6  somebody else is in the way
     7  unsupported target         130  interrupted before the work began
"""


class CommandLine(click.Group):
    """A group whose errors are two lines on stderr and an exit code."""

    # click's own main prints usage errors in its own way and knows nothing of ours.
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Runs a command and exits with its code."""
        sys.exit(self._run(args, prog_name, complete_var, extra))

    def _run(
        self,
        args: Sequence[str] | None,
        prog_name: str | None,
        complete_var: str | None,
        extra: dict[str, Any],
    ) -> int:
        try:
            with _BugReport():
                result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
                # A buffered line may meet the broken pipe only now.
                sys.stdout.flush()
        except UftraceError as error:
            _output.print_error(error.message, error.hint)
            return error.exit_code
        except click.UsageError as error:
            _output.print_error(error.format_message(), _usage_hint(error))
            return error.exit_code
        except click.ClickException as error:
            _output.print_error(error.format_message())
            return error.exit_code
        except BrokenPipeError:
            _close_stdout()
            return 0
        except (KeyboardInterrupt, click.Abort):
            return _INTERRUPTED
        return result if isinstance(result, int) else 0


# What is none of the expected errors is a bug: the traceback, whom to tell,
# and an exit code of its own.
class _BugReport:
    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        expected = (UftraceError, click.ClickException, click.exceptions.Exit, click.Abort)
        if not isinstance(error, Exception) or isinstance(error, (*expected, BrokenPipeError)):
            return
        traceback.print_exception(error)
        _output.print_error("this is a bug of uftrace-remote", "please report it, with the above")
        raise SystemExit(AgentInternalError.exit_code)


# Without this the interpreter would complain about the pipe once more at exit.
def _close_stdout() -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _usage_hint(error: click.UsageError) -> str:
    if error.ctx is None:
        return f"see {PROGRAM} --help"
    usage = error.ctx.command.get_usage(error.ctx).removeprefix("Usage: ")
    return f"{' '.join(usage.split())}  (see {error.ctx.command_path} --help)"


@click.group(
    cls=CommandLine,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-H",
    "--host",
    default="localhost:50051",
    show_default=True,
    metavar="HOST[:PORT]",
    help="The agent, where a target names none.",
)
@click.option("--insecure", is_flag=True, help="Talk without TLS.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The agent's state directory, with ca.pem and token.  [env: UFTRACE_STATE_DIR]",
)
@click.option(
    "--tls-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with ca.pem, client.pem and client.key of a fleet.  [env: UFTRACE_TLS_DIR]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an ordinary answer.",
)
@click.option(
    "--inventory",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Groups of hosts.  [env: UFTRACE_INVENTORY; "
    "default: ~/.config/uftrace-remote/inventory.toml]",
)
@click.option("--no-color", is_flag=True, help="No colours.  [env: NO_COLOR]")
@click.pass_context
def cli(
    context: click.Context,
    host: str,
    insecure: bool,
    state_dir: Path | None,
    tls_dir: Path | None,
    timeout: float,
    inventory: Path | None,
    no_color: bool,
) -> None:
    """See any function of any running native process, on any host."""
    context.obj = Settings(
        endpoint=Endpoint.parse(host),
        credentials=CredentialOptions(state_dir, insecure, tls_dir),
        timeout=timeout,
        color=False if no_color or os.environ.get("NO_COLOR") else None,
        inventory=inventory,
    )


for _command in (
    hosts,
    ps,
    functions,
    attach,
    patch,
    unpatch,
    detach,
    status,
    budget,
    keep,
    release,
    live,
    top,
    record,
    replay,
    report,
    diff,
    export,
    login,
    pki,
    completion,
    version,
):
    cli.add_command(_command)


def main() -> NoReturn:
    """The console script."""
    # gRPC's own log says on stderr what our errors say better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    cli.main(prog_name=PROGRAM)
