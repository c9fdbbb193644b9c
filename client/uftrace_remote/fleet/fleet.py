"""Many agents as one.

async with Fleet.connect(["web1", "web2:50052"]) as fleet:
    members = await fleet.members("nginx")
    done = await fleet.patch(members.values, PatchPlan(("ngx_http_*",)))
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Generic, TypeVar

from uftrace_remote.agent import DEFAULT_TIMEOUT_SECONDS, AgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UftraceError
from uftrace_remote.fleet.clock_offset import ClockSample, estimate
from uftrace_remote.fleet.coordinated_patch import FleetPatch, PatchPlan, Progress, patch_members
from uftrace_remote.fleet.fan_out import Outcome, fan_out
from uftrace_remote.fleet.member import Agent, Member
from uftrace_remote.target import ProcessSelector

_T = TypeVar("_T")
_CLOCK_SAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Answers(Generic[_T]):
    """What the agents of a fleet answered.

    Attributes:
        values: The answers, in the order of the agents.
        failures: Those that gave none, and why.
    """

    values: tuple[_T, ...]
    failures: tuple[tuple[Endpoint, UftraceError], ...]


class Fleet:
    """Connections to agents. Errors are those of `uftrace_remote.errors`.

    Args:
        agents: The agents.
        timeout: Seconds that one has to answer an ordinary request.
    """

    def __init__(self, agents: Sequence[Agent], timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self.agents = tuple(agents)
        self._timeout = timeout

    @classmethod
    def connect(
        cls,
        addresses: Iterable[str | Endpoint],
        options: CredentialOptions | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> Fleet:
        """Prepares connections, which are made by the first requests; an agent that is
        named twice is there once.

        Raises:
            UsageError: An address cannot be read.
            AuthenticationError: No certificate and token were found for one of them.
        """
        endpoints = dict.fromkeys(
            Endpoint.parse(each) if isinstance(each, str) else each for each in addresses
        )
        return cls(
            [
                Agent(endpoint, AgentClient.connect(endpoint, options, timeout=timeout))
                for endpoint in endpoints
            ],
            timeout,
        )

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections. The agents keep sessions and tracepoints."""
        await asyncio.gather(*(agent.client.close() for agent in self.agents))

    async def ask(
        self, question: Callable[[Agent], Awaitable[_T]], deadline: float = 0.0
    ) -> Answers[_T]:
        """Asks every agent; one that does not answer holds nobody up.

        Args:
            question: Asks one of them.
            deadline: Seconds that each has; 0 is the fleet's timeout.
        """
        outcomes = await fan_out(self.agents, question, deadline=deadline or self._timeout)
        return _answers(outcomes)

    async def measure_clocks(self) -> Answers[Agent]:
        """Asks every agent who it is, and how far its clock is from ours."""
        return await self.ask(_measure)

    async def members(self, selector: str | ProcessSelector) -> Answers[Member]:
        """Every process that a selector means on any of the agents, whose clocks are
        measured on the way."""
        wanted = ProcessSelector.parse(selector) if isinstance(selector, str) else selector

        async def find(agent: Agent) -> list[Member]:
            found = await agent.client.resolve_processes(wanted)
            await _measure(agent)
            return [Member(agent, process) for process in found]

        found = await self.ask(find, 2 * self._timeout)
        return Answers(tuple(member for each in found.values for member in each), found.failures)

    async def patch(
        self,
        members: Sequence[Member],
        plan: PatchPlan,
        progress: Progress = lambda words: None,
    ) -> FleetPatch:
        """Patches processes at one moment, or none of them; `patch_members` says how."""
        return await patch_members(members, plan, progress)


# By the clock that nobody sets, on both sides.
async def _measure(agent: Agent) -> Agent:
    samples = []
    for _ in range(_CLOCK_SAMPLES):
        sent = time.monotonic_ns()
        agent.info = info = await agent.client.info()
        received = time.monotonic_ns()
        if info.now is not None:
            samples.append(ClockSample(sent, info.now.monotonic_ns, received))
    agent.clock = estimate(samples)
    return agent


def _answers(outcomes: Sequence[Outcome[Agent, _T]]) -> Answers[_T]:
    return Answers(
        tuple(each.value for each in outcomes if each.error is None and each.value is not None),
        tuple((each.host.endpoint, each.error) for each in outcomes if each.error is not None),
    )
