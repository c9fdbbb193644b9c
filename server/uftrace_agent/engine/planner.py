"""From functions to sites: what can be patched, how, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uftrace_agent.engine.architecture import Architecture, SiteRequest
from uftrace_agent.engine.exit_rules import ProcessTraits, exit_refusal
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import Refusal, RefusedError, Writer
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.site import SitePlan

# From this many functions on, forms that need a page each are the last choice.
_FRUGAL_FROM = 256


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What is asked for all functions of one request."""

    writer: Writer = Writer.AUTO
    entry_only: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """What the planner says of one function: a plan or a refusal."""

    function: ProgramFunction
    plan: SitePlan | None
    refusal: Refusal | None = None
    detail: str = ""


class Planner:
    """Plans sites; changes nothing but the layout it is given.

    Args:
        architecture: The target's instruction set.
        layout: Where stubs and landings are allocated.
        traits: What of the process forbids hijacked returns.
        reserved: Live addresses that the engine needs for itself.
    """

    def __init__(
        self,
        architecture: Architecture,
        layout: CodeLayout,
        traits: ProcessTraits,
        reserved: frozenset[int] = frozenset(),
    ) -> None:
        self._architecture = architecture
        self._layout = layout
        self._traits = traits
        self._reserved = reserved

    def plan(
        self, functions: Sequence[ProgramFunction], first_id: int, options: PlanOptions
    ) -> list[Planned]:
        """Plan each function; function i gets the id `first_id` + i."""
        frugal = len(functions) >= _FRUGAL_FROM
        return [
            self._plan_one(function, first_id + index, options, frugal)
            for index, function in enumerate(functions)
        ]

    def _plan_one(
        self, function: ProgramFunction, function_id: int, options: PlanOptions, frugal: bool
    ) -> Planned:
        view = function.module
        try:
            if function.address in self._reserved:
                raise RefusedError(Refusal.RESERVED, "the engine itself needs this function")
            code = view.code_of(function.index)
            exit_reason = exit_refusal(view.traits(function.symbol), self._traits)
            request = SiteRequest(
                function=code,
                module=view.span,
                function_id=function_id,
                writer=options.writer,
                has_exit=exit_reason is None and not options.entry_only,
                exit_refusal=exit_reason,
                frugal=frugal,
            )
            return Planned(function, self._architecture.plan_site(request, self._layout))
        except RefusedError as error:
            return Planned(function, None, error.refusal, error.detail)
