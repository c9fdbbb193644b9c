"""How many records per second get from one busy thread to the client's disk.

    python -m bench.throughput [--seconds S] [--rounds N] [--json]

A thread calls one traced leaf at a given rate (two records a call) and never
sleeps. `uftrace-remote record` runs in a process of its own and writes a trace
to a directory, as a user would. For each rate: what arrived and what was lost,
the processor time of agent and client, and whether the account is exact:
records of the program's own count of calls = delivered + lost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.support import (
    REMOTE,
    Agent,
    Figures,
    build_workload,
    cpu_seconds,
    fields,
    finish,
    median,
    running_agent,
)
from tests.support.target_process import TargetProcess

# Millions of records per second; 0 is as fast as the thread can.
RATES: Final = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 0.0)
GOAL: Final = 5.0
# Memory, where there is such a place: the disk is not what is measured.
_FAST: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recording; counts of records, and processors used (1.0: one all the time)."""

    produced: int
    delivered: int
    lost: int
    losses: dict[str, int]
    rate: float
    agent_cpu: float
    client_cpu: float

    @property
    def is_exact(self) -> bool:
        return self.produced == self.delivered + self.lost


def one(agent: Agent, target: TargetProcess, rate: float, seconds: float) -> Outcome:
    """Record one burst of `seconds` at `rate` million records per second."""
    with tempfile.TemporaryDirectory(prefix="bench-trace-", dir=_FAST) as folder:
        remote = subprocess.Popen(
            [
                *REMOTE,
                *("--state-dir", str(agent.state_directory)),
                *("record", f"{agent.address}:{target.pid}", "leaf", "-o", f"{folder}/trace"),
                *("--duration", f"{seconds + 4:.0f}s", "--json"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        _wait_for_patch(agent, target.pid)
        before, before_client = cpu_seconds(agent.pid), cpu_seconds(remote.pid)
        reply = fields(target.command(f"rate {rate * 5e5} {seconds * 1000:.0f}", seconds + 30))
        used = cpu_seconds(agent.pid) - before
        used_client = cpu_seconds(remote.pid) - before_client
        out, errors = remote.communicate(timeout=60)
        if remote.returncode != 0:
            raise RuntimeError(f"record ended with {remote.returncode}: {errors}")
        summary: dict[str, Any] = json.loads(out)
    produced = 2 * int(reply["calls"])
    return Outcome(
        produced,
        summary["delivered"],
        summary["lost"],
        summary["losses"],
        produced / reply["seconds"] / 1e6,
        used / reply["seconds"],
        used_client / reply["seconds"],
    )


def _wait_for_patch(agent: Agent, pid: int) -> None:
    deadline = time.monotonic() + 30
    with agent.client() as client:
        while time.monotonic() < deadline:
            for session in client.sessions():
                if session.process.pid == pid and session.tracepoint_count:
                    return
            time.sleep(0.02)
    raise RuntimeError("the function was not patched in time")


def run(seconds: float, rounds: int) -> Figures:
    """Measure."""
    outcome = Figures(
        "Records from one busy thread through agent and client to a trace",
        (
            "asked, M/s",
            "produced, M/s",
            "delivered, M/s",
            "lost",
            "agent CPU",
            "client CPU",
            "exact",
        ),
    )
    program = build_workload()
    table: dict[float, list[Outcome]] = {rate: [] for rate in RATES}
    with running_agent() as agent:
        for _ in range(rounds):
            for rate in RATES:
                with TargetProcess(program) as target:
                    table[rate].append(one(agent, target, rate, seconds))
                    target.quit()
    sustained = 0.0
    for rate, all_done in table.items():
        best = min(all_done, key=lambda done: done.lost / max(done.produced, 1))
        if best.lost == 0:
            sustained = max(sustained, best.rate)
        lost = median([done.lost / max(done.produced, 1) for done in all_done])
        delivered = median(
            [done.rate * done.delivered / max(done.produced, 1) for done in all_done]
        )
        outcome.rows.append(
            (
                f"{rate:g}" if rate else "all it can",
                f"{median([done.rate for done in all_done]):.2f}",
                f"{delivered:.2f}",
                f"{lost:.2%} (best {best.lost / max(best.produced, 1):.2%})",
                f"{median([done.agent_cpu for done in all_done]):.2f}",
                f"{median([done.client_cpu for done in all_done]):.2f}",
                "yes" if all(done.is_exact for done in all_done) else "NO",
            )
        )
        outcome.values[f"{rate:g}"] = [asdict(done) for done in all_done]
    exact = all(done.is_exact for all_done in table.values() for done in all_done)
    outcome.goals = [
        (
            f"{sustained:.1f} M records/s for {seconds:.0f} s without loss, at least {GOAL:.0f}",
            sustained >= GOAL * 0.99,
        ),
        ("produced = delivered + lost, in every run", exact),
    ]
    outcome.notes.append(
        f"{rounds} rounds; the trace lies in {_FAST or Path(tempfile.gettempdir())}"
    )
    return outcome


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Records per second from agent to client.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    finish(run(arguments.seconds, arguments.rounds), arguments.json)


if __name__ == "__main__":
    main()
