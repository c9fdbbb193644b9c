"""Several real agents on loopback, and an inventory that names them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.conftest import AgentProcess, CommandResult, running_agent
from tests.support.stalls import Stalls


@dataclass
class FleetOfAgents:
    """Agents of their own state directories, all on the same port of 127.0.0.11, .12, ..."""

    agents: list[AgentProcess]
    directory: Path
    groups: dict[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.agents[0].address.rpartition(":")[2])

    @property
    def inventory(self) -> Path:
        return self.directory / "inventory.toml"

    def write_inventory(self, text: str = "") -> Path:
        """One group for each agent (a1, a2, ...), `agents` of all these, and what is added."""
        groups = [
            f"[groups.a{number}]\nhosts = ['{agent.address}']\nstate_dir = '{agent.state_dir}'\n"
            for number, agent in enumerate(self.agents, 1)
        ]
        names = ", ".join(f"'a{number}'" for number in range(1, len(self.agents) + 1))
        self.inventory.write_text(
            "".join([text, *groups, f"[groups.agents]\nchildren = [{names}]\n"])
        )
        return self.inventory

    def remote(self, *arguments: str, timeout: float = 60.0) -> CommandResult:
        """Run `uftrace-remote` with this inventory, without anybody's credentials."""
        environment = {
            **os.environ,
            "NO_COLOR": "1",
            "HOME": str(self.directory),
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "UFTRACE_INVENTORY": str(self.inventory),
        }
        environment.pop("UFTRACE_STATE_DIR", None)
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from uftrace_remote.cli.main import main; main()",
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
        )
        return CommandResult(done.returncode, done.stdout, done.stderr)


MakeFleet = Callable[[int], FleetOfAgents]

# Many programs are started, and waited for, on what may be two busy processors.
_SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """More time for what says nothing of its own; of the whole run we are told of all tests."""
    ours = Path(__file__).parent
    for item in items:
        if ours in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_SECONDS))


@pytest.fixture
def stalls() -> Iterator[Stalls]:
    """How long the machine kept us waiting in this test."""
    with Stalls() as counted:
        yield counted


@pytest.fixture(scope="module")
def make_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeFleet]:
    """Start so many agents; they end with the module."""
    with ExitStack() as stack:

        def make(count: int) -> FleetOfAgents:
            directory = tmp_path_factory.mktemp("fleet")
            agents: list[AgentProcess] = []
            for number in range(count):
                port = agents[0].address.rpartition(":")[2] if agents else "0"
                started = running_agent(
                    directory / f"agent{number + 1}", listen=f"127.0.0.{number + 11}:{port}"
                )
                agents.append(stack.enter_context(started))
            return FleetOfAgents(agents, directory)

        yield make
