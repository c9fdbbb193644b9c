"""Roles, and who a caller is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """What somebody may do; each role includes those below it."""

    # Look: processes, functions, sessions, events of sessions.
    VIEW = 1
    # Change processes, as far as the policy lets.
    TRACE = 2
    # Beyond the policy's maxima.
    ADMIN = 3

    @property
    def word(self) -> str:
        """The role as people write it."""
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> Role:
        """Read `view`, `trace` or `admin`.

        Raises:
            ValueError: It is none of these.
        """
        for role in cls:
            if text == role.word:
                return role
        raise ValueError(f"{text!r} is no role (view, trace, admin)")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls.

    Attributes:
        name: `token:ROLE`, `cert:NAME` or `anyone`.
        role: What they may do.
    """

    name: str
    role: Role


# Of an agent that was started with --insecure: nobody is asked who they are.
ANYONE = Identity("anyone", Role.TRACE)
