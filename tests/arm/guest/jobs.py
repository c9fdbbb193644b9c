"""Runs jobs in the guest: a server that has everything imported and forks for each.

An import of grpc takes seconds in the emulator; a fork of a process that has it takes none.
One connection is one job. The other side is ``tests/arm/machine.py``.

    request: a line of JSON (see ``Request``), then as many bytes of tar as it says
    reply:   frames: a letter, the length as u32, the bytes
             O output, F a tar with the files that were asked for, X the exit status as i32
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import runpy
import select
import signal
import site
import socket
import struct
import sys
import tarfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

PORT = 7000
PACKAGES = "/usr/local/lib/python3.11/dist-packages"
# Threads do not survive a fork.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
PRELOADED = (
    *("asyncio", "concurrent.futures", "ctypes", "http.server", "unittest.mock"),
    *("capstone", "click", "cryptography.x509", "elftools.elf.elffile", "google.protobuf"),
    *("google.rpc.status_pb2", "grpc.aio", "grpc_health.v1.health_pb2_grpc"),
    *("grpc_reflection.v1alpha.reflection", "grpc_status.rpc_status", "hypothesis", "numpy"),
    *(
        "pytest",
        "_pytest.pytester",
        "pytest_asyncio",
        "pytest_timeout",
        "rich.console",
        "structlog",
    ),
)
RNDRESEEDCRNG = 0x5207  # include/uapi/linux/random.h


@dataclass(frozen=True)
class Request:
    """What the host asks for.

    Attributes:
        command: The program and its arguments. With ``warm`` the arguments of Python: a
            file or ``-m module``, and the arguments of that.
        warm: Whether it runs in a fork of this process.
        folder: Where it runs and where the tar is unpacked.
        environment: Variables on top of this process's.
        files: Which files to send back, names in ``folder``.
        tar: How many bytes of tar follow.
        time: What time it is.
        entropy: Some bytes that no other guest was given.
    """

    command: list[str]
    warm: bool
    folder: str
    environment: dict[str, str]
    files: list[str]
    tar: int
    time: float
    entropy: str


def send(connection: socket.socket, kind: bytes, data: bytes) -> None:
    connection.sendall(kind + struct.pack("<I", len(data)) + data)


def wake(request: Request) -> None:
    """What a guest that slept in a file cannot know: the time, and its own random numbers."""
    time.clock_settime(time.CLOCK_REALTIME, request.time)
    with open("/dev/urandom", "wb") as pool:
        pool.write(bytes.fromhex(request.entropy))
        fcntl.ioctl(pool, RNDRESEEDCRNG)


def serve(connection: socket.socket) -> None:
    stream = connection.makefile("rb")
    request = Request(**json.loads(stream.readline()))
    wake(request)
    os.makedirs(request.folder, exist_ok=True)
    if request.tar:
        with tarfile.open(fileobj=io.BytesIO(stream.read(request.tar))) as packed:
            packed.extractall(request.folder)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        stream.close()
        connection.close()
        become(request, writing)
    os.close(writing)
    status = follow(connection, pid, reading)
    if request.files:
        send(connection, b"F", packed_files(Path(request.folder), request.files))
    send(connection, b"X", struct.pack("<i", status))


def follow(connection: socket.socket, pid: int, reading: int) -> int:
    """Pass the output on until the job ends, or end it when nobody listens any more."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    for descriptor in (ended, reading, connection.fileno()):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if reading in ready:
            if data := os.read(reading, 65536):
                send(connection, b"O", data)
            else:
                poll.unregister(reading)
        elif ended in ready:
            # Daemons may hold the pipe still: what is in it now is all.
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        elif connection.fileno() in ready:
            os.killpg(pid, signal.SIGKILL)
            os._exit(0)


def packed_files(folder: Path, names: list[str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
            if (folder / name).exists():
                tar.add(folder / name, name)
    return packed.getvalue()


def become(request: Request, output: int) -> None:
    """Turn this fork into the job."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request.folder)
    os.environ.update(request.environment)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    status = 1
    try:
        if request.warm:
            status = run_python(request.command)
        else:
            os.execvp(request.command[0], request.command)
    except OSError as error:
        print(f"{request.command[0]}: {error.strerror}", file=sys.stderr)
        status = 127
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 255)


def run_python(command: list[str]) -> int:
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, io.TextIOWrapper(io.FileIO(descriptor, "w"), line_buffering=True))
    # Its .pth file names the checkout, which is there now.
    site.addsitedir(PACKAGES)
    sys.argv = command[1:] if command[0] == "-m" else list(command)
    sys.path[0] = os.getcwd() if command[0] == "-m" else os.path.dirname(command[0])
    try:
        if command[0] == "-m":
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    for name in PRELOADED:
        __import__(name)
    listener = socket.create_server(("0.0.0.0", PORT), backlog=16)
    signal.signal(signal.SIGCHLD, reap)
    print("the job server listens", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                serve(connection)
            except BaseException:
                with contextlib.suppress(OSError):
                    send(connection, b"O", traceback.format_exc().encode())
                    send(connection, b"X", struct.pack("<i", 125))
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    main()
