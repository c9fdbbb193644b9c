"""What becomes of an instruction that is moved elsewhere, on every architecture."""

from __future__ import annotations

from dataclasses import dataclass


class UnmovableError(Exception):
    """The instruction cannot run at another address; the message says why."""


class OutOfReachError(Exception):
    """What the instruction refers to is too far from the new place."""


@dataclass(frozen=True, slots=True)
class Moved:
    """An instruction rewritten for another address.

    Attributes:
        code: What to put there.
        falls_through: Whether control can reach the end of `code`.
    """

    code: bytes
    falls_through: bool
