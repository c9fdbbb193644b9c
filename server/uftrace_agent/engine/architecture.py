"""What the engine asks of an instruction set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import Refusal, RefusedError, Writer
from uftrace_agent.engine.site import FunctionCode, SitePlan


@dataclass(frozen=True, slots=True)
class ModuleSpan:
    """Live addresses of a module's image: stubs must reach its code and data."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SiteRequest:
    """What is asked for one function.

    Attributes:
        function: The code to plan for.
        module: Its module.
        function_id: The id that its records carry.
        writer: AUTO, BYTE or STOP.
        has_exit: Whether the exit is to be traced.
        exit_refusal: Why not, where it cannot be.
        frugal: Many functions at once: prefer forms that need no memory page
            of their own.
        entry_only: The exit is not wanted.
        allow_multi: The form `multi` may be used where no other fits.
    """

    function: FunctionCode
    module: ModuleSpan
    function_id: int
    writer: Writer
    has_exit: bool
    exit_refusal: Refusal | None
    frugal: bool
    entry_only: bool = False
    allow_multi: bool = False

    def check_calls(self, displaced_calls: bool) -> None:
        """Refuse to displace a call where the processor keeps return addresses itself: what
        stands in for it elsewhere is no call to the processor (H43).

        Raises:
            RefusedError: It may not be displaced.
        """
        if displaced_calls and self.exit_refusal is Refusal.SHADOW_STACK:
            raise RefusedError(
                Refusal.SHADOW_STACK,
                "its first instruction is a call, which the processor's shadow stack has to see",
            )


class Architecture(Protocol):
    """One instruction set; the only place where architectures differ.

    Attributes:
        name: The kernel's name of it.
        stub_bytes: Size of one stub.
        reach: How far a jump goes, in bytes.
        has_trap_writer: Whether there is an instruction of one byte that traps: sites
            can be changed by the writer `trap` then.
    """

    name: str
    stub_bytes: int
    reach: int
    has_trap_writer: bool

    def plan_site(self, request: SiteRequest, layout: CodeLayout) -> SitePlan:
        """Plan one function and reserve what it needs in `layout`.

        Raises:
            RefusedError: It cannot be patched; nothing is reserved.
        """
        ...

    def extra_ids(self, function: FunctionCode) -> int:
        """How many ids behind its own a function's plan may use (for its events)."""
        ...

    def name_foreign_patch(self, expected: bytes, live: bytes) -> str:
        """What bytes that are neither the file's nor ours look like, for people."""
        ...

    def plan_unwinder_hook(
        self, function: FunctionCode, module: ModuleSpan, layout: CodeLayout
    ) -> SitePlan:
        """Plan the hook of the unwinder's table lookup.

        Raises:
            RefusedError: It cannot be hooked.
        """
        ...

    def thunk_array(self, at: int, exit_probe: int, slots: int) -> bytes:
        """The return thunks for address `at`, with the table of slots at `slots`."""
        ...

    def unwind_entry(self, thunks: int, slots: int) -> tuple[bytes, int]:
        """The thunks' unwind block, and the offset of the FDE in it."""
        ...
