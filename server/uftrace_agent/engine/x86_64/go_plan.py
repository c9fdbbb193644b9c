"""Planning the sites of one Go function (see `go_functions.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from uftrace_agent.engine.architecture import SiteRequest
from uftrace_agent.engine.layout import CodeLayout, CodeRegion
from uftrace_agent.engine.model import Refusal, RefusedError, Writer
from uftrace_agent.engine.site import Role, SitePlan
from uftrace_agent.engine.x86_64 import stub as stubs
from uftrace_agent.engine.x86_64.entry_sites import EntrySite
from uftrace_agent.engine.x86_64.go_functions import GoFunction, GoSite, NoExitsError
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_ENTRY_ONLY, KIND_EXIT, id_word

_LANDING_BYTES: Final = 5
_NO_CHECK: Final = (
    "entry only: it has no check of the stack and is not known to be compiled, so that the "
    "register of the goroutine may hold anything"
)

Place = Callable[
    [SiteRequest, CodeLayout, EntrySite, list[str], Callable[[CodeRegion, int], bytes]], SitePlan
]


def plan_go(
    request: SiteRequest, layout: CodeLayout, place: Place, reasons: list[str]
) -> SitePlan | None:
    """Plan a function of a Go program: its entry, and all its exits or none of them.

    Args:
        request: What is asked.
        layout: Where stubs go.
        place: Chooses the form of one site, and reserves what it needs.
        reasons: Gets what stood against it.

    Returns:
        The plan; None where the function is to be treated as any other.
    """
    function = GoFunction.of(request.function)
    if function is None:
        reasons.append(_NO_CHECK)
        return None
    failures: list[str] = []
    if not request.entry_only:
        for one in function.entries():
            plan = _with_exits(request, layout, place, function, one, failures)
            if plan is not None:
                return plan
    try:
        entry = _first(request, layout, place, function.entries(), KIND_ENTRY_ONLY)
    except RefusedError as error:
        reasons.append(error.detail)
        return None
    return replace(
        entry,
        has_exit=False,
        exit_refusal=None if request.entry_only else Refusal.MOVING_STACKS,
        detail=f"entry only: {failures[0]}" if failures else entry.detail,
    )


# An entry, and all exits behind it; None where some exit has no place there.
def _with_exits(
    request: SiteRequest,
    layout: CodeLayout,
    place: Place,
    function: GoFunction,
    one: GoSite,
    failures: list[str],
) -> SitePlan | None:
    done: list[SitePlan] = []
    try:
        done.append(_first(request, layout, place, [one], KIND_ENTRY))
        for sites in function.exits(one.site.address):
            done.append(_first(request, layout, place, sites, KIND_EXIT))
    except (NoExitsError, RefusedError) as error:
        _undo(layout, done)
        failures.append(str(error))
        return None
    if any(site.writer is not Writer.BYTE for site in done):
        # All at once: an entry that came first would be missed its exit.
        done = [replace(site, writer=Writer.STOP) for site in done]
    entry, *exits = done
    return replace(
        entry,
        has_exit=True,
        exit_refusal=None,
        detail=f"1 entry, {len(exits)} exit",
        others=tuple(replace(site, role=Role.EXIT, has_exit=True) for site in exits),
    )


def _first(
    request: SiteRequest, layout: CodeLayout, place: Place, sites: Sequence[GoSite], kind: int
) -> SitePlan:
    word = id_word(request.function_id, kind)
    reasons: list[str] = []
    refusal = Refusal.OVERLAPS_NEIGHBOUR
    for one in sites:
        try:
            return place(request, layout, one.site, reasons, _stub(one, word))
        except RefusedError as error:
            refusal = error.refusal
            reasons.append(error.detail)
    raise RefusedError(refusal, "; ".join(reasons) or "every round of a loop passes there")


def _stub(one: GoSite, word: int) -> Callable[[CodeRegion, int], bytes]:
    def make(region: CodeRegion, stub: int) -> bytes:
        probe = region.base + load_blob("x86_64").symbols["uf_strand"]
        instruction = one.site.instruction
        resume = instruction.address + instruction.size
        return stubs.strand_stub(stub, probe, word, one.offset, instruction, resume)

    return make


def _undo(layout: CodeLayout, plans: Sequence[SitePlan]) -> None:
    for plan in plans:
        layout.release(plan.patches())
        layout.give_back_stub(layout.region_of(plan.stub), plan.stub)
        for write in plan.writes:
            if write.address == plan.landing:
                layout.give_back_landing(write.address, len(write.code))
