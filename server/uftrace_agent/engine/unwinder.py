"""Unwinders in a process, and the hooks that let them see through return thunks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.annex import Annex
from uftrace_agent.engine.architecture import Architecture
from uftrace_agent.engine.journal_entry import Entry, Phase
from uftrace_agent.engine.manifest import Manifest
from uftrace_agent.engine.model import RefusedError
from uftrace_agent.engine.program import ModuleView, ProgramFunction
from uftrace_agent.engine.site import Patch, SitePlan
from uftrace_agent.engine.site_writer import DONE, SiteChange, SiteWriter
from uftrace_agent.engine.writer import write_running
from uftrace_agent.engine.writer_choice import WriterChoice
from uftrace_agent.errors import BusyTargetError
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses

_STOP_DEADLINE_NS: Final = 1_000_000_000

# Where libgcc's unwinder looks up a frame: exported by libgcc_s, a plain
# symbol in programs linked with the static copy.
_LOOKUP: Final = "_Unwind_Find_FDE"
_RAISE: Final = ("_Unwind_RaiseException", "__cxa_throw", "_Unwind_Resume")


@dataclass(frozen=True, slots=True)
class Unwinder:
    """A copy of libgcc's frame lookup."""

    module: ModuleView
    index: int
    address: int


@dataclass(frozen=True, slots=True)
class Unwinders:
    """What a process has.

    Attributes:
        hookable: Copies of libgcc's lookup.
        unhookable: Exceptions can pass through an unwinder that has none.
    """

    hookable: tuple[Unwinder, ...]
    unhookable: bool


def find_unwinders(modules: Iterable[ModuleView]) -> Unwinders:
    """Look through the modules of a process.

    A module that has an unwinder of its own (LLVM's, or a stripped static
    copy) without the lookup cannot be hooked.
    """
    hookable: list[Unwinder] = []
    unhookable = False
    for view in modules:
        table = view.image.functions
        address = view.image.address_of(_LOOKUP)
        if address is not None:
            index = table.index_of_address(address)
            if index is not None:
                live = address + view.loaded.load_bias
                hookable.append(Unwinder(view, index, live))
                continue
        raises = any(view.image.address_of(name) is not None for name in _RAISE[:1])
        is_static = not view.image.imports and view.loaded.is_main
        stripped = is_static and view.image.may_throw and len(table) > 0
        if raises or (stripped and _has_no_names(view)):
            unhookable = True
    return Unwinders(tuple(hookable), unhookable)


def _has_no_names(view: ModuleView) -> bool:
    return view.image.address_of("main") is None


@dataclass(frozen=True, slots=True)
class Hook:
    """One hooked lookup."""

    address: int
    plan: SitePlan
    journal_index: int


