"""A virtual AArch64 machine, up in about a second, that runs jobs.

with Machine() as machine:
    done = machine.run(["uname", "-m"])
    assert (done.status, done.output) == (0, "aarch64\\n")
"""

from __future__ import annotations

import io
import itertools
import json
import os
import socket
import struct
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from tests.arm.emulator import JOB_PORT, Emulator, restored, snapshot

DEADLINE = 300.0


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that ended.

    Attributes:
        status: Its exit status; negative: the signal.
        output: What it wrote to stdout and stderr.
    """

    status: int
    output: str


class Job:
    """One program in the guest. Closing it kills the program and its process group."""

    def __init__(self, machine: Machine, connection: socket.socket) -> None:
        self._machine = machine
        self._connection = connection
        self._received = bytearray()
        self._status: int | None = None
        self.output = b""
        self._files = b""

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def wait(self, timeout: float = DEADLINE, echo: BinaryIO | None = None) -> int:
        """Wait until it ends.

        Args:
            timeout: For so many seconds at most.
            echo: Where its output is written as it comes.

        Returns:
            Its exit status; negative: the signal.
        """
        deadline = time.monotonic() + timeout
        while self._status is None:
            self._take_frame(deadline, echo)
        return self._status

    def wait_for(self, text: str, timeout: float = DEADLINE) -> None:
        """Wait until it has written that."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self.output:
            if self._status is not None:
                raise self._error(f"it ended with status {self._status} and never said {text!r}")
            self._take_frame(deadline, None)

    def unpack(self, folder: Path) -> None:
        """Unpack the files that were asked for; those that the job made."""
        with tarfile.open(fileobj=io.BytesIO(self._files)) as packed:
            packed.extractall(folder)

    def _take_frame(self, deadline: float, echo: BinaryIO | None) -> None:
        kind, length = struct.unpack("<cI", self._receive(5, deadline))
        data = self._receive(length, deadline)
        if kind == b"O":
            self.output += data
            if echo is not None:
                echo.write(data)
                echo.flush()
        elif kind == b"F":
            self._files = data
        else:
            (self._status,) = struct.unpack("<i", data)
            self.close()

    def _receive(self, length: int, deadline: float) -> bytes:
        while len(self._received) < length:
            self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._connection.recv(1 << 20)
            except TimeoutError:
                raise self._error("the job did not end in time") from None
            except OSError as error:
                raise self._error(f"the machine is gone: {error}") from None
            if not data:
                raise self._error("the job server hung up")
            self._received += data
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    def _error(self, what: str) -> Exception:
        self.close()
        said = self.output.decode(errors="replace").splitlines()[-20:]
        return self._machine.error("\n  ".join([f"{what}; its last lines:", *said]))


class Machine:
    """A running machine; leaving the context ends it.

    It dies with the thread that entered the context, however that ends.
    """

    def __init__(self, *, forward: Sequence[int] = ()) -> None:
        """Remembers what to start.

        Args:
            forward: Ports of the guest that shall be reached from here; see ``port``. What
                listens there must do so on 0.0.0.0: connections come by the network.
        """
        self._forward = forward
        self._emulator: Emulator | None = None
        self._numbers = itertools.count()

    def __enter__(self) -> Machine:
        self._emulator = restored(snapshot(), [JOB_PORT, *self._forward])
        self._ports = self._emulator.forwarded()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running().close()

    def _running(self) -> Emulator:
        if self._emulator is None:
            raise RuntimeError("the machine was not started")
        return self._emulator

    @property
    def pid(self) -> int:
        """The emulator's process."""
        return self._running().pid

    def port(self, guest: int) -> int:
        """The port of 127.0.0.1 that leads to this port of the guest."""
        return self._ports[guest]

    def console(self) -> str:
        """What the guest's kernel and job server said."""
        return self._running().console()

    def error(self, what: str) -> Exception:
        """An error that says how the console ended."""
        return self._running().error(what)

    def start(
        self,
        command: Sequence[str],
        *,
        put: Mapping[str, Path | bytes] | bytes = b"",
        get: Sequence[str] = (),
        folder: str | None = None,
        environment: Mapping[str, str] | None = None,
        warm: bool = False,
    ) -> Job:
        """Start a job; several may run at once.

        Args:
            command: The program and its arguments; there is no shell.
            put: Files and folders, or contents, by the names that they get in the job's
                folder; or a tar with them.
            get: Names of files that ``Job.unpack`` has when the job has ended.
            folder: Where it runs; one of its own by default.
            environment: Variables on top of the guest's.
            warm: The command is a Python file, or ``-m`` and a module, with arguments: it
                runs in a fork of a process that has grpc, numpy and pytest imported.
        """
        packed = put if isinstance(put, bytes) else _packed(put)
        request = {
            "command": list(command),
            "warm": warm,
            "folder": folder or f"/tmp/job-{next(self._numbers)}",
            "environment": dict(environment or {}),
            "files": list(get),
            "tar": len(packed),
            "time": time.time(),
            "entropy": os.urandom(32).hex(),
        }
        connection = socket.create_connection(("127.0.0.1", self._ports[JOB_PORT]), DEADLINE)
        job = Job(self, connection)
        try:
            connection.sendall(json.dumps(request).encode() + b"\n" + packed)
        except BaseException:
            job.close()
            raise
        return job

    def run(
        self,
        command: Sequence[str],
        *,
        put: Mapping[str, Path | bytes] | bytes = b"",
        folder: str | None = None,
        environment: Mapping[str, str] | None = None,
        warm: bool = False,
        timeout: float = DEADLINE,
    ) -> Finished:
        """Run a job to its end; the arguments are those of ``start`` and ``Job.wait``."""
        with self.start(command, put=put, folder=folder, environment=environment, warm=warm) as job:
            status = job.wait(timeout)
        return Finished(status, job.output.decode(errors="replace"))


def _packed(files: Mapping[str, Path | bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, source in files.items():
            if isinstance(source, Path):
                tar.add(source, name)
            else:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode, entry.mtime = len(source), 0o755, int(time.time())
                tar.addfile(entry, io.BytesIO(source))
    return packed.getvalue()
