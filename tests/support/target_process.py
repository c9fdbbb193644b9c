# SPDX-License-Identifier: Apache-2.0
"""A running program of tests/targets: its line protocol as methods.

with TargetProcess(build("busy8")) as target:
    target.burst(10)
    counters = target.quit()
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.waiting import SLOWNESS

DEADLINE = 20.0


class TargetProcess:
    """Starts a target, waits until its threads run, and ends it.

    Attributes:
        binary: The program's path.
        pid: The process.
        folder: Its private working directory.
    """

    def __init__(
        self,
        binary: Path,
        *arguments: str,
        wrapper: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
        niceness: int = 0,
    ) -> None:
        """Remembers what to start.

        Args:
            binary: The program, as ``build`` returns it.
            arguments: Its arguments.
            wrapper: A command that starts it, for example ``("setarch", "-R")``; it must exec.
            environment: Variables on top of this process's.
            deadline: Seconds that each answer may take.
            niceness: How far it gives way to others: busy threads make every command of a
                test take seconds. To stop a thread that gives way takes longer.
        """
        self.binary = Path(binary)
        self.deadline = deadline
        way = ("nice", "-n", str(niceness)) if niceness else ()
        self._command = [*way, *wrapper, str(binary), *arguments]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""

    def __enter__(self) -> TargetProcess:
        self._scratch = tempfile.TemporaryDirectory(prefix="target-")
        self.folder = Path(self._scratch.name)
        self._errors = (self.folder / "stderr").open("w+b")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=self.folder,
            env=self._environment,
            bufsize=0,
        )
        try:
            self.wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        process = self._running()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        self._errors.close()
        self._scratch.cleanup()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the target was not started")
        return self._process

    def _seconds(self, deadline: float | None = None) -> float:
        return SLOWNESS * (deadline or self.deadline)

    @property
    def pid(self) -> int:
        """The process; a wrapper that execs keeps it."""
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._running().poll()

    def errors(self) -> str:
        """What it wrote to stderr."""
        return (self.folder / "stderr").read_text(errors="replace")

    def read_line(self, deadline: float | None = None) -> str:
        """Reads the next line of its output.

        Raises:
            AssertionError: It reported BAD, ended, or said nothing in time.
        """
        process = self._running()
        assert process.stdout is not None
        until = time.monotonic() + self._seconds(deadline)
        while b"\n" not in self._pending:
            left = until - time.monotonic()
            ready, _, _ = select.select([process.stdout], [], [], max(left, 0))
            if not ready:
                raise AssertionError(f"{self.binary.name} ({process.pid}) gave no answer in time")
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                status = process.wait(self._seconds())
                raise AssertionError(
                    f"{self.binary.name} ended with status {status}; "
                    f"output {self._pending!r}, stderr {self.errors()!r}"
                )
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        text = line.decode(errors="replace")
        assert not text.startswith("BAD"), f"{self.binary.name}: {text}"
        return text

    def wait_ready(self) -> None:
        """Waits for ``ready``; again after the ``exec`` command of exec.c."""
        line = self.read_line()
        assert line == f"ready {self.pid}", f"{self.binary.name}: {line!r}"

    def send(self, line: str) -> None:
        """Sends a command without waiting for its answer."""
        process = self._running()
        assert process.stdin is not None
        # If it died, the next read says how.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line.encode() + b"\n")

    def command(self, line: str, deadline: float | None = None) -> str:
        """Sends a command and returns the line that answers it."""
        self.send(line)
        reply = self.read_line(deadline)
        assert not reply.startswith("unknown"), reply
        return reply

    def counters(self) -> dict[str, int]:
        """The counters now; exact while paused. Keys: iterations, calls_NAME."""
        return _counters(self.command("calls").removeprefix("calls "))

    def pause(self) -> dict[str, int]:
        """Parks every worker thread and returns the counters."""
        assert self.command("pause") == "paused"
        return self.counters()

    def resume(self) -> None:
        """Lets the workers go on."""
        assert self.command("resume") == "resumed"

    def burst(self, count: int, deadline: float | None = None) -> None:
        """Makes the main thread call the leaf function exactly ``count`` times."""
        assert self.command(f"burst {count}", deadline) == f"burst done {count}"

    def wait_iterations(self, count: int, deadline: float | None = None) -> None:
        """Waits until the workers finished ``count`` more iterations."""
        until = time.monotonic() + self._seconds(deadline)
        goal = self.counters()["iterations"] + count
        while self.counters()["iterations"] < goal:
            assert time.monotonic() < until, f"{self.binary.name} makes no progress"
            self._breathe()

    def _breathe(self) -> None:
        # Gives the workers the processor between two questions.
        select.select([], [], [], 0.005)

    def quit(self) -> dict[str, int]:
        """Ends it, asserts that every check passed, and returns the final counters."""
        self.send("quit")
        line = self.read_line()
        assert line.startswith("ok "), f"{self.binary.name}: {line!r}"
        status = self._running().wait(self._seconds())
        assert status == 0, f"{self.binary.name} ended with status {status}: {self.errors()!r}"
        _, iterations, rest = f"{line} ".split(" ", 2)
        return {"iterations": int(iterations), **_counters(rest)}

    def wait_exit(self, deadline: float | None = None) -> int:
        """Waits until it ended by itself and returns the status (negative: the signal)."""
        return self._running().wait(self._seconds(deadline))


def _counters(text: str) -> dict[str, int]:
    pairs = (word.split("=", 1) for word in text.split())
    return {name: int(value) for name, value in pairs}
