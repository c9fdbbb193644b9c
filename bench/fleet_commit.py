"""How far apart 32 agents change their programs that are told the same moment.

    python -m bench.fleet_commit [--rounds N] [--json]

32 real agents, each with a program of its own in a network and pid namespace of its own
(`tests/support/namespaces.py`), patch one function again and again. Beside the skew of
the commits, that of what arrives without a moment: a Patch request to each at once.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench.support import AGENT, Figures, finish
from tests.support.namespaces import Network
from tests.targets.build import build
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.fleet import Fleet, PatchPlan
from uftrace_remote.fleet.resolution import FleetHost

HOSTS: Final = 32
GOAL_MS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Skew:
    """One round, in milliseconds.

    Attributes:
        commits: When each host had been changed, after the first, on our clock.
        begun: When each began, after the moment, on its own clock.
        late: When each had been changed, after the moment, on its own clock.
        bounds: How far its clock may be from what we think.
        arrivals: When each answer to an ordinary request came, after the first.
    """

    commits: list[float]
    begun: list[float]
    late: list[float]
    bounds: list[float]
    arrivals: list[float]


@contextmanager
def fleet_of(count: int) -> Iterator[list[FleetHost]]:
    """So many agents, with a program beside each; all are there to the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        program = build("delayed")
        hosts: list[FleetHost] = []
        agents: list[subprocess.Popen[str]] = []
        # They end with their namespaces.
        stack.callback(lambda: [process.wait() for process in agents])
        for number, host in enumerate(stack.enter_context(Network(count)).hosts):
            state = folder / f"state{number}"
            listen = ("--listen", f"{host.address}:50051", "--state-dir", str(state))
            log = stack.enter_context((folder / f"log{number}").open("w"))
            for command in ([str(program), "0"], [*AGENT, *listen, "--budget", "off"]):
                process = subprocess.Popen(
                    [*host.inside, *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
                agents.append(process)
            hosts.append(FleetHost(Endpoint(host.address, 50051), (), state))
        for process in agents:
            assert process.stdout is not None
            if not process.stdout.readline():
                logs = "".join(path.read_text() for path in folder.glob("log*"))
                raise RuntimeError(f"an agent or a program did not start:\n{logs[:2000]}")
        yield hosts
        for process, host in zip(agents, (h for h in hosts for _ in range(2)), strict=True):
            if process.poll() is not None:
                raise RuntimeError(f"on {host} something ended with {process.returncode}")


async def _measure(hosts: list[FleetHost], rounds: int) -> list[Skew]:
    found = []
    async with Fleet(hosts, 60.0, options=CredentialOptions()) as fleet:
        for _ in range(rounds):
            members = await fleet.members("delayed")
            assert len(members.values) == len(hosts), members.failures
            done = await fleet.patch(members, PatchPlan(("leaf",)))
            assert done.is_enabled, [str(each.error) for each in done.failed]
            written = np.array([each.written_ns for each in done.members]) / 1e6
            commits = [each.member.commit for each in done.members if each.member.commit]
            begun = [(commit.begun_ns - commit.at_ns) / 1e6 for commit in commits]
            late = [(commit.written_ns - commit.at_ns) / 1e6 for commit in commits]
            bounds = [each.bound_ns / 1e6 for each in done.members]
            sessions = [each.member.session_id for each in done.members]
            agents = [each.member.agent for each in done.members]
            await asyncio.gather(
                *(a.client.unpatch(s) for a, s in zip(agents, sessions, strict=True))
            )
            # The same, with a request to each at once
            arrived = []
            for result in asyncio.as_completed(
                [a.client.patch(s, ["leaf"]) for a, s in zip(agents, sessions, strict=True)]
            ):
                await result
                arrived.append(time.monotonic() * 1e3)
            await asyncio.gather(
                *(a.client.detach(s) for a, s in zip(agents, sessions, strict=True))
            )
            found.append(
                Skew(
                    list(map(float, written - written.min())),
                    begun,
                    late,
                    bounds,
                    [each - arrived[0] for each in arrived],
                )
            )
    return found


def run(rounds: int = 20) -> Figures:
    """Measure, and say whether the goal is met."""
    with fleet_of(HOSTS) as hosts:
        found = asyncio.run(_measure(hosts, rounds))
    figures = Figures(f"Commit skew over {HOSTS} agents", ("", "median", "99 %", "largest"))
    columns = {
        "written, after the first (clock error included)": [x for s in found for x in s.commits],
        "begun, after the moment on the host's own clock": [x for s in found for x in s.begun],
        "written, after the moment on the host's own clock": [x for s in found for x in s.late],
        "clock error, at most": [x for s in found for x in s.bounds],
        "answers to a request to each at once, after the first": [
            x for s in found for x in s.arrivals
        ],
    }
    for name, values in columns.items():
        figures.values[name] = values
        figures.rows.append(
            (
                name,
                f"{np.median(values):.2f} ms",
                f"{np.percentile(values, 99):.2f} ms",
                f"{max(values):.2f} ms",
            )
        )
    late = float(np.percentile(columns["written, after the moment on the host's own clock"], 99))
    figures.goals = [
        (
            f"beyond clock error, 99 % of {HOSTS} agents change within {late:.2f} ms of the "
            f"moment, at most {GOAL_MS:g}",
            late <= GOAL_MS,
        )
    ]
    figures.notes.append(f"{rounds} rounds; all hosts share this machine's processors")
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    finish(run(arguments.rounds), arguments.json)


if __name__ == "__main__":
    main()
