"""Unwinders in a process, and the hooks that let them see through return thunks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.program import ModuleView
from uftrace_agent.engine.site import SitePlan

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
    """The hooks that are in place."""

    def __init__(self) -> None:
        self.all: list[Hook] = []

    @property
    def addresses(self) -> set[int]:
        """Live entry addresses of the hooked lookups."""
        return {hook.address for hook in self.all}

    def add(self, address: int, plan: SitePlan, journal_index: int) -> None:
        """A hook is in place."""
        self.all.append(Hook(address, plan, journal_index))

    def clear(self) -> None:
        """No hook is in place any more."""
        self.all.clear()
