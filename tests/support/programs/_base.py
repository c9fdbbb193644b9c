# SPDX-License-Identifier: Apache-2.0
"""Starting and ending servers and loads."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

START_DEADLINE = 30.0
STOP_DEADLINE = 20.0
REPORT_DEADLINE = 60.0  # a benchmark in flight runs to its end
LOAD_LIMIT = 300  # seconds after which a load ends by itself
LOADS = Path(__file__).resolve().parent / "_loads"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did.

    Attributes:
        requests: Requests whose replies were checked.
        errors: Replies that were wrong, late or missing.
        detail: The first errors, and figures of the load generators, as text.
    """

    requests: int
    errors: int
    detail: str


class Load:
    """A load generator: a process of its own, so that no GIL is shared with the test.

    It runs until ``finish`` and says its findings as one line of JSON.

    Attributes:
        pid: The process that does the work: the program's, or a backend of it.
        pids: All processes that are known to do work.
    """

    def __init__(self, program: Program, command: Sequence[str]) -> None:
        self._command = [*command]
        self._process: subprocess.Popen[str] | None = None
        self.pid = program.pid
        self.pids: tuple[int, ...] = (program.pid,)

    def __enter__(self) -> Load:
        # The first line says that every connection is served: {"pids": [...]}.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            hello = json.loads(self._line(START_DEADLINE))
        except BaseException:
            self._end()
            raise
        if hello["pids"]:
            self.pids = tuple(hello["pids"])
            self.pid = self.pids[0]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        process = self._process
        assert process is not None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None and not stream.closed:
                stream.close()

    def _line(self, deadline: float) -> str:
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], deadline)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise AssertionError(f"the load said nothing: {' '.join(self._command)}")
        return line

    def finish(self) -> LoadReport:
        """Ends the load and returns what it found.

        Raises:
            AssertionError: The generator itself failed, or made no request.
        """
        process = self._process
        assert process is not None and process.stdin is not None
        process.stdin.close()
        report = LoadReport(**json.loads(self._line(REPORT_DEADLINE)))
        assert process.wait(STOP_DEADLINE) == 0, f"the load failed: {report}"
        assert report.requests > 0, f"the load did nothing: {report}"
        return report


class Program:
    """A running program.

    Attributes:
        name: Its name.
        pid: The process to trace.
        binary: The executable of that process.
        module: The file that holds its functions: the executable or a library.
    """

    def __init__(
        self, name: str, pid: int, binary: Path, load: Callable[[Program], Load], module: Path
    ) -> None:
        self.name = name
        self.pid = pid
        self.binary = binary
        self.module = module
        self._load = load

    def load(self) -> Load:
        """Makes the load; it starts with its ``with`` block."""
        return self._load(self)


def python_load(kind: str, *arguments: str) -> list[str]:
    """The command of a load generator in ``_loads``."""
    return [sys.executable, str(LOADS / f"{kind}.py"), str(LOAD_LIMIT), *arguments]


@contextlib.contextmanager
def private_folder(name: str, owner: str | None = None) -> Iterator[Path]:
    """A temporary folder that servers running as another user can reach."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", ignore_cleanup_errors=True) as path:
        folder = Path(path)
        folder.chmod(0o755)
        if owner and os.geteuid() == 0:
            shutil.chown(folder, owner)
        yield folder


def as_user(name: str, death_signal: str = "TERM") -> list[str]:
    """A prefix that runs a command as a user, when we are root, and ends it with us.

    setpriv execs the command: the pid stays. The signal comes when the thread
    that started it ends, so start servers from the main thread.
    """
    prefix = ["setpriv", "--pdeathsig", death_signal]
    if os.geteuid() == 0 and pwd.getpwnam(name).pw_uid != 0:
        return [*prefix, "--reuid", name, "--regid", name, "--init-groups"]
    return prefix


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


@contextlib.contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    *,
    stop: signal.Signals = signal.SIGTERM,
    environment: Mapping[str, str] | None = None,
    inherited: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server with its output in ``folder/output`` and ends it, and its children."""
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            pass_fds=inherited,
        )
    try:
        yield process
    finally:
        # Pids can be reused, pidfds cannot.
        family = [os.pidfd_open(child) for child in children(process.pid)]
        process.send_signal(stop)
        try:
            process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in family:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)


def wait_for(
    what: str, condition: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path
) -> None:
    """Waits until a server is ready.

    Raises:
        AssertionError: It ended, or was not ready in time; with its output.
    """
    until = time.monotonic() + START_DEADLINE
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            output = (folder / "output").read_text(errors="replace")
            raise AssertionError(f"{what}: not ready (status {process.poll()})\n{output}")
        select.select([], [], [], 0.02)


def free_port() -> int:
    """A port that was free a moment ago; whoever uses it must be ready to try another."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether something accepts connections on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