class UnwinderHooks:
    """The hooks of one process: in before the first thunk is used, out last."""

    def __init__(
        self,
        memory: ProcessMemory,
        annex: Annex,
        manifest: Manifest,
        architecture: Architecture,
        writer: SiteWriter,
    ) -> None:
        self._memory = memory
        self._writer = writer
        self._annex = annex
        self._manifest = manifest
        self._architecture = architecture
        self._hooks: list[Hook] = []
        # Those that are out, by address: their stubs and places serve again, or each
        # session would take new ones.
        self._out: dict[int, Hook] = {}
        # Everything is there for these but the change of code.
        self._ready: dict[int, Hook] = {}
        self._failed: set[int] = set()

    @property
    def addresses(self) -> set[int]:
        """Live entry addresses of the lookups that are hooked, or will be."""
        return {hook.address for hook in self._hooks} | self._ready.keys()

    @property
    def some_failed(self) -> bool:
        """Whether there is an unwinder that could not be hooked."""
        return bool(self._failed)

    def install(self, modules: Iterable[ModuleView], choice: WriterChoice, pauses: Pauses) -> None:
        """Hook every unwinder that is not hooked yet.

        Raises:
            BusyTargetError: The threads did not stop in time; nothing was changed.
            TargetGoneError: The process ended.
        """
        found = self.prepare(modules)
        for address in list(self._ready):
            hook = self._ready.pop(address)
            # What was unloaded meanwhile has nothing to hook.
            if address in found and not self._write(found[address], hook, choice, pauses):
                self._failed.add(address)

    def prepare(self, modules: Iterable[ModuleView]) -> dict[int, Unwinder]:
        """Make ready what hooks need, and change no code; the unwinders by address.

        Raises:
            BusyTargetError: Memory could not be mapped in time.
            TargetGoneError: The process ended.
        """
        found = {unwinder.address: unwinder for unwinder in find_unwinders(modules).hookable}
        for address in found.keys() - self.addresses - self._failed:
            hook = self._known(address) or self._prepare(found[address])
            if hook is None:
                self._failed.add(address)
            else:
                self._ready[address] = hook
        return found

    # The same bytes at the same place: the old stub leads where it should, whichever
    # file they are of.
    def _known(self, address: int) -> Hook | None:
        hook = self._out.pop(address, None)
        if hook is None:
            return None
        patches = [p for p in (hook.plan.head, hook.plan.tail) if p is not None]
        if all(self._memory.read_some(p.address, len(p.expected)) == p.expected for p in patches):
            return hook
        self._annex.layout.release(patches)
        return None

    def _prepare(self, unwinder: Unwinder) -> Hook | None:
        self._annex.layout.refresh(read_mappings(self._memory.pid))
        try:
            plan = self._architecture.plan_unwinder_hook(
                unwinder.module.code_of(unwinder.index), unwinder.module.span, self._annex.layout
            )
        except RefusedError:
            return None
        for missing in self._annex.map_pending():
            if any(missing.start <= w.address < missing.start + missing.size for w in plan.writes):
                return None
        self._annex.write_code(plan.writes)
        return Hook(unwinder.address, plan, self._manifest.reserve(1))

    def _write(self, unwinder: Unwinder, hook: Hook, choice: WriterChoice, pauses: Pauses) -> bool:
        plan, index = hook.plan, hook.journal_index
        self._manifest.write([(index, Entry.of(plan, 0, Phase.PATCHING))])
        function = ProgramFunction(unwinder.module, unwinder.index)
        change = SiteChange(plan, choice.of_site(function, plan))
        changed = self._writer.change([change], _STOP_DEADLINE_NS, pauses)
        if changed.statuses[0] not in DONE:
            self._out[hook.address] = hook
            self._manifest.write([(index, Entry.of(plan, 0, Phase.FREE))])
            if changed.statuses[0] is None:
                raise BusyTargetError(
                    f"process {self._memory.pid} did not reach a safe point in time: "
                    + "; ".join(changed.notes)
                )
            # Somebody else has patched it: exits are not traced then.
            return False
        self._manifest.write([(index, Entry.of(plan, 0, Phase.PATCHED))])
        self._hooks.append(hook)
        return True

    def adopt(
        self, hooks: Iterable[tuple[int, SitePlan]], out: Iterable[tuple[int, SitePlan]] = ()
    ) -> None:
        """Go on with what another agent hooked, and had hooked; by place in the journal."""
        self._hooks += [Hook(plan.function, plan, row) for row, plan in hooks]
        self._out |= {plan.function: Hook(plan.function, plan, row) for row, plan in out}

    def ways_back(self) -> list[Patch]:
        """What sets the hooked code back."""
        return [hook.plan.head.reversed() for hook in self._hooks]

    def removed(self) -> None:
        """The hooked code has been set back."""
        tails = [hook.plan.tail.reversed() for hook in self._hooks if hook.plan.tail is not None]
        write_running(self._memory, tails)
        self._manifest.write(
            [(hook.journal_index, Entry.of(hook.plan, 0, Phase.FREE)) for hook in self._hooks]
        )
        self._out |= {hook.address: hook for hook in self._hooks}
        self._hooks.clear()
        # What stood against a hook may be gone in the next session.
        self._failed.clear()
