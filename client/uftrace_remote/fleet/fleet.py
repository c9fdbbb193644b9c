"""Many agents as one.

    async with Fleet("web[01-16],@db") as fleet:
        found = await fleet.members("nginx")
        done = await fleet.patch(found, PatchPlan(("ngx_http_*",)))

What the agents answer are `Answers`: those of the agents that did, and why the others
did not. Nothing here waits for an agent longer than its timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from uftrace_remote.agent import DEFAULT_TIMEOUT_SECONDS
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import UftraceError
from uftrace_remote.fleet.agents import identity_of
from uftrace_remote.fleet.clock_rounds import measure_better, measure_first
from uftrace_remote.fleet.coordinated_patch import FleetPatch, PatchPlan, Progress, patch_members
from uftrace_remote.fleet.fan_out import Outcome, fan_out
from uftrace_remote.fleet.inventory import Inventory
from uftrace_remote.fleet.inventory_file import load_inventory
from uftrace_remote.fleet.member import Agent, Member
from uftrace_remote.fleet.resolution import FleetHost, resolve_hosts
from uftrace_remote.fleet.stream import FleetStream
from uftrace_remote.fleet.stream_values import StreamOptions
from uftrace_remote.target import ProcessSelector

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Answers(Generic[_T]):
    """What the agents of a fleet answered.

    Attributes:
        values: The answers, in the order of the agents.
        failures: Those that gave none, and why.
    """

    values: tuple[_T, ...]
    failures: tuple[tuple[Endpoint, UftraceError], ...] = ()


class Fleet:
    """Connections to agents. Errors are those of `uftrace_remote.errors`.

    Entering finds the hosts; connections are made by the first requests.

    Args:
        hosts: Hosts as people write them (`web[01-16],@db`), one text or several; or what
            `resolve_hosts` found; or agents that are connected.
        options: Where certificates and tokens are.
        inventory: The groups; None reads the file in the usual place.
        timeout: Seconds that one has to answer an ordinary request.

    Attributes:
        agents: Each once, in the order in which they were named.
        unconnected: Hosts that cannot even be called, such as for want of a token.
        repeated: Hosts that were named more than once.
    """

    def __init__(
        self,
        hosts: str | Iterable[str | FleetHost | Agent],
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        *,
        options: CredentialOptions | None = None,
        inventory: Inventory | None = None,
    ) -> None:
        named = (hosts,) if isinstance(hosts, str) else tuple(hosts)
        self.agents = tuple(each for each in named if isinstance(each, Agent))
        self.unconnected: tuple[tuple[Endpoint, UftraceError], ...] = ()
        self.repeated: tuple[FleetHost, ...] = ()
        self._texts = [each for each in named if isinstance(each, str)]
        self._hosts = [each for each in named if isinstance(each, FleetHost)]
        self._timeout = timeout
        self._options = options
        self._inventory = inventory

    async def __aenter__(self) -> Fleet:
        """Finds the hosts.

        Raises:
            UsageError: A name cannot be read, or means nobody.
        """
        hosts = list(self._hosts)
        if self._texts:
            inventory = self._inventory if self._inventory is not None else load_inventory()
            found = await resolve_hosts(self._texts, inventory)
            hosts += found.hosts
            self.repeated = found.repeated
        agents, unconnected = list(self.agents), []
        for host in hosts:
            try:
                client = host.connect(self._options, timeout=self._timeout)
            except UftraceError as error:
                unconnected.append((host.endpoint, error))
            else:
                agents.append(Agent(host.endpoint, client, origins=host.origins))
        self.agents, self.unconnected = tuple(agents), tuple(unconnected)
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
        return Answers(
            tuple(each.value for each in outcomes if each.error is None and each.value is not None),
            (*self.unconnected, *_failures(outcomes)),
        )

    async def measure_clocks(self) -> Answers[Agent]:
        """Asks every agent who it is, and how far its clock is from ours."""
        found = await self.ask(measure_first)
        await measure_better(found.values)
        return found

    async def members(self, selector: str | ProcessSelector) -> Answers[Member]:
        """Every process that a selector means on any of the agents, whose clocks are
        measured on the way. Two names of one agent count once.

        Args:
            selector: A pid, a name, `exe=PATH`, `build-id=HEX` or `cgroup=PATH`.
        """
        wanted = ProcessSelector.parse(selector) if isinstance(selector, str) else selector

        async def find(agent: Agent) -> list[Member]:
            found = await agent.client.resolve_processes(wanted)
            await measure_first(agent)
            return [Member(agent, process) for process in found]

        found = await self.ask(find, 2 * self._timeout)
        first: dict[object, Agent] = {}
        members = [
            member
            for each in found.values
            for member in each
            if first.setdefault(_identity(member.agent), member.agent) is member.agent
        ]
        await measure_better({id(member.agent): member.agent for member in members}.values())
        return Answers(tuple(members), found.failures)

    async def patch(
        self,
        members: Answers[Member] | Sequence[Member],
        plan: PatchPlan,
        progress: Progress = lambda words: None,
    ) -> FleetPatch:
        """Patches processes at one moment, or none of them; `patch_members` says how.

        Args:
            members: The processes. Hosts that failed to name theirs, as `members` tells,
                count as failures of the change.
            plan: What is to be done.
            progress: Told what is being done.
        """
        if isinstance(members, Answers):
            return await patch_members(members.values, plan, progress, members.failures)
        return await patch_members(members, plan, progress)

    def stream(
        self, members: Sequence[Member], options: StreamOptions | None = None
    ) -> FleetStream:
        """The events of processes that are attached to, as one stream in order of time.

        Args:
            members: The processes, such as those of `FleetPatch.enabled`.
            options: How.
        """
        return FleetStream(members, options)


def _identity(agent: Agent) -> object:
    return identity_of(agent.info) if agent.info is not None else agent.endpoint


def _failures(outcomes: Sequence[Outcome[Agent, _T]]) -> list[tuple[Endpoint, UftraceError]]:
    return [(each.host.endpoint, each.error) for each in outcomes if each.error is not None]
