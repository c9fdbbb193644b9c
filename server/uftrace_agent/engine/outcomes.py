"""What the engine says of each function: one way to say each thing."""

from __future__ import annotations

from collections.abc import Iterable

from uftrace_agent.engine.model import Refusal, Status, Writer
from uftrace_agent.engine.planner import Planned
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.report import SiteOutcome
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.engine.writer_choice import WriterChoice

TOO_LATE = (
    "the threads did not stop in time; nothing was changed: try again, or give a longer deadline"
)


def enabled(tracepoint: Tracepoint, writer: Writer) -> SiteOutcome:
    """It is in."""
    plan = tracepoint.plan
    return SiteOutcome(
        tracepoint.function,
        Status.ENABLED,
        tracepoint.function_id,
        plan,
        writer,
        detail=plan.detail,
    )


def already_enabled(tracepoint: Tracepoint) -> SiteOutcome:
    """It was in before."""
    owner = tracepoint.owner
    return SiteOutcome(
        tracepoint.function,
        Status.ALREADY_ENABLED,
        tracepoint.function_id,
        tracepoint.plan,
        detail=f"enabled by {owner}" if owner else "",
    )


def not_enabled(tracepoints: Iterable[Tracepoint]) -> list[SiteOutcome]:
    """They are not in, and nothing was wrong with them."""
    return [SiteOutcome(t.function, Status.NOT_ENABLED, t.function_id, t.plan) for t in tracepoints]


def not_carried_out(tracepoints: Iterable[Tracepoint], choice: WriterChoice) -> list[SiteOutcome]:
    """They are not in, and would be by these writers."""
    return [
        SiteOutcome(
            t.function,
            Status.NOT_ENABLED,
            t.function_id,
            t.plan,
            choice.of_function(t.function, t.plan),
        )
        for t in tracepoints
    ]


def disabled(tracepoint: Tracepoint, writer: Writer) -> SiteOutcome:
    """It is out; or was left alone, since it is not ours any more."""
    if not tracepoint.conflicting:
        return SiteOutcome(
            tracepoint.function,
            Status.DISABLED,
            tracepoint.function_id,
            tracepoint.plan,
            writer,
        )
    return SiteOutcome(
        tracepoint.function,
        Status.CONFLICT,
        tracepoint.function_id,
        tracepoint.plan,
        refusal=Refusal.FOREIGN_PATCH,
        detail="somebody else changed the site since: it was left alone",
    )


def refused(planned: Planned) -> SiteOutcome:
    """The planner has no form for it."""
    return SiteOutcome(
        planned.function,
        Status.REFUSED,
        refusal=planned.refusal,
        detail=planned.detail,
        kind=planned.kind,
    )


def other_way_before(tracepoint: Tracepoint) -> SiteOutcome:
    """Its trampoline may still be in use: a second one cannot take its place while
    the session lasts."""
    return SiteOutcome(
        tracepoint.function,
        Status.REFUSED,
        tracepoint.function_id,
        refusal=Refusal.WRITER_UNSUITABLE,
        detail="it was enabled in another way before: detach, then patch again",
    )


def no_id_left(function: ProgramFunction) -> SiteOutcome:
    """Records could not name it."""
    return SiteOutcome(function, Status.REFUSED, refusal=Refusal.TABLE_FULL, detail="no id is left")


def no_trampoline_space(tracepoint: Tracepoint) -> SiteOutcome:
    """The memory that its plan needs could not be mapped."""
    return SiteOutcome(
        tracepoint.function,
        Status.REFUSED,
        refusal=Refusal.NO_TRAMPOLINE_SPACE,
        detail="no memory at its trampoline's address: taken meanwhile, "
        "vm.max_map_count is reached, or the session's limit of memory",
    )


def module_has_gone(tracepoint: Tracepoint) -> SiteOutcome:
    """It was prepared, and then its module was unloaded."""
    return SiteOutcome(
        tracepoint.function,
        Status.REFUSED,
        tracepoint.function_id,
        refusal=Refusal.NOT_FOUND,
        detail="its module was unloaded since it was prepared",
    )


def unwinder_has_come(tracepoint: Tracepoint) -> SiteOutcome:
    """It was prepared with its exit, and then an unwinder came that cannot be hooked."""
    return SiteOutcome(
        tracepoint.function,
        Status.REFUSED,
        tracepoint.function_id,
        refusal=Refusal.UNWINDER_NOT_HOOKABLE,
        detail="an unwinder that cannot be hooked was loaded since it was prepared: prepare it "
        "again, for its entry alone",
    )


def not_written(tracepoint: Tracepoint, foreign: str | None) -> SiteOutcome:
    """Its sites could not be changed.

    Args:
        tracepoint: The function.
        foreign: What is there in place of the original; None: there was no time.
    """
    refusal = Refusal.STOP_TIMED_OUT if foreign is None else Refusal.FOREIGN_PATCH
    detail = TOO_LATE if foreign is None else foreign
    return SiteOutcome(tracepoint.function, Status.REFUSED, refusal=refusal, detail=detail)
