"""Values of one planned site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from uftrace_agent.engine.model import Form, Refusal, Writer


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
        return [
            self.address + index
            for index, (old, new) in enumerate(zip(self.expected, self.wanted, strict=True))
            if old != new
        ]

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
    """

    address: int
    size: int
    code: bytes
    profiled: Mapping[int, str] = field(default_factory=dict)
    gaps: Callable[[], Sequence[Gap]] = tuple
    text: ModuleText | None = None
    next_entry: int = 0


@dataclass(frozen=True, slots=True)
class SitePlan:
    """How one function will be patched.

    Attributes:
        function: Live entry address of the function.
        form: What the site will look like.
        writer: Who can make the change (BYTE or STOP).
        head: The site itself.
        tail: Unreachable bytes that change before it (padding of `hop`).
        stub: Address of the stub.
        writes: Stub and landing code.
        probe: Where the return address is found.
        has_exit: Whether the exit is traced too.
        exit_refusal: Why not.
        detail: What stood against cheaper forms.
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

    @property
    def landing(self) -> int:
        """Where a punned jump leads; 0 for the other forms."""
        return self.writes[1].address if len(self.writes) > 1 else 0

    def patches(self) -> tuple[Patch, ...]:
        """All spans of program bytes that change."""
        return (self.head,) if self.tail is None else (self.head, self.tail)
