"""A request of which everything is ready but the change of code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from uftrace_agent.engine import outcomes
from uftrace_agent.engine.report import EngineOptions, EngineReport, SiteOutcome
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.engine.writer_choice import WriterChoice

# Entered when nothing is left to do but the change, and left when that is made; False: it
# is not to be made.
Barrier = Callable[[], AbstractContextManager[bool]]


def at_once() -> AbstractContextManager[bool]:
    """The barrier of those who do not wait."""
    return nullcontext(True)


@dataclass(slots=True)
class Preparation:
    """What `PatchEngine.commit` is to carry out.

    Attributes:
        report: What became of the functions so far; those that are ready have no
            outcome yet.
        options: How they are to be patched.
        choice: By which writers.
        parked: Functions that were patched before in the same way.
        new: Functions that were not.
        stands: Whether there is anything to carry out: not after a refusal of what is
            all or nothing, and not for a dry run.
    """

    report: EngineReport
    options: EngineOptions
    choice: WriterChoice
    parked: list[Tracepoint] = field(default_factory=list)
    new: list[Tracepoint] = field(default_factory=list)
    stands: bool = True

    @property
    def tracepoints(self) -> list[Tracepoint]:
        """All that are ready."""
        return self.parked + self.new

    def outcomes_so_far(self) -> list[SiteOutcome]:
        """Of all functions: what is ready is not enabled yet."""
        ready = outcomes.not_carried_out(self.tracepoints, self.choice) if self.stands else []
        return [*self.report.outcomes, *ready]
