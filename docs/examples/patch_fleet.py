"""Patches functions in every process of a name on many hosts, at one moment, for a minute.

python patch_fleet.py HOSTS PROCESS FUNC...      such as: web[01-16],@db nginx 'ngx_http_*'
"""

from __future__ import annotations

import asyncio
import sys

from uftrace_remote import Lease, PatchOptions
from uftrace_remote.fleet import Fleet, PatchPlan, RolloutPolicy


async def main(hosts: str, process: str, *patterns: str) -> None:
    """Patch, and say what became of each process."""
    plan = PatchPlan(
        patterns,
        PatchOptions(lease=Lease("example", 60 * 10**9)),
        # One process first, watched for a second; then all others. A failure undoes all.
        RolloutPolicy(canary=1, watch_seconds=1.0),
    )
    async with Fleet(hosts) as fleet:
        found = await fleet.members(process)
        for host, error in found.failures:
            print(f"{host}: {error} ({error.hint})")
        done = await fleet.patch(found, plan, progress=print)
        for each in done.members:
            print(each.member, each.error or each.step.name.lower())
        print("enabled" if done.is_enabled else "rolled back")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
