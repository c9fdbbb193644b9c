"""Hosts with a network, pids and a clock of their own, each with an agent and a program."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.conftest import AGENT, AgentProcess
from tests.fleet.places import Place, PlacedTarget, Places
from tests.support.namespaces import NamespacedHost, Network, inner_pid
from tests.targets.build import build
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.fleet import Fleet
from uftrace_remote.fleet.resolution import FleetHost

PORT = 50051


@dataclass(frozen=True)
class NamespacedAgent(AgentProcess):
    """An agent of such a host.

    Attributes:
        host: Its host.
        inner: Its pid, as seen here.
    """

    host: NamespacedHost
    inner: int

    @property
    def pid(self) -> int:
        return self.inner

    def kill(self) -> None:
        os.kill(self.inner, signal.SIGKILL)
        self.process.wait(30)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with super().frozen():
            yield
        # `nsenter` has stopped with its child (util-linux, continue_as_child).
        self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Its link is cut meanwhile."""
        self.host.cut()
        try:
            yield
        finally:
            self.host.mend()


class NamespacedPlaces(Places):
    """All of them: the command line, and the library.

    Attributes:
        agents: The agents, in the order of the hosts.
    """

    def __init__(
        self, directory: Path, places: Sequence[Place], agents: list[NamespacedAgent]
    ) -> None:
        super().__init__(directory, places)
        self.agents = agents

    def restart(self, number: int) -> None:
        """Start an agent where one was killed: it finds what that one left."""
        _end([self.agents[number]])
        agent = start_agent(self.agents[number].host, self.agents[number].state_dir)
        self.agents[number] = self[number].agent = agent
        wait_started(agent)

    def fleet(self, timeout: float = 60.0) -> Fleet:
        """A new client of all agents; inside of an event loop."""
        hosts = [
            FleetHost(Endpoint.parse(place.agent.address), (), place.agent.state_dir)
            for place in self
        ]
        return Fleet(hosts, timeout, options=CredentialOptions())


def start_agent(host: NamespacedHost, state_dir: Path) -> NamespacedAgent:
    """Start one; the second one of a host goes on with what the first has left."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / "log").open("a") as log:
        process = subprocess.Popen(
            [
                *(*host.inside, *AGENT, "--listen", f"{host.address}:{PORT}"),
                *("--state-dir", str(state_dir), "--budget", "off"),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    return NamespacedAgent(process, f"{host.address}:{PORT}", state_dir, host, inner_pid(process))


def wait_started(agent: NamespacedAgent) -> None:
    """Wait until it answers."""
    assert agent.process.stdout is not None
    line = agent.process.stdout.readline()
    assert line.startswith("listening on "), (line, agent.log())


def _end(agents: Sequence[NamespacedAgent]) -> None:
    try:
        running = [agent for agent in agents if agent.process.poll() is None]
        for agent in running:
            os.kill(agent.inner, signal.SIGTERM)
        for agent in running:
            assert agent.process.wait(60) == 0, agent.log()
        for agent in agents:
            assert "Traceback" not in agent.log(), agent.log()
    finally:
        for agent in agents:
            if agent.process.poll() is None:
                agent.kill()
            assert agent.process.stdout is not None
            agent.process.stdout.close()


@contextmanager
def namespaced_places(
    directory: Path,
    network: Network,
    program: str,
    arguments: Callable[[int], tuple[str, ...]] = lambda number: (),
) -> Iterator[NamespacedPlaces]:
    """An agent and a program on each host of a network, and an inventory of them.

    Args:
        directory: For state, inventory and output.
        network: The hosts.
        program: Which program.
        arguments: Its arguments on the host with that number.
    """
    with ExitStack() as stack:
        agents: list[NamespacedAgent] = []
        stack.callback(_end, agents)
        # They start at once: on two processors 32 take long enough.
        for number, host in enumerate(network.hosts, 1):
            agents.append(start_agent(host, directory / f"agent{number}"))
        for agent in agents:
            wait_started(agent)
        places = []
        for number, agent in enumerate(agents):
            target = PlacedTarget(
                build(program), *arguments(number), wrapper=agent.host.inside, deadline=60.0
            )
            places.append(Place(agent, stack.enter_context(target)))
        found = NamespacedPlaces(directory, places, agents)
        found.write_inventory()
        yield found
