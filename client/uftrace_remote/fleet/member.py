"""One process of a change that goes through a fleet."""

from __future__ import annotations

from dataclasses import dataclass

from uftrace_remote.agent import AgentClient
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.fleet.clock_offset import ClockOffset
from uftrace_remote.preparation import CommitResult, Preparation
from uftrace_remote.values import AgentInfo, Process


@dataclass(slots=True)
class Agent:
    """An agent of a fleet, and what has been learned of it.

    Attributes:
        endpoint: Where it listens.
        client: The connection.
        info: What it said about itself last; None before it has been asked.
        clock: Its CLOCK_MONOTONIC against ours; None before it has been measured.
        origins: What named it, in order: `web1`, `@web`, `@web (srv)`.
    """

    endpoint: Endpoint
    client: AgentClient
    info: AgentInfo | None = None
    clock: ClockOffset | None = None
    origins: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.endpoint)


@dataclass(slots=True)
class Member:
    """A process that is to be changed.

    Attributes:
        agent: Its host's.
        process: The process.
        session_id: The session that holds it, once it is attached.
        created: Whether it was attached for this, so that it has to be detached.
        preparation: What is ready to be committed.
        commit: What became of it.
    """

    agent: Agent
    process: Process
    session_id: str = ""
    created: bool = False
    preparation: Preparation | None = None
    commit: CommitResult | None = None

    @property
    def key(self) -> tuple[str, int]:
        """By which all clients put members into the same order."""
        return str(self.agent.endpoint), self.process.pid

    def __str__(self) -> str:
        return f"{self.agent.endpoint}:{self.process.pid}"
