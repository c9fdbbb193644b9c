"""Where the C library of a process keeps its threads' ids: beside their thread pointers.

Probes read that word to tell whose record they make, without asking the kernel.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from typing import Final

from uftrace_agent.process.address_space import PAGE
from uftrace_agent.process.machine import TidSearch, native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.thread_numbers import own_number
from uftrace_agent.process.threads import calm_threads
from uftrace_agent.runtime.host_library import CLook, library

NOWHERE: Final = -1

_THREADS_LOOKED_AT: Final = 3
_DEADLINE_NS: Final = 1_000_000_000
_WORD: Final = 4


def find_tid_offset(memory: ProcessMemory) -> int:
    """Where the id is in every thread of a process that is looked at.

    Returns:
        What probes are told: `NOWHERE`, if each record is to cost a system call.
    """
    search = native_machine().tid
    found: set[int] | None = None
    for tid in calm_threads(memory.pid, _THREADS_LOOKED_AT):
        look = CLook(pid=memory.pid, tid=tid, deadline_nanos=_DEADLINE_NS)
        if library().uh_look(ctypes.byref(look)):
            continue
        places = tid_places(memory, search, look.thread_pointer, own_number(memory.pid, tid))
        found = places if found is None else found & places
    return told(search, found or ())


def tid_places(memory: ProcessMemory, search: TidSearch, pointer: int, tid: int) -> set[int]:
    """Where words that equal a thread's id are, counted from its thread pointer."""
    if not pointer:
        return set()
    first = pointer + search.start
    data = memory.read_some(first, search.end - search.start)
    if not data and search.start < 0:
        # The block may begin where its mapping does.
        first = max((pointer - 1) // PAGE * PAGE, first)
        data = memory.read_some(first, pointer + search.end - first)
    if search.points_to_itself and data[:8] != pointer.to_bytes(8, "little"):
        return set()
    words = struct.unpack(f"<{len(data) // _WORD}I", data[: len(data) // _WORD * _WORD])
    return {first - pointer + _WORD * row for row, word in enumerate(words) if word == tid}


def told(search: TidSearch, places: Iterable[int]) -> int:
    """What probes are told of places that are counted from the thread pointer."""
    found = set(places)
    if not found:
        return NOWHERE
    known = [place for place in search.known if place in found]
    # Near the thread pointer is the C library's own; farther away may be anybody's.
    return search.bias + (known or sorted(found, key=abs))[0]
