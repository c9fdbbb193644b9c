"""What a plan has reserved of the process: stubs, landings, bytes of the program."""

from __future__ import annotations

from uftrace_agent.engine.layout import LANDING_BYTES, CodeLayout
from uftrace_agent.engine.site import SitePlan


def give_back(layout: CodeLayout, plan: SitePlan) -> None:
    """Return all of it; no thread may be in the plan's code, or come there."""
    layout.release(plan.patches())
    for site in plan.sites():
        layout.give_back_stub_at(site.stub)
        for write in site.writes:
            if write.address == site.landing:
                layout.give_back_landing(write.address, len(write.code) or LANDING_BYTES)
            elif write.address != site.stub:
                layout.give_back_in_yard(write.address, len(write.code))
