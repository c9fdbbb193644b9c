"""Hosts for the command line: an agent and a program in each of several pid namespaces.

Agents of one host see each other's programs: a name would mean all of them to every
agent. Here `@agents:busy8` means one program on each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.conftest import AGENT, AgentProcess, CommandResult
from tests.support.target_process import TargetProcess
from tests.support.waiting import wait_until
from tests.targets.build import build

# The first process of the namespace outlives its agent, whose programs live on then.
_INIT = '"$@" & wait $!; echo $? > "$0"; exec sleep 3600 >/dev/null'


def _child(pid: int) -> int:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: path.read_text().split())
    return int(path.read_text().split()[0])


@dataclass(frozen=True)
class PlacedAgent(AgentProcess):
    """An agent of a pid namespace."""

    inner: int = 0

    @property
    def pid(self) -> int:
        return self.inner

    @property
    def init(self) -> int:
        """The first process of its namespace."""
        return _child(self.process.pid)

    def kill(self) -> None:
        os.kill(self.inner, signal.SIGKILL)
        wait_until(self.status_file.exists)

    @property
    def status_file(self) -> Path:
        return self.state_dir / "status"


@contextmanager
def _placed_agent(state_dir: Path, port: int, number: int) -> Iterator[PlacedAgent]:
    state_dir.mkdir(parents=True)
    status, log = state_dir / "status", (state_dir / "log").open("a")
    process = subprocess.Popen(
        [
            *("unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"),
            *("sh", "-c", _INIT, str(status), *AGENT),
            *("--listen", f"127.0.0.{number}:{port}", "--state-dir", str(state_dir)),
            *("--budget", "off"),
        ],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), (line, (state_dir / "log").read_text())
        address = line.removeprefix("listening on ").strip()
        agent = PlacedAgent(process, address, state_dir, _child(_child(process.pid)))
        yield agent
        if not status.exists():
            os.kill(agent.inner, signal.SIGTERM)
            wait_until(lambda: status.exists() and status.read_text(), timeout=30)
            assert status.read_text() == "0\n", agent.log()
        assert "Traceback" not in agent.log(), agent.log()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        log.close()


class PlacedTarget(TargetProcess):
    """A program of a pid namespace; `pid` is its number here."""

    inner = 0

    def wait_ready(self) -> None:
        line = self.read_line()
        assert line.startswith("ready "), line
        self.inner = _child(self._running().pid)

    @property
    def pid(self) -> int:
        return self.inner


@dataclass
class Place:
    """One host."""

    agent: AgentProcess
    target: PlacedTarget

    @property
    def label(self) -> str:
        """What commands call it."""
        return self.agent.address


class Places:
    """All of them, and the command line."""

    def __init__(self, directory: Path, places: Sequence[Place]) -> None:
        self.directory = directory
        self.places = list(places)

    def __getitem__(self, number: int) -> Place:
        return self.places[number]

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)

    def write_inventory(self) -> None:
        """A group for each place (a1, a2, ...), and `agents` of all."""
        groups = [
            f"[groups.a{number}]\nhosts = ['{place.agent.address}']\n"
            f"state_dir = '{place.agent.state_dir}'\n"
            for number, place in enumerate(self.places, 1)
        ]
        names = ", ".join(f"'a{number}'" for number in range(1, len(self.places) + 1))
        text = "".join([*groups, f"[groups.agents]\nchildren = [{names}]\n"])
        (self.directory / "inventory.toml").write_text(text)

    def start(self, *arguments: str, wrapper: Sequence[str] = ()) -> Command:
        """Start `uftrace-remote`, by a command that execs it if there is one."""
        return Command(self.directory, arguments, wrapper)

    def run(self, *arguments: str, timeout: float = 90.0) -> CommandResult:
        """Run `uftrace-remote` to its end."""
        return self.start(*arguments).wait(timeout)

    def quit(self) -> None:
        """Every program ends with all its checks passed."""
        for place in self.places:
            place.target.quit()


class Command:
    """A running `uftrace-remote`."""

    _count = 0

    def __init__(
        self, directory: Path, arguments: Sequence[str], wrapper: Sequence[str] = ()
    ) -> None:
        Command._count += 1
        self._out = directory / f"out{Command._count}"
        self._err = directory / f"err{Command._count}"
        environment = {
            **os.environ,
            "NO_COLOR": "1",
            "HOME": str(directory),
            "XDG_CONFIG_HOME": str(directory / "config"),
            "UFTRACE_INVENTORY": str(directory / "inventory.toml"),
        }
        environment.pop("UFTRACE_STATE_DIR", None)
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [
                    *(*wrapper, sys.executable, "-c"),
                    "from uftrace_remote.cli.main import main; main()",
                    *arguments,
                ],
                stdout=out,
                stderr=err,
                env=environment,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, text: str, timeout: float = 60.0) -> None:
        """Wait until it has said something."""

        def is_said() -> bool:
            assert self.process.poll() is None or text in self.out + self.err, self.out + self.err
            return text in self.out or text in self.err

        wait_until(is_said, timeout=timeout, otherwise=lambda: self.out + self.err)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait(self, timeout: float = 90.0) -> CommandResult:
        """Its end."""
        try:
            code = self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        return CommandResult(code, self.out, self.err)


@contextmanager
def running_places(
    directory: Path, count: int, program: str = "busy8", arguments: Sequence[Sequence[str]] = ()
) -> Iterator[Places]:
    """So many hosts, each with the program running, and an inventory of them.

    Args:
        directory: For state, inventory and output.
        count: How many.
        program: Which program.
        arguments: Arguments of each host's program.
    """
    with ExitStack() as stack:
        places: list[Place] = []
        for number in range(count):
            port = int(places[0].agent.address.rpartition(":")[2]) if places else 0
            started = _placed_agent(directory / f"agent{number + 1}", port, number + 21)
            agent = stack.enter_context(started)
            target = PlacedTarget(
                build(program),
                *(arguments[number] if arguments else ()),
                wrapper=("nsenter", "--target", str(agent.init), "--pid", "--mount", "--"),
            )
            places.append(Place(agent, stack.enter_context(target)))
        found = Places(directory, places)
        found.write_inventory()
        yield found
