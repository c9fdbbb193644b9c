# What both ways of pairing keep about a call that has not ended.
from __future__ import annotations

from dataclasses import dataclass

# 8 MiB in units of the frame key (8 bytes): further apart is another stack.
STACK_SPAN = 1 << 20


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call that has not ended; `children` are ticks of its finished callees."""

    key: int
    function: int
    start: int
    depth: int
    flags: int
    begin_seq: int
    parent: OpenCall | None = None
    children: int = 0
