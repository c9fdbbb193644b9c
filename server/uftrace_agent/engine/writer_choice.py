"""Which writer changes which site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from uftrace_agent.engine.model import Form, Refusal, Status, Writer
from uftrace_agent.engine.program import ModuleView, ProgramFunction
from uftrace_agent.engine.report import SiteOutcome
from uftrace_agent.engine.site import SitePlan
from uftrace_agent.engine.trap_guards import module_refusal, process_refusal

# How much each disturbs the program, the least first.
_INTRUSIVE = (Writer.BYTE, Writer.TRAP, Writer.STOP)
# AArch64: Arm ARM, B2.2.5, "Concurrent modification and execution of instructions".
_NO_TRAPS = "this machine has no such writer"
_CHANGED_AT_REST = "stop: an instruction that may not change while it is executed"


class WriterChoice:
    """The choice for one request: `byte`, then `trap` where its guards pass, then `stop`.

    The guards are asked when the first site needs them.

    Args:
        pid: The process.
        modules: What is mapped in it.
        asked: What the user wants.
        handlers_refusal: Looks at the process's signal handlers and says why one
            forbids traps; only where it is attached.
        has_trap: Whether the machine has the writer `trap` at all.
    """

    def __init__(
        self,
        pid: int,
        modules: Sequence[ModuleView],
        asked: Writer,
        handlers_refusal: Callable[[], str] = str,
        has_trap: bool = True,
    ) -> None:
        self._pid = pid
        self._modules = modules
        self._asked = asked
        self._handlers_refusal = handlers_refusal
        self._has_trap = has_trap
        self._details: dict[str, None] = {}
        self._by_module: dict[str, str] = {}

    @property
    def detail(self) -> str:
        """Why sites are changed by `stop` though `auto` was asked; empty where none is."""
        return "; ".join(self._details)

    @cached_property
    def _trap_refusal(self) -> str:
        if not self._has_trap:
            return _NO_TRAPS
        return process_refusal(self._pid, self._modules) or self._handlers_refusal()

    def _no_trap(self, function: ProgramFunction) -> str:
        view = function.module
        reason = self._by_module.get(view.name)
        if reason is None:
            reason = self._by_module[view.name] = self._trap_refusal or module_refusal(view)
        return reason

    def refusal(self, function: ProgramFunction) -> SiteOutcome | None:
        """Why the writer that was asked for cannot serve a function; None where it can."""
        if self._asked is not Writer.TRAP:
            return None
        reason = self._no_trap(function)
        if not reason:
            return None
        return SiteOutcome(
            function,
            Status.REFUSED,
            refusal=Refusal.WRITER_UNSUITABLE,
            detail=f"trap: {reason}; use auto or stop",
        )

    def of_site(self, function: ProgramFunction, site: SitePlan) -> Writer:
        """The writer for one site."""
        if self._asked is Writer.STOP or site.form is Form.MULTI:
            return Writer.STOP
        if site.writer is Writer.BYTE and self._asked is not Writer.TRAP:
            return Writer.BYTE
        if reason := self._no_trap(function):
            detail = f"stop, not trap: {reason}" if self._has_trap else _CHANGED_AT_REST
            self._details[detail] = None
            return Writer.STOP
        return Writer.TRAP

    def of_function(self, function: ProgramFunction, plan: SitePlan) -> Writer:
        """The most intrusive writer that a function's sites need."""
        return most_intrusive([self.of_site(function, site) for site in plan.sites()])


def most_intrusive(writers: Sequence[Writer]) -> Writer:
    """Of several writers, the one that disturbs most."""
    return max(writers, key=_INTRUSIVE.index)


def writer_fits(plan: SitePlan, asked: Writer) -> bool:
    """Whether an old plan can be carried out by a writer that is asked for now."""
    return asked is not Writer.BYTE or all(site.writer is Writer.BYTE for site in plan.sites())
