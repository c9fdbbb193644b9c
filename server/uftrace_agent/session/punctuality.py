"""Being there at a moment that other hosts have been told too, however busy this one is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# A thread that must come first and cannot have the interpreter's lock makes those wait
# that could: of hundreds in one agent, each made the others late.
MOST_AT_ONCE: Final = 4
_places = threading.BoundedSemaphore(MOST_AT_ONCE)


@contextmanager
def before_others() -> Iterator[None]:
    """Let the calling thread wait for no processor that others use, where the kernel allows
    that and few others ask for it (sched(7): SCHED_FIFO). For milliseconds alone."""
    if not _places.acquire(blocking=False):
        yield
        return
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError:
            yield
            return
        try:
            yield
        finally:
            os.sched_setscheduler(0, *before)
    finally:
        _places.release()
