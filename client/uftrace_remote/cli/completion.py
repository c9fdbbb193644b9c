"""`completion`: shell completion scripts."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "uftrace-remote"
_VARIABLE = "_UFTRACE_REMOTE_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a completion script.

    \b
    bash:  eval "$(uftrace-remote completion bash)"              in ~/.bashrc
    zsh:   eval "$(uftrace-remote completion zsh)"               in ~/.zshrc
    fish:  uftrace-remote completion fish > ~/.config/fish/completions/uftrace-remote.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root().command
    # source() of bash would run bash to ask for its version; the template needs nothing.
    complete = kind(root, {}, _PROGRAM, _VARIABLE)
    click.echo(complete.source_template % complete.source_vars())
