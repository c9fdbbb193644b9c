"""What tests expect of this machine's architecture, where architectures differ.

The same test files run on all of them; what one does not have is not collected there.
"""

from __future__ import annotations

import platform
from typing import Final, TypeVar

from tests.targets.recipes import VARIANTS

_T = TypeVar("_T")
MACHINE: Final = platform.machine()


def here(*, x86_64: _T, aarch64: _T) -> _T:
    """The value for this machine."""
    return {"x86_64": x86_64, "aarch64": aarch64}[MACHINE]


def variants_here(*names: str) -> list[str]:
    """Those ways of building a program that this machine has."""
    return [name for name in names if name not in VARIANTS or MACHINE in VARIANTS[name].machines]
