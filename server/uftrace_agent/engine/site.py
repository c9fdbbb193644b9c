"""Values of one planned site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from uftrace_agent.engine.model import Form, Refusal, SiteKind, Writer
from uftrace_agent.symbols.xray_sleds import SledKind


@dataclass(frozen=True, slots=True)
class LiveSled:
    """One of XRay's sleds: live address, original bytes of it and of what follows."""

    address: int
    kind: SledKind
    code: bytes


class Role(IntEnum):
    """What passing a site means."""

    ENTRY = 0
    EXIT = 1
    EVENT = 2


class ProbeKind(IntEnum):
    """Where the probe finds the return address of the traced function."""

    ENTRY = 0
    FENTRY = 1
    MCOUNT = 2


@dataclass(frozen=True, slots=True)
class Patch:
    """A span of code before and after; both have the same length, 16 bytes at most.

    Bytes that only have to stay as they are (the tail of a punned jump) are
    part of the span, so that writing verifies them.
    """

    address: int
    expected: bytes
    wanted: bytes

    @property
    def end(self) -> int:
        """The address behind the span."""
        return self.address + len(self.expected)

    def changed(self) -> list[int]:
        """Addresses of the bytes that differ."""
        old, new = self.expected, self.wanted
        return [self.address + index for index in range(len(old)) if old[index] != new[index]]

    def reversed(self) -> Patch:
        """The way back."""
        return Patch(self.address, self.wanted, self.expected)


@dataclass(frozen=True, slots=True)
class CodeWrite:
    """Bytes that go into the engine's own code memory before the site changes."""

    address: int
    code: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes between two functions, and the whole function before them."""

    start: int
    code: bytes
    before: bytes


class ModuleText(Protocol):
    """All code of one module; hashable by identity."""

    def executable(self) -> Iterable[tuple[int, bytes]]:
        """(live address, original bytes) of each executable segment."""
        ...


@dataclass(frozen=True, slots=True)
class FunctionCode:
    """A function to plan for: live addresses, original bytes.

    Attributes:
        address: Live entry address.
        size: Bytes of the function, 0 where unknown.
        code: Original bytes from `address` on: at least 24 where the text
            segment goes on that far.
        profiled: Names of the profiling functions by live address: of the
            function itself, its PLT stub or its GOT slot.
        gaps: Makes the gaps near the function.
        text: The module's code; None where it is not known.
        next_entry: Where the next function begins; 0 where none is known.
        kind: What the compiler left in it.
        sleds: Its sleds, by rising address.
        body: Makes its code as a whole; empty where its size is not known.
        behind: Makes the bytes behind it: 8, or fewer where the text ends.
        is_go: The Go toolchain linked its module.
        is_go_compiled: Its compiler made it, for its own calling convention.
    """

    address: int
    size: int
    code: bytes
    profiled: Mapping[int, str] = field(default_factory=dict)
    gaps: Callable[[], Sequence[Gap]] = tuple
    text: ModuleText | None = None
    next_entry: int = 0
    kind: SiteKind = SiteKind.PLAIN
    sleds: tuple[LiveSled, ...] = ()
    body: Callable[[], bytes] = bytes
    behind: Callable[[], bytes] = bytes
    is_go: bool = False
    is_go_compiled: bool = False


@dataclass(frozen=True, slots=True)
class SitePlan:
    """How one site will be patched; that of a function's entry stands for the function.

    Attributes:
        function: Live entry address of the function.
        form: What the site will look like.
        writer: Who can make the change: BYTE, or STOP (then TRAP can too, but
            for `multi`).
        head: The site itself.
        tail: Bytes that change before it, and that nothing executes meanwhile.
        stub: Address of the stub.
        writes: Stub and landing code.
        probe: Where the return address is found.
        has_exit: Whether the exit is traced too.
        exit_refusal: Why not.
        detail: What stood against cheaper forms.
        kind: What the compiler left in the function.
        role: What passing the site means.
        record_id: The function id that its records carry.
        label: What an event is called.
        is_call: Whether the patched instruction calls its stub.
        moves: (address in the program, address in the stub) of instructions
            that are displaced together; the first one's is the site's own.
        others: The function's other sites.
    """

    function: int
    form: Form
    writer: Writer
    head: Patch
    tail: Patch | None
    stub: int
    writes: tuple[CodeWrite, ...]
    probe: ProbeKind
    has_exit: bool
    exit_refusal: Refusal | None = None
    detail: str = ""
    kind: SiteKind = SiteKind.PLAIN
    role: Role = Role.ENTRY
    record_id: int = 0
    label: str = ""
    is_call: bool = False
    moves: tuple[tuple[int, int], ...] = ()
    others: tuple[SitePlan, ...] = ()

    @property
    def landing(self) -> int:
        """Where a punned jump leads; 0 for the other forms."""
        return self.writes[1].address if self.form is Form.PUN and len(self.writes) > 1 else 0

    def sites(self) -> tuple[SitePlan, ...]:
        """All sites of the function: in this order they are enabled, so that no exit
        is missed whose entry was seen, and in the reverse one disabled."""
        return (*self.others, self)

    def all_writes(self) -> tuple[CodeWrite, ...]:
        """The code that all its sites need."""
        return tuple(write for site in self.sites() for write in site.writes)

    def patches(self) -> tuple[Patch, ...]:
        """All spans of program bytes that change."""
        return tuple(
            patch for site in self.sites() for patch in (site.head, site.tail) if patch is not None
        )
