"""A client that patches agents at one moment, and says what it is doing: one to be killed.

python -m tests.fleet.patching_client PROBATION LEASE ADDRESS=STATE_DIR=PID...
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from uftrace_remote import AgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.fleet import Agent, Fleet, Member, PatchPlan, RolloutPolicy
from uftrace_remote.values import Lease, PatchOptions


async def _patch(probation: float, lease: float, places: list[str]) -> bool:
    members: list[Member] = []
    agents: list[Agent] = []
    for place in places:
        address, state, pid = place.split("=")
        endpoint, options = Endpoint.parse(address), CredentialOptions(Path(state))
        agent = Agent(endpoint, AgentClient.connect(endpoint, options, timeout=30.0))
        agents.append(agent)
        members += (await Fleet([agent], 30.0).members(pid)).values
    plan = PatchPlan(
        ("leaf", "chain_*"),
        PatchOptions(lease=Lease("tried", int(lease * 1e9))),
        RolloutPolicy(canary=1, watch_seconds=1.0),
        probation_seconds=probation,
    )
    async with Fleet(agents, 30.0) as fleet:
        done = await fleet.patch(members, plan, lambda words: print(words, flush=True))
    return done.is_enabled


if __name__ == "__main__":
    is_enabled = asyncio.run(_patch(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
    print("enabled" if is_enabled else "nothing is patched", flush=True)
