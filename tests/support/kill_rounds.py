"""An engine in a process of its own that is killed at a chosen step, again and again."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import wait_until

ENGINE = Path(__file__).parents[1] / "engine"
DEADLINE = 60.0
SIGTRAP_BIT = 1 << 4


def build_shim(folder: Path) -> Path:
    """What counts the driver's steps, and kills it at one."""
    built = folder / "kill_at.so"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(built)]
    subprocess.run([*command, str(ENGINE / "kill_at.c"), "-ldl"], check=True)
    return built


class Driver:
    """tests/engine/kill_driver.py, at work on one process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._pending = b""

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def hear(self) -> list[str]:
        assert self._process.stdout is not None
        until = time.monotonic() + DEADLINE
        while b"\n" not in self._pending:
            ready, _, _ = select.select(
                [self._process.stdout], [], [], max(until - time.monotonic(), 0)
            )
            assert ready, "the driver gave no answer in time"
            chunk = os.read(self._process.stdout.fileno(), 4096)
            assert chunk, f"the driver ended with status {self._process.wait()}"
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        text = line.decode()
        assert not text.startswith("failed"), text
        return text.split()

    def attach(self) -> int:
        """A fork attaches, and waits; how many sites it set back."""
        self.say("round")
        word, restored = self.hear()
        assert word == "attached"
        return int(restored)

    def attach_and_die(self, step: int) -> bool:
        """A fork is killed while it attaches; False where it was done before."""
        self.say(f"round {step}")
        answer = self.hear()
        if answer[0] == "ended":
            assert answer[1] == str(int(signal.SIGKILL))
            return True
        assert self.go(0)
        return False

    def go(self, step: int, leave_step: int = 0) -> int:
        """It patches, unpatches and leaves; 0: it was killed at that step of the one or
        the other, else: how many it made for patching and unpatching."""
        self.say(f"go {step} {leave_step}")
        answer = self.hear()
        if answer[0] == "ended":
            assert answer[1] == str(int(signal.SIGKILL))
            return 0
        assert self.hear() == ["ended", "0"]
        return int(answer[1])

    def go_for(self, seconds: float, pid_of_fork: int) -> bool:
        """It is killed from outside after a while; False where it was done before."""
        self.say("go 0 0")
        select.select([], [], [], seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid_of_fork, signal.SIGKILL)
        answer = self.hear()
        if answer[0] == "finished":
            answer = self.hear()
        return answer[1] != "0"

    def fork(self) -> int:
        """The pid of the fork."""
        # The kernel says itself that a look at this file may miss one (fs/proc/array.c).
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        wait_until(lambda: len(path.read_text().split()) == 1)
        return int(path.read_text().split()[0])


@contextmanager
def driving(shim: Path, pid: int, *arguments: str) -> Iterator[Driver]:
    """Start the driver for a process; arguments as kill_driver.py takes them."""
    root = ENGINE.parents[1]
    process = subprocess.Popen(
        [sys.executable, str(ENGINE / "kill_driver.py"), str(pid), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={
            **os.environ,
            "LD_PRELOAD": str(shim),
            "PYTHONPATH": os.pathsep.join([str(root / "server"), str(root / "proto"), *sys.path]),
        },
    )
    try:
        driver = Driver(process)
        assert driver.hear() == ["ready"]
        yield driver
    finally:
        process.kill()
        process.communicate()


def catches_sigtrap(pid: int) -> bool:
    """Whether the process handles SIGTRAP."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.M)
    assert found is not None
    return bool(int(found[1], 16) & SIGTRAP_BIT)
