"""Many agents in few processes: the real service, coordination and TLS over an engine that
is none.

    python -m tests.support.simulated_agents STATE_DIR ADDRESS...

serves an agent at each address until SIGTERM; `simulated_agents` starts such processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from tests.support.sessions import WORK, ScriptedSessions
from uftrace_agent.config import AgentConfig, parse_listen_address
from uftrace_agent.engine.model import Form, Status, Writer
from uftrace_agent.engine.preparation import Barrier
from uftrace_agent.errors import NoSuchFunctionError
from uftrace_agent.logging_setup import set_up_logging
from uftrace_agent.rpc.server import AgentServer
from uftrace_agent.session.coordination import Coordination
from uftrace_agent.session.tracepoint_set import PreparedOrder, TracepointSet
from uftrace_agent.session.types import PatchOrder, PatchOutcome, PatchResult
from uftrace_agent.session.worker import Worker
from uftrace_agent.state_directory import StateDirectory

_T = TypeVar("_T")

ROOT = Path(__file__).resolve().parents[2]
# What one of them refuses, whoever asks.
REFUSED_EVERYWHERE = "refused"


@dataclass
class _Ready:
    stands: bool = True
    tracepoints: tuple[()] = ()


class _Tracepoints:
    """As much of a `TracepointSet` as coordination asks for."""

    def __init__(self) -> None:
        self.is_enabled = False

    def prepare(self, order: PatchOrder) -> tuple[PreparedOrder, PatchOutcome]:
        if REFUSED_EVERYWHERE in order.patterns:
            raise NoSuchFunctionError(f"no function matches '{REFUSED_EVERYWHERE}'")
        prepared = PreparedOrder(order, cast(Any, _Ready()), ())
        return prepared, _outcome(Status.NOT_ENABLED)

    def commit(
        self, prepared: PreparedOrder, in_ns: int, barrier: Barrier
    ) -> tuple[PatchOutcome, int]:
        with barrier() as self.is_enabled:
            written_ns = time.monotonic_ns()
        if not self.is_enabled:
            return _outcome(Status.NOT_ENABLED), 0
        return _outcome(Status.ENABLED), written_ns

    def take_back(self, addresses: object) -> int:
        was_enabled, self.is_enabled = self.is_enabled, False
        return int(was_enabled)


def _outcome(status: Status) -> PatchOutcome:
    result = PatchResult(WORK, 1, status, Form.PUN, Writer.BYTE)
    return PatchOutcome([result])


class SimulatedSessions(ScriptedSessions):
    """Sessions of any process, that can be coordinated."""

    def __init__(self) -> None:
        super().__init__()
        self._coordinations: dict[str, Coordination] = {}
        self._workers: list[Worker] = []

    def coordination(self, session_id: str) -> Coordination:
        self._find(session_id)
        if session_id not in self._coordinations:
            tracepoints = cast(TracepointSet, _Tracepoints())
            worker = Worker(f"session-{session_id}")
            self._workers.append(worker)
            run = partial(_run, worker)
            self._coordinations[session_id] = Coordination(1, tracepoints, run, worker)
        return self._coordinations[session_id]

    def end(self) -> None:
        """Let the threads end."""
        for worker in self._workers:
            worker.shutdown()


async def _run(worker: Worker, operation: Callable[[], _T]) -> _T:
    return await asyncio.wrap_future(worker.submit(operation))


async def _serve(state_dir: Path, addresses: list[str]) -> None:
    set_up_logging("console", "error")
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    state = StateDirectory(state_dir)
    servers, sessions = [], []
    for address in addresses:
        config = AgentConfig((parse_listen_address(address),), state_dir, audit=None)
        sessions.append(SimulatedSessions())
        server = AgentServer(config, state, sessions[-1])
        await server.start()
        servers.append(server)
    print(f"serving {len(servers)}", flush=True)
    await ending.wait()
    await asyncio.gather(*(server.stop() for server in servers))
    for each in sessions:
        each.end()


@dataclass(frozen=True)
class SimulatedAgents:
    """All of them.

    Attributes:
        addresses: `HOST:PORT` of each.
        inventory: Names them all: `@all`.
        processes: In which they run.
    """

    addresses: tuple[str, ...]
    inventory: Path
    processes: tuple[subprocess.Popen[str], ...]


@contextmanager
def simulated_agents(folder: Path, count: int, processes: int = 4) -> Iterator[SimulatedAgents]:
    """Start so many on loopback addresses of their own, in their own pid namespaces.

    Args:
        folder: For keys, inventory and logs.
        count: How many.
        processes: In so many processes.
    """
    groups, addresses, started = [], [], []
    with ExitStack() as stack:
        for number in range(processes):
            share = range(number, count, processes)
            # 127.0.0.0/8 is all loopback (RFC 1122); a free port is left to the kernel's luck.
            # Neighbours by name share no interpreter, as in a fleet.
            own = [f"127.101.{each // 200}.{each % 200 + 1}:50990" for each in share]
            state = folder / f"state{number}"
            log = stack.enter_context((folder / f"log{number}").open("w"))
            process = subprocess.Popen(
                [
                    *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
                    *(sys.executable, "-m", "tests.support.simulated_agents", str(state), *own),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            stack.callback(partial(_end, process))
            started.append(process)
            addresses += own
            hosts = ", ".join(f"'{each}'" for each in own)
            groups.append(f"[groups.p{number}]\nhosts = [{hosts}]\nstate_dir = '{state}'\n")
        for number, process in enumerate(started):
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving"), (folder / f"log{number}").read_text()
        inventory = folder / "inventory.toml"
        inventory.write_text("".join(groups))
        yield SimulatedAgents(tuple(addresses), inventory, tuple(started))


# `unshare` passes no signals on, and ends its child with itself.
def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2:]))
