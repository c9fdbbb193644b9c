"""A real agent in a process of its own, and a real client of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import SLOWNESS, wait_until
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.credentials import CredentialOptions

AGENT = [sys.executable, "-c", "from uftrace_agent.cli import main; main()"]


@dataclass(frozen=True)
class AgentProcess:
    """A running agent."""

    process: subprocess.Popen[str]
    address: str
    state_dir: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self) -> SyncAgentClient:
        """A new connection to it."""
        return SyncAgentClient.connect(
            self.address, CredentialOptions(state_directory=self.state_dir), timeout=30.0 * SLOWNESS
        )

    def log(self) -> str:
        return (self.state_dir / "log").read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It stands still meanwhile."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@contextmanager
def running_agent(
    state_dir: Path, *arguments: str, listen: str = "127.0.0.1:0"
) -> Iterator[AgentProcess]:
    """Start an agent; at the end it must leave by SIGTERM with status 0."""
    state_dir.mkdir(parents=True, exist_ok=True)
    log = (state_dir / "log").open("a")
    process = subprocess.Popen(
        [
            *AGENT,
            *("--listen", listen, "--state-dir", str(state_dir)),
            # Most tests count every call of programs that do nothing else.
            *("--budget", "off"),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), (line, (state_dir / "log").read_text())
        yield AgentProcess(process, line.removeprefix("listening on ").strip(), state_dir)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30 * SLOWNESS) == 0, (state_dir / "log").read_text()
        # A traceback is a bug, also where nobody was answered with it.
        assert "Traceback" not in (state_dir / "log").read_text(), (state_dir / "log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        log.close()


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """One agent for all tests that do not hurt it."""
    with running_agent(tmp_path_factory.mktemp("agent") / "state") as started:
        yield started


@pytest.fixture
def client(agent: AgentProcess) -> Iterator[SyncAgentClient]:
    with agent.client() as connected:
        yield connected


@pytest.fixture
def own_agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent that the test may kill."""
    with running_agent(tmp_path / "state") as started:
        yield started


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The empty home of a user."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def checked_target() -> Iterator[TargetProcess]:
    """A busy program that must be as it was, and say so, in the end."""
    with TargetProcess(build("busy8", "gcc-O2"), niceness=10) as opened:
        yield opened
        assert_text_unchanged(opened.pid)
        assert_not_traced(opened.pid)
        opened.quit()


@dataclass(frozen=True)
class CommandResult:
    code: int
    out: str
    err: str


Remote = Callable[..., CommandResult]


@pytest.fixture
def remote(agent: AgentProcess) -> Remote:
    """The command line, as a user runs it."""
    return lambda *arguments, **options: run_remote(agent, *arguments, **options)


def run_remote(agent: AgentProcess, *arguments: str, timeout: float = 60.0) -> CommandResult:
    """Run `uftrace-remote` against `agent`; `{}` in an argument is its address."""
    done = subprocess.run(
        _remote_command(agent, arguments),
        capture_output=True,
        text=True,
        timeout=timeout * SLOWNESS,
        env=_remote_environment(),
    )
    return CommandResult(done.returncode, done.stdout, done.stderr)


def run_remote_until(
    said: str, agent: AgentProcess, *arguments: str, timeout: float = 60.0
) -> CommandResult:
    """Run `uftrace-remote` until it has said that on stderr; then interrupt it, as a user
    does."""
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        subprocess.Popen(
            _remote_command(agent, arguments),
            stdout=out,
            stderr=err,
            env=_remote_environment(),
        ) as process,
    ):
        try:
            wait_until(
                lambda: process.poll() is not None or said in _content(err),
                timeout=timeout,
                otherwise=lambda: f"never said {said!r}: {_content(err)!r}",
            )
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout * SLOWNESS)
        finally:
            process.kill()
        return CommandResult(code, _content(out), _content(err))


# The command goes on to write where its own copy of the descriptor stands, so nothing
# here may move it.
def _content(file: IO[str]) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def _remote_command(agent: AgentProcess, arguments: Sequence[str]) -> list[str]:
    return [
        sys.executable,
        "-c",
        "from uftrace_remote.cli.main import main; main()",
        *("--state-dir", str(agent.state_dir), "--timeout", str(10.0 * SLOWNESS)),
        *(argument.replace("{}", agent.address) for argument in arguments),
    ]


def _remote_environment() -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "160"}
