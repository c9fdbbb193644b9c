"""What enables and disables tracepoints in a program that runs: this project and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bench.peers.frida_interceptor import FridaTracer
from bench.peers.uprobes import MultiUprobes, PerfUprobes
from bench.spinners import PATTERN, TracedFunction, Watched
from bench.support import Agent
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import PatchWriter
from uftrace_remote.values import PatchOptions, ProcessRef


class Tracer(Protocol):
    """A way to trace; its errors are RuntimeError and OSError."""

    def attach(self) -> None:
        """Take hold of the process; nothing is enabled."""

    def enable(self, functions: Sequence[TracedFunction]) -> int:
        """Enable tracepoints at entry and exit; how many functions have them now."""

    def disable(self) -> None:
        """Disable them all."""

    def detach(self) -> None:
        """Leave the process."""


class OwnTracer:
    """This project: a client of an agent."""

    def __init__(self, agent: Agent, pid: int, writer: PatchWriter) -> None:
        self._client: Final[SyncAgentClient] = agent.client(timeout=120.0)
        self._pid = pid
        self._writer = writer
        self._session = ""

    def attach(self) -> None:
        """See `Tracer`."""
        self._session = self._client.attach(ProcessRef(self._pid)).session.session_id

    def enable(self, functions: Sequence[TracedFunction]) -> int:
        """See `Tracer`; they are named by a pattern."""
        options = PatchOptions(writer=self._writer)
        return self._client.patch(self._session, [PATTERN], options).enabled_count

    def disable(self) -> None:
        """See `Tracer`."""
        self._client.unpatch(self._session, writer=self._writer)

    def detach(self) -> None:
        """See `Tracer`."""
        self._client.detach(self._session)
        self._client.close()


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to trace.

    Attributes:
        name: As the table has it.
        is_promised: The goal is about it.
        start: Makes a tracer of a program that runs.
        most: It is asked for that many functions at most.
    """

    name: str
    is_promised: bool
    start: Callable[[Agent, Watched], Tracer]
    most: int = 1_000_000


def _own(writer: PatchWriter) -> Callable[[Agent, Watched], Tracer]:
    return lambda agent, watched: OwnTracer(agent, watched.target.pid, writer)


PEERS: Final = (
    Peer("uftrace-remote, auto", True, _own(PatchWriter.AUTO)),
    Peer("uftrace-remote, byte", True, _own(PatchWriter.BYTE)),
    Peer("uftrace-remote, trap", True, _own(PatchWriter.TRAP)),
    Peer("uftrace-remote, stop", False, _own(PatchWriter.STOP)),
    Peer("Frida, CModule", False, lambda _, watched: FridaTracer(watched.target.pid)),
    Peer(
        "uprobes, uprobe_multi",
        False,
        lambda _, watched: MultiUprobes(watched.target.pid, watched.program),
    ),
    Peer(
        "uprobes, perf_event_open",
        False,
        lambda _, watched: PerfUprobes(watched.target.pid, watched.program),
        most=20,
    ),
)
