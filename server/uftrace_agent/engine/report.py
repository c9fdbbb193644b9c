"""What is asked of the patch engine, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from uftrace_agent.engine.model import Refusal, SiteKind, Status, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.site import SitePlan
from uftrace_agent.process.pauses import Pauses

DEFAULT_STOP_DEADLINE_NS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How one request is to be carried out.

    Attributes:
        plan: What may be planned.
        all_or_nothing: Refuse everything where one function is refused.
        dry_run: Plan, and change nothing.
        stop_deadline_ns: For one stop.
        owner: Who asks.
        lease: The bit of the lease that is to hold the tracepoints; 0: they stay.
        breathe: Called now and then while nothing is half done: tracepoints may be
            disabled in it.
    """

    plan: PlanOptions = field(default_factory=PlanOptions)
    all_or_nothing: bool = False
    dry_run: bool = False
    stop_deadline_ns: int = DEFAULT_STOP_DEADLINE_NS
    owner: str = ""
    lease: int = 0
    breathe: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class SiteOutcome:
    """What became of one function."""

    function: ProgramFunction
    status: Status
    function_id: int = 0
    plan: SitePlan | None = None
    writer: Writer | None = None
    refusal: Refusal | None = None
    detail: str = ""
    kind: SiteKind | None = None


@dataclass(slots=True)
class EngineReport:
    """What became of a request; times in nanoseconds.

    Attributes:
        outcomes: One a function.
        pauses: How long which thread stood still.
        plan_ns: Time for planning.
        written_ns: CLOCK_MONOTONIC when the code had been changed; 0: it was not.
        frames: Return addresses on stacks that were set back.
        writer_detail: Why sites had to be changed by `stop`; empty where none had.
    """

    outcomes: list[SiteOutcome]
    pauses: Pauses = field(default_factory=Pauses)
    plan_ns: int = 0
    written_ns: int = 0
    frames: int = 0
    writer_detail: str = ""

    def has_refusal(self) -> bool:
        """Whether some function was refused."""
        return any(outcome.status is Status.REFUSED for outcome in self.outcomes)
