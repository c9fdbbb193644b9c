# SPDX-License-Identifier: Apache-2.0
"""redis-server."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ._base import Load, Program, as_user, free_port, private_folder, python_load, running, wait_for

BINARY = Path("/usr/bin/redis-server")
TRIES = 5


def _is_ours(port: int, pid: int) -> bool:
    # Another server may have taken the port: ask for the pid.
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"INFO server\r\n")
            return b"process_id:%d\r" % pid in connection.recv(65536)
    except OSError:
        return False


@contextlib.contextmanager
def redis() -> Iterator[Program]:
    """Runs redis-server; its load is redis-benchmark and clients that check every reply."""
    with private_folder("redis") as folder, contextlib.ExitStack() as stack:
        for _ in range(TRIES):
            port = free_port()
            options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
            options += ["--save", "", "--appendonly", "no", "--io-threads", "2"]
            command = [*as_user("root"), str(BINARY), *options]
            process = stack.enter_context(running(command, folder))
            try:
                wait_for("redis", partial(_is_ours, port, process.pid), process, folder)
                break
            except AssertionError as error:
                # Only a lost port is worth another try.
                if "Address already in use" not in str(error):
                    raise
        else:
            raise AssertionError(f"redis: no port in {TRIES} tries")
        load = python_load("redis", str(port))
        yield Program("redis", process.pid, BINARY, lambda program: Load(program, load), BINARY)
