"""Several real agents, each with a real program to trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.conftest import AgentProcess, running_agent
from tests.support.target_process import TargetProcess
from tests.targets.build import build
from uftrace_remote import AgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.fleet.fleet import Fleet
from uftrace_remote.fleet.member import Agent, Member


@dataclass
class Host:
    """An agent, and the program beside it."""

    agent: AgentProcess
    target: TargetProcess

    def connect(self) -> Agent:
        """A new connection; inside of an event loop."""
        endpoint = Endpoint.parse(self.agent.address)
        options = CredentialOptions(state_directory=self.agent.state_dir)
        return Agent(endpoint, AgentClient.connect(endpoint, options, timeout=30.0))


class Hosts:
    """All of them."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def __getitem__(self, place: int) -> Host:
        return self.hosts[place]

    def fleet(self) -> Fleet:
        """A new client of all agents; inside of an event loop."""
        return Fleet([host.connect() for host in self.hosts], 30.0)

    async def members(self, fleet: Fleet) -> list[Member]:
        """The programs, in the order of the hosts."""
        members = []
        for host, agent in zip(self.hosts, fleet.agents, strict=True):
            alone = Fleet([agent], 30.0)
            (member,) = (await alone.members(str(host.target.pid))).values
            members.append(member)
        return members

    def check(self) -> None:
        """Every program goes on."""
        for host in self.hosts:
            host.target.wait_iterations(2)

    def quit(self) -> None:
        """Every program ends with all its checks passed."""
        for host in self.hosts:
            host.target.quit()


@contextmanager
def running_hosts(folder: Path, count: int, program: str = "busy8") -> Iterator[Hosts]:
    """So many agents, each with a program of its own."""
    with ExitStack() as stack:
        hosts = [
            Host(
                stack.enter_context(running_agent(folder / f"agent{number}")),
                stack.enter_context(TargetProcess(build(program), niceness=10)),
            )
            for number in range(count)
        ]
        yield Hosts(hosts)
