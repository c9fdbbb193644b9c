"""Code of a program that injected system calls go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from uftrace_agent.errors import EngineFaultError, TargetGoneError
from uftrace_agent.process.address_space import Mapping, read_mappings
from uftrace_agent.process.machine import CallCode
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.threads import ThreadState

_VDSO: Final = "[vdso]"
# So many of one mapping are enough, where each may be one that a thread waits in.
_MOST_GADGETS: Final = 16


@dataclass(frozen=True, slots=True)
class Gadgets:
    """Live addresses of the code.

    Attributes:
        calls: Each makes a system call and returns; the best first.
        restorer: Calls rt_sigreturn; 0 where nothing does.
        pop_number: Takes its number from the stack and returns, or 0.
        behind: See `CallCode`.
    """

    calls: tuple[int, ...]
    restorer: int
    pop_number: int
    behind: int

    def unused(self, threads: Iterable[ThreadState]) -> int:
        """The first that none of these threads waits in; 0 where each has somebody."""
        if not self.behind:
            return self.calls[0]
        waiting = {thread.pc for thread in threads}
        return next((at for at in self.calls if at + self.behind not in waiting), 0)


def find_gadgets(memory: ProcessMemory, code: CallCode) -> Gadgets:
    """Look through the code of a process.

    Raises:
        TargetGoneError: It ended.
        EngineFaultError: It has no such code (NO_SYSCALL_GADGET).
    """
    calls: list[int] = []
    restorer = pop_number = 0
    is_readable = False
    for mapping in _places(read_mappings(memory.pid), code):
        data = memory.read_some(mapping.start, mapping.end - mapping.start)
        is_readable = is_readable or bool(data)
        if code.behind or not calls:
            found = _find_all(data, code.gadget, code.alignment)
            most = _MOST_GADGETS if code.behind else 1
            calls += [mapping.start + at for _, at in zip(range(most), found, strict=False)]
        if not pop_number and code.pop_number:
            pop_number = _first(mapping, data, code.pop_number, code.alignment)
        for bytes_of_one in code.restorers:
            if not restorer:
                restorer = _first(mapping, data, bytes_of_one, code.alignment)
    if calls and (restorer or pop_number):
        return Gadgets(tuple(calls), restorer, pop_number, code.behind)
    if not is_readable:
        raise TargetGoneError(f"process {memory.pid} has ended or executed another program")
    raise EngineFaultError(
        f"process {memory.pid} has no code that could make a system call for the agent",
        reason="NO_SYSCALL_GADGET",
        hint="programs without a C library cannot be attached yet",
    )


def _places(mappings: Iterable[Mapping], code: CallCode) -> list[Mapping]:
    executable = [one for one in mappings if one.is_executable]
    files = [one for one in executable if one.inode]
    if not code.in_vdso:
        return files
    return [one for one in executable if one.name == _VDSO] + files


def _find_all(data: bytes, wanted: bytes, alignment: int) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        if not at % alignment:
            yield at
        at = data.find(wanted, at + 1)


def _first(mapping: Mapping, data: bytes, wanted: bytes, alignment: int) -> int:
    at = next(_find_all(data, wanted, alignment), None)
    return 0 if at is None else mapping.start + at
