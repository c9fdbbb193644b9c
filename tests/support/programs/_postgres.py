# SPDX-License-Identifier: Apache-2.0
"""postgres: a cluster of its own, reached through a socket in its folder."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ._base import Load, Program, as_user, private_folder, python_load, running, wait_for

TOOLS = Path("/usr/lib/postgresql/15/bin")
OWNER = "postgres"
CONFIG = """
listen_addresses = ''
unix_socket_directories = '{folder}'
fsync = off
shared_buffers = 32MB
max_connections = 40
autovacuum_naptime = 5s
max_parallel_workers = 2
jit = off
"""


@contextlib.contextmanager
def postgres() -> Iterator[Program]:
    """Runs a new cluster with a small pgbench database.

    ``Program.pid`` is the postmaster. ``Load.pid`` is a backend with a session
    that checks every answer; pgbench runs beside it in sessions that come and
    go, forked from the postmaster.
    """
    with private_folder("postgres", OWNER) as folder:
        data = folder / "data"
        initdb = [*as_user(OWNER), str(TOOLS / "initdb"), "-D", str(data), "-N", "-A", "trust"]
        _run([*initdb, "-U", OWNER, "--locale=C", "--encoding=UTF8"], folder)
        with (data / "postgresql.conf").open("a") as config:
            config.write(CONFIG.format(folder=folder))
        binary = TOOLS / "postgres"
        command = [*as_user(OWNER, "INT"), str(binary), "-D", str(data)]
        # SIGINT is the fast shutdown: sessions are ended.
        with running(command, folder, stop=signal.SIGINT) as process:
            ready = [str(TOOLS / "pg_isready"), "-q", "-h", str(folder)]
            wait_for(
                "postgres",
                lambda: subprocess.run(ready, check=False).returncode == 0,
                process,
                folder,
            )
            _run([str(TOOLS / "createdb"), "-h", str(folder), "-U", OWNER, "bench"], folder)
            pgbench = [str(TOOLS / "pgbench"), "-h", str(folder), "-U", OWNER]
            _run([*pgbench, "-i", "-q", "-s", "1", "bench"], folder)
            load = python_load("postgres", str(folder), *pgbench)
            yield Program(
                "postgres", process.pid, binary, lambda program: Load(program, load), binary
            )


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
