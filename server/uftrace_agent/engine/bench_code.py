"""The code with which the cost of a probe is measured, of one instruction set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BenchStub:
    """A stub, and where a traced function's first instruction leads.

    Attributes:
        code: What lies there, `BenchCode.stub_room` bytes at most.
        entrance: The address that the function jumps to.
    """

    code: bytes
    entrance: int


class BenchCode(Protocol):
    """Makes the code that is measured; all of it is in reach of the rest.

    Attributes:
        stub_room: The most bytes that `stub` gives.
    """

    stub_room: int

    def function(self, at: int, entrance: int | None) -> bytes:
        """A function that returns at once, behind an instruction that does nothing, or
        that leads to `entrance`."""
        ...

    def stub(self, at: int, function: int, probe: int, word: int, *, paired: bool) -> BenchStub:
        """The stub of a traced function.

        Args:
            at: Where it will lie.
            function: The function (see `function`).
            probe: The entry probe.
            word: The id word (`layout.id_word`).
            paired: Whether that is the paired one.
        """
        ...

    def loop(self, at: int, function: int) -> bytes:
        """A C function that calls another as often as its argument says, once at the least."""
        ...

    def thread_pointer(self) -> bytes:
        """A C function that returns the thread pointer."""
        ...
