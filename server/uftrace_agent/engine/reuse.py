"""Whether a tracepoint that was disabled can be enabled again as it was."""

from __future__ import annotations

from uftrace_agent.engine.exit_rules import ProcessTraits, exit_refusal
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.site import Role, SitePlan
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.engine.writer_choice import writer_fits


def serves_again(known: Tracepoint, options: PlanOptions, traits: ProcessTraits) -> bool:
    """Whether the plan that it has is one for what is asked for now."""
    if known.entry_only != options.entry_only or not writer_fits(known.plan, options.writer):
        return False
    # An unwinder that came meanwhile, and cannot be hooked, would not see through the
    # thunks (H39).
    if not traits.unwinder_refusal or not _replaces_returns(known.plan):
        return True
    function = known.function
    return exit_refusal(function.module.traits(function.symbol), traits) is None


def _replaces_returns(plan: SitePlan) -> bool:
    return plan.has_exit and all(site.role is not Role.EXIT for site in plan.sites())
