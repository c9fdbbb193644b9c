"""From what the engine says to the values of the session layer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from uftrace_agent.engine.model import Refusal, Status
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.report import EngineReport, SiteOutcome
from uftrace_agent.engine.site import Role
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.session.budget import NO_CHANGE
from uftrace_agent.session.function_names import function_ref
from uftrace_agent.session.throttling import Throttling
from uftrace_agent.session.types import (
    FunctionRef,
    PatchOutcome,
    PatchResult,
    TracedFunction,
    TracepointInfo,
)


# A function's events are recorded under ids of their own.
def traced_functions(tracepoint: Tracepoint) -> list[TracedFunction]:
    """The function behind the ids of a tracepoint's records."""
    ref = function_ref(tracepoint.function)
    events = {
        site.record_id: site.label for site in tracepoint.plan.others if site.role is Role.EVENT
    }
    return [
        TracedFunction(tracepoint.function_id, ref, tracepoint.plan.has_exit),
        *(
            TracedFunction(record_id, replace(ref, name=f"{ref.name} [{label}]"), False)
            for record_id, label in sorted(events.items())
        ),
    ]


def patch_outcome(
    report: EngineReport, started: int, names: Mapping[int, FunctionRef]
) -> PatchOutcome:
    """What became of a request that came at `started` (monotonic nanoseconds); functions
    by id are in `names`."""
    return PatchOutcome(
        results=[patch_result(outcome, names) for outcome in report.outcomes],
        longest_pause_ns=report.pauses.longest_ns,
        longest_pause_tid=report.pauses.tid,
        elapsed_ns=time.monotonic_ns() - started,
        plan_ns=report.plan_ns,
        writer_detail=report.writer_detail,
        pauses=report.pauses.by_thread,
    )


def patch_result(outcome: SiteOutcome, names: Mapping[int, FunctionRef]) -> PatchResult:
    """What became of one function."""
    plan = outcome.plan
    return PatchResult(
        function=names.get(outcome.function_id) or function_ref(outcome.function),
        function_id=outcome.function_id,
        status=outcome.status,
        form=plan.form if plan else None,
        writer=outcome.writer or (plan.writer if plan else None),
        refusal=outcome.refusal,
        exit_refusal=plan.exit_refusal if plan else None,
        detail=outcome.detail,
        kind=outcome.kind or (plan.kind if plan else None),
    )


def over_budget(functions: Iterable[ProgramFunction], throttling: Throttling) -> list[SiteOutcome]:
    """Refusals of functions that were taken out because they cost too much."""
    refused = []
    for function in functions:
        throttle = throttling.throttle_of(function)
        if throttle is not None and not throttle.raised:
            refused.append(
                SiteOutcome(
                    function,
                    Status.REFUSED,
                    throttle.function_id,
                    refusal=Refusal.OVER_BUDGET,
                    detail=f"{throttle.words()}; raise its limit first",
                )
            )
    return refused


def tracepoint_infos(
    enabled: Sequence[Tracepoint],
    throttling: Throttling,
    owner: str,
    names: Mapping[int, FunctionRef],
) -> list[TracepointInfo]:
    """What is enabled and what is out, by rising id.

    Args:
        enabled: The first.
        throttling: Knows the second.
        owner: Whose is what another agent took out.
        names: Functions by id.
    """
    rates, own = throttling.rates(), throttling.own_limits()
    found = [
        TracepointInfo(
            patch_result(SiteOutcome(t.function, Status.ENABLED, t.function_id, t.plan), names),
            t.owner,
            t.enabled_unix_ns,
            limits=own.get(t.function.address, NO_CHANGE),
            calls_per_second=float(rates[t.function_id]) if t.function_id < len(rates) else 0.0,
        )
        for t in enabled
    ]
    addresses = {t.function.address for t in enabled}
    for out in throttling.throttled():
        address, before = out.function.address, out.tracepoint
        if address in addresses:
            continue
        outcome = SiteOutcome(
            out.function,
            Status.NOT_ENABLED,
            out.throttle.function_id,
            before.plan if before else None,
            detail=out.throttle.words(),
        )
        found.append(
            TracepointInfo(
                patch_result(outcome, names),
                before.owner if before else owner,
                before.enabled_unix_ns if before else 0,
                out.throttle,
                own.get(address, NO_CHANGE),
            )
        )
    return sorted(found, key=lambda each: each.patch.function_id)
