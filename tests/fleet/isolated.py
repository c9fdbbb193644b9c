"""Agents that see one program each, as on hosts of their own: each in its own pid namespace."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.conftest import AGENT
from tests.targets.build import build

# The shell becomes the agent, so that it is the first of the namespace: all ends with it.
_UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
_SHELL = 'exec 3<&0; "$0" <&3 >/dev/null & exec "$@" </dev/null 3<&-'


@dataclass
class IsolatedHost:
    """An agent and a program that nobody else sees.

    Attributes:
        pid: The agent.
        address: `HOST:PORT`.
        state_dir: Its state directory.
    """

    outer: subprocess.Popen[str]
    pid: int
    address: str
    state_dir: Path

    def burst(self, count: int) -> None:
        """Has the program call its leaf so many times; does not wait for it."""
        assert self.outer.stdin is not None
        self.outer.stdin.write(f"burst {count}\n")
        self.outer.stdin.flush()

    def kill(self) -> None:
        """The host is gone, agent and program."""
        os.kill(self.pid, signal.SIGKILL)
        self.outer.wait()


@contextmanager
def isolated_host(state_dir: Path, program: str = "blocked") -> Iterator[IsolatedHost]:
    """Start both; at the end the agent must leave by SIGTERM with status 0."""
    state_dir.mkdir(parents=True)
    agent = [*AGENT, "--listen", "127.0.0.1:0", "--state-dir", str(state_dir), "--budget", "off"]
    with (state_dir / "log").open("a") as log:
        outer = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", _SHELL, str(build(program)), *agent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert outer.stdin is not None and outer.stdout is not None
            line = outer.stdout.readline()
            assert line.startswith("listening on "), (line, (state_dir / "log").read_text())
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
            (pid,) = map(int, children.split())
            yield IsolatedHost(outer, pid, line.removeprefix("listening on ").strip(), state_dir)
            if outer.poll() is None:
                os.kill(pid, signal.SIGTERM)
                assert outer.wait(30) == 0, (state_dir / "log").read_text()
            assert "Traceback" not in (state_dir / "log").read_text()
        finally:
            if outer.poll() is None:
                outer.kill()
            outer.wait()
            for stream in (outer.stdin, outer.stdout):
                if stream is not None:
                    stream.close()


@contextmanager
def isolated_hosts(folder: Path, count: int) -> Iterator[list[IsolatedHost]]:
    """So many, with an inventory in `folder` that has them in the group `all`."""
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(isolated_host(folder / f"host{number}")) for number in range(count)
        ]
        write_inventory(folder, hosts)
        yield hosts


def write_inventory(folder: Path, hosts: Sequence[IsolatedHost], more: str = "") -> Path:
    """Groups h0, h1, ..., and what is added."""
    groups = [
        f"[groups.h{number}]\nhosts = ['{host.address}']\nstate_dir = '{host.state_dir}'\n"
        for number, host in enumerate(hosts)
    ]
    path = folder / "inventory.toml"
    path.write_text("".join([*groups, more]))
    return path
