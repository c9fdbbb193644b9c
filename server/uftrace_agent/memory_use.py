"""What the agent's own memory may grow to."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

# mallopt(3): M_ARENA_MAX.
_ARENA_MAX: Final = -8
_ARENAS: Final = 2


def limit_arenas() -> None:
    """Have the C library share two heaps among all threads.

    Sessions and stops have threads of their own, which come and go. glibc gives each a heap
    of its own, up to eight a processor, none of which shrinks: the agent grew by 1 KiB
    with each session for thousands of them. A C library without `mallopt` has no such heaps.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, _ARENAS)
