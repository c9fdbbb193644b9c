# SPDX-License-Identifier: Apache-2.0
"""memcached."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ._base import Load, Program, answers, as_user, private_folder, python_load, running, wait_for

BINARY = Path("/usr/bin/memcached")


@contextlib.contextmanager
def memcached() -> Iterator[Program]:
    """Runs memcached; its load is clients that check every reply."""
    with private_folder("memcached") as folder:
        # -p -1: the kernel chooses the port, and memcached writes it down.
        ports = folder / "ports"
        command = [*as_user("root"), str(BINARY), "-p", "-1", "-U", "0", "-l", "127.0.0.1"]
        command += ["-t", "4", "-m", "64"]
        if os.geteuid() == 0:
            command += ["-u", "root"]
        with running(
            command, folder, environment={"MEMCACHED_PORT_FILENAME": str(ports)}
        ) as process:
            wait_for("memcached", ports.exists, process, folder)
            match = re.search(r"TCP INET: (\d+)", ports.read_text())
            assert match, ports.read_text()
            port = int(match[1])
            wait_for("memcached", lambda: answers(port), process, folder)
            load = python_load("memcached", str(port))
            yield Program(
                "memcached", process.pid, BINARY, lambda program: Load(program, load), BINARY
            )
