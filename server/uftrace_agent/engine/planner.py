"""From functions to sites: what can be patched, how, and why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from uftrace_agent.engine.architecture import Architecture, SiteRequest
from uftrace_agent.engine.exit_rules import ProcessTraits, exit_refusal
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import Form, Refusal, RefusedError, SiteKind, Writer
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.reservations import give_back
from uftrace_agent.engine.site import Patch, SitePlan
from uftrace_agent.process.memory import ProcessMemory

# From this many functions on, forms that need a page each are the last choice.
_FRUGAL_FROM = 256
_BREATHE_EVERY = 32


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What is asked for all functions of one request."""

    writer: Writer = Writer.AUTO
    entry_only: bool = False
    allow_multi: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """What the planner says of one function: a plan or a refusal."""

    function: ProgramFunction
    plan: SitePlan | None
    refusal: Refusal | None = None
    detail: str = ""
    function_id: int = 0
    kind: SiteKind = SiteKind.PLAIN


class Planner:
    """Plans sites; changes nothing but the layout it is given.

    After `plan`, `next_id` is the first id that no function of it uses.

    Args:
        architecture: The target's instruction set.
        layout: Where stubs and landings are allocated.
        traits: What of the process forbids hijacked returns.
        reserved: Live addresses that the engine needs for itself.
        memory: The process's memory, to see other people's patches; None: do not look.
        occupied: Why another tracer forbids all patches; empty where none does.
    """

    def __init__(
        self,
        architecture: Architecture,
        layout: CodeLayout,
        traits: ProcessTraits,
        reserved: frozenset[int] = frozenset(),
        memory: ProcessMemory | None = None,
        occupied: str = "",
    ) -> None:
        self._architecture = architecture
        self._layout = layout
        self._traits = traits
        self._reserved = reserved
        self._memory = memory
        self._occupied = occupied
        self.next_id = 0

    def plan(
        self,
        functions: Sequence[ProgramFunction],
        first_id: int,
        options: PlanOptions,
        breathe: Callable[[], None] = lambda: None,
    ) -> list[Planned]:
        """Plan each function; ids are given from `first_id` on, by rising number.

        `breathe` is called now and then: planning many functions takes seconds.
        """
        frugal = len(functions) >= _FRUGAL_FROM
        self.next_id = next_id = first_id
        planned: list[Planned] = []
        for function in functions:
            planned.append(self._plan_one(function, next_id, options, frugal))
            next_id = self.next_id
            if not len(planned) % _BREATHE_EVERY:
                breathe()
        return planned

    def _plan_one(
        self, function: ProgramFunction, function_id: int, options: PlanOptions, frugal: bool
    ) -> Planned:
        view = function.module
        kind = SiteKind.PLAIN
        self.next_id = function_id + 1
        try:
            if self._occupied:
                raise RefusedError(Refusal.FOREIGN_PATCH, self._occupied)
            if function.address in self._reserved:
                raise RefusedError(Refusal.RESERVED, "the engine itself needs this function")
            code = view.code_of(function.index)
            kind = code.kind
            self.next_id += self._architecture.extra_ids(code)
            exit_reason = exit_refusal(view.traits(function.symbol), self._traits)
            request = SiteRequest(
                function=code,
                module=view.span,
                function_id=function_id,
                writer=options.writer,
                has_exit=exit_reason is None and not options.entry_only,
                exit_refusal=exit_reason,
                frugal=frugal,
                entry_only=options.entry_only,
                allow_multi=options.allow_multi,
            )
            plan = self._checked(self._architecture.plan_site(request, self._layout))
            return Planned(function, plan, function_id=function_id, kind=kind)
        except RefusedError as error:
            return Planned(function, None, error.refusal, error.detail, function_id, kind)

    # Somebody else's patch is seen here already, so that nothing is prepared for it.
    def _checked(self, plan: SitePlan) -> SitePlan:
        if self._memory is None:
            return plan
        try:
            checked = self._checked_site(plan)
            if not plan.others:
                return checked
            return replace(checked, others=tuple(map(self._checked_site, plan.others)))
        except RefusedError:
            give_back(self._layout, plan)
            raise

    def _checked_site(self, site: SitePlan) -> SitePlan:
        self._check_patch(site.head)
        if site.tail is None:
            return site
        if site.form is not Form.SLED:
            self._check_patch(site.tail)
            return site
        # XRay's own runtime, where it was at work before, leaves its operands there:
        # nothing executes them, and what is there is what comes back.
        live = self._live(site.tail)
        if live in (site.tail.expected, site.tail.wanted):
            return site
        return replace(site, tail=replace(site.tail, expected=live))

    def _check_patch(self, patch: Patch) -> None:
        live = self._live(patch)
        if live not in (patch.expected, patch.wanted):
            raise RefusedError(
                Refusal.FOREIGN_PATCH, self._architecture.name_foreign_patch(patch.expected, live)
            )

    def _live(self, patch: Patch) -> bytes:
        assert self._memory is not None, "asked only where there is a process"
        live = self._memory.read_some(patch.address, len(patch.expected))
        if len(live) != len(patch.expected):
            raise RefusedError(Refusal.NOT_IN_TEXT, "its code is not mapped any more")
        return live
