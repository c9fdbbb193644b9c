"""A thousand agents and one client: how long one answer of all takes, and what idling costs.

    python -m bench.fleet_thousand [--agents N] [--rounds N] [--json]

The agents are the real service with TLS over an engine that is none, in four processes on
this machine (`tests/support/simulated_agents.py`): client and agents share its processors.
Beside each figure the same of a tenth of the agents.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench.support import Figures, finish, median
from tests.support.simulated_agents import simulated_agents
from uftrace_remote.fleet import (
    Fleet,
    PatchPlan,
    list_processes,
    load_inventory,
    resolve_hosts,
)
from uftrace_remote.values import Lease, PatchOptions

AGENTS: Final = 1000
IDLE_SECONDS: Final = 10.0
# Seconds, seconds, MiB.
PS_GOAL: Final = 3.0
PATCH_GOAL: Final = 5.0
MEMORY_GOAL: Final = 300.0


@dataclass(frozen=True, slots=True)
class Round:
    """What one client measured.

    Attributes:
        agents: How many there were.
        ps_seconds: Connecting to all of them and listing their processes.
        members_seconds: Finding one process on each, and measuring all clocks.
        patch_seconds: Attaching, preparing, committing and confirming.
        prepared_seconds: Of it, until all were prepared.
        committed_seconds: Of it, until all had changed their code.
        resident_mib: Memory of the client with all connections.
        idle_cpu_share: Of one processor, with all connections and nothing to do.
    """

    agents: int
    ps_seconds: float
    members_seconds: float
    patch_seconds: float
    prepared_seconds: float
    committed_seconds: float
    resident_mib: float
    idle_cpu_share: float


async def measure(inventory_path: Path) -> Round:
    """What a client measures; in a process of its own."""
    inventory = load_inventory(inventory_path)
    hosts = list((await resolve_hosts("@all", inventory)).hosts)
    # Neighbours in a fleet share no interpreter; here a quarter of them do.
    random.Random(1).shuffle(hosts)
    begun = time.monotonic()
    outcomes = await list_processes(hosts, timeout=60.0)
    ps_seconds = time.monotonic() - begun
    assert all(each.error is None for each in outcomes)
    async with Fleet(hosts, 60.0) as fleet:
        begun = time.monotonic()
        members = await fleet.members("1")
        members_seconds = time.monotonic() - begun
        marks: dict[str, float] = {}
        begun = time.monotonic()
        lease = Lease("bench", 600 * 10**9)
        done = await fleet.patch(
            members,
            PatchPlan(("work",), PatchOptions(lease=lease)),
            lambda words: marks.setdefault(words.split()[0], time.monotonic() - begun),
        )
        patch_seconds = time.monotonic() - begun
        assert done.is_enabled and len(done.enabled) == len(hosts)
        cpu = time.process_time()
        await asyncio.sleep(IDLE_SECONDS)
        idle = (time.process_time() - cpu) / IDLE_SECONDS
        return Round(
            len(hosts),
            ps_seconds,
            members_seconds,
            patch_seconds,
            marks["committing"],
            marks["confirming"],
            _resident_mib(),
            idle,
        )


def _resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def _round(agents: int) -> Round:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        simulated_agents(Path(name), agents) as started,
    ):
        done = subprocess.run(
            [sys.executable, "-m", "bench.fleet_thousand", "--client", str(started.inventory)],
            capture_output=True,
            text=True,
            check=True,
        )
    return Round(**json.loads(done.stdout))


def run(agents: int = AGENTS, rounds: int = 3) -> Figures:
    """Measure, and say whether the goals are met."""
    figures = Figures(
        f"{agents:,} agents, one client",
        (
            "agents",
            "ps",
            "processes and clocks",
            "prepared",
            "committed",
            "confirmed",
            "client memory",
            "idle CPU",
        ),
    )
    middle: dict[str, float] = {}
    for count in (agents // 10, agents):
        found = [asdict(_round(count)) for _ in range(rounds)]
        middle = {name: median([each[name] for each in found]) for name in found[0]}
        figures.values[str(count)] = found
        figures.rows.append(
            (
                f"{count:,}",
                f"{middle['ps_seconds']:.2f} s",
                f"{middle['members_seconds']:.2f} s",
                f"{middle['prepared_seconds']:.2f} s",
                f"{middle['committed_seconds']:.2f} s",
                f"{middle['patch_seconds']:.2f} s",
                f"{middle['resident_mib']:.0f} MiB",
                f"{middle['idle_cpu_share']:.2%}",
            )
        )
    figures.goals = [
        (
            f"ps over {agents:,} agents in {middle['ps_seconds']:.1f} s, at most {PS_GOAL:g}",
            middle["ps_seconds"] <= PS_GOAL,
        ),
        (
            f"{agents:,} agents prepared and committed in {middle['committed_seconds']:.1f} s, "
            f"at most {PATCH_GOAL:g}",
            middle["committed_seconds"] <= PATCH_GOAL,
        ),
        (
            f"an idle client has {middle['resident_mib']:.0f} MiB, at most {MEMORY_GOAL:g}",
            middle["resident_mib"] <= MEMORY_GOAL,
        ),
    ]
    figures.notes.append(
        f"medians of {rounds} rounds; the agents are four processes on the same machine and take "
        "their part of its processors"
    )
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--client", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client is not None:
        print(json.dumps(asdict(asyncio.run(measure(arguments.client)))))
        return
    finish(run(arguments.agents, arguments.rounds), arguments.json)


if __name__ == "__main__":
    main()
