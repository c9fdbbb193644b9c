"""Many agents, asked at once: anything, who they are, and what runs there."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from uftrace_remote.agent import DEFAULT_TIMEOUT_SECONDS, AgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.errors import UnsupportedTargetError
from uftrace_remote.fleet.clock_offset import ClockOffset, ClockSample, estimate
from uftrace_remote.fleet.fan_out import Outcome, fan_out
from uftrace_remote.fleet.resolution import FleetHost
from uftrace_remote.values import AgentInfo, Process

CLOCK_SAMPLES = 5

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class HostReport:
    """What is known about an agent that answered.

    Attributes:
        info: What it says about itself.
        clock: Its `CLOCK_REALTIME` minus ours, and the round trip; None for an
            agent that does not tell the time.
    """

    info: AgentInfo
    clock: ClockOffset | None

    @property
    def identity(self) -> tuple[str, int, int]:
        """The same for two hosts only if they are two names of one agent."""
        return identity_of(self.info)


async def ask_agents(
    hosts: Sequence[FleetHost],
    ask: Callable[[AgentClient], Awaitable[_Value]],
    options: CredentialOptions | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    on_outcome: Callable[[Outcome[FleetHost, _Value]], None] | None = None,
) -> tuple[Outcome[FleetHost, _Value], ...]:
    """Connects to every host, asks it and leaves it again, 64 of them at a time.

    Args:
        hosts: Whom, from `resolve_hosts`.
        ask: Asks one; what it raises of `UftraceError` is the outcome of that host.
        options: Where certificates and tokens are.
        timeout: Seconds that each host has, for all that it is asked.
        on_outcome: Told about each outcome as it comes.

    Returns:
        The outcomes, in the order of `hosts`.
    """

    async def connect_and_ask(host: FleetHost) -> _Value:
        async with host.connect(options, timeout=timeout) as agent:
            return await ask(agent)

    return await fan_out(hosts, connect_and_ask, deadline=timeout, on_outcome=on_outcome)


async def describe_hosts(
    hosts: Sequence[FleetHost],
    options: CredentialOptions | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
) -> tuple[Outcome[FleetHost, HostReport], ...]:
    """Who is there, and how far their clocks are from ours. Arguments are those of `ask_agents`."""

    async def describe(agent: AgentClient) -> HostReport:
        # The first answer takes a handshake, and says nothing about the way.
        info = await agent.info()
        return HostReport(info, (await measure_clocks(agent)).realtime if info.now else None)

    return await ask_agents(hosts, describe, options, timeout=timeout)


async def list_processes(
    hosts: Sequence[FleetHost],
    name_contains: str = "",
    options: CredentialOptions | None = None,
    *,
    include_unattachable: bool = False,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
) -> tuple[Outcome[FleetHost, tuple[Process, ...]], ...]:
    """The processes of each host, as `AgentClient.processes` gives them."""
    return await ask_agents(
        hosts,
        lambda agent: agent.processes(name_contains, include_unattachable=include_unattachable),
        options,
        timeout=timeout,
    )


@dataclass(frozen=True, slots=True)
class AgentClocks:
    """The clocks of an agent that were measured together.

    Attributes:
        info: Its last answer.
        realtime: Its `CLOCK_REALTIME` minus ours: what people call its time.
        monotonic: Its `CLOCK_MONOTONIC` minus ours: that of its events, set by nobody.
    """

    info: AgentInfo
    realtime: ClockOffset
    monotonic: ClockOffset


async def measure_clocks(agent: AgentClient, sample_count: int = CLOCK_SAMPLES) -> AgentClocks:
    """How far the agent's clocks are from ours: the best of some samples.

    Args:
        agent: Whom to ask; connected already, or the first sample is a bad one.
        sample_count: How often, at least once.

    Raises:
        UnsupportedTargetError: It does not tell the time.
        ConnectionFailedError: Our clock was set back meanwhile.
    """
    realtime, monotonic = [], []
    for _ in range(sample_count):
        ours = time.time_ns()
        # The round trip by a clock that nobody sets.
        sent = time.monotonic_ns()
        info = await agent.info()
        received = time.monotonic_ns()
        if info.now is None:
            raise UnsupportedTargetError(
                f"the agent at {agent.endpoint} is too old (version {info.version}) to act "
                "together with others: it does not tell its time",
                reason="AGENT_TOO_OLD",
                hint="update it; alone it works as before: name its process without a group",
            )
        monotonic.append(ClockSample(sent, info.now.monotonic_ns, received))
        realtime.append(ClockSample(ours, info.now.realtime_ns, ours + received - sent))
    return AgentClocks(info, estimate(realtime), estimate(monotonic))


def identity_of(info: AgentInfo) -> tuple[str, int, int]:
    """The same for two answers only if they are of one agent."""
    return (info.boot_id, info.pid, info.started_unix_ns)


def same_agents(
    outcomes: Sequence[Outcome[FleetHost, HostReport]],
) -> tuple[tuple[FleetHost, ...], ...]:
    """Hosts that are several names of one agent, such as a name and its address."""
    known: dict[tuple[str, int, int], list[FleetHost]] = {}
    for outcome in outcomes:
        if outcome.value is not None:
            known.setdefault(outcome.value.identity, []).append(outcome.host)
    return tuple(tuple(hosts) for hosts in known.values() if len(hosts) > 1)
