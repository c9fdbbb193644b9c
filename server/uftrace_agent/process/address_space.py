"""The map of a process's addresses: what is mapped, and what may be."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from uftrace_agent.errors import TargetGoneError
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.threads import proc_directory, status_field

PAGE = 4096
# Below is vm.mmap_min_addr's reach; above is the kernel's (see `address_limit`).
_LOWEST = 0x10000
# Room for brk to grow into, and for the main thread's stack (H81). Since Linux
# 6.11 the heap of a PIE program begins up to 1 GiB above it, right where most
# punned jumps lead: they may use the smaller rooms, in turn, if nothing else is
# free. A brk that hits them fails, and malloc goes on with mmap.
HEAP_ROOM = 1 << 30
SMALLER_HEAP_ROOMS = (256 << 20, 32 << 20)
_STACK_ROOM = 256 << 20
# The kernel keeps this much free below a growing stack (stack_guard_gap).
_STACK_GUARD = 1 << 20


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    flags: str
    offset: int
    device: str
    inode: int
    name: str

    @property
    def is_executable(self) -> bool:
        """Whether code runs there."""
        return self.flags[2] == "x"

    @property
    def is_shared(self) -> bool:
        """Whether writes reach the file."""
        return self.flags[3] == "s"

    @property
    def is_anonymous_code(self) -> bool:
        """Whether it is code of no file, as the engine maps its own, and a JIT may."""
        return self.flags == "r-xp" and not self.inode and not self.name


def code_ranges(mappings: Iterable[Mapping]) -> list[tuple[int, int]]:
    """[start, end) of all anonymous code, by rising address; neighbours in one."""
    ranges: list[tuple[int, int]] = []
    for mapping in mappings:
        if not mapping.is_anonymous_code:
            continue
        if ranges and ranges[-1][1] == mapping.start:
            ranges[-1] = ranges[-1][0], mapping.end
        else:
            ranges.append((mapping.start, mapping.end))
    return ranges


def read_mappings(pid: int) -> list[Mapping]:
    """The mappings by rising address.

    Raises:
        TargetGoneError: The process is gone, or has no memory any more.
    """
    try:
        text = Path(proc_directory(pid), "maps").read_bytes().decode(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetGoneError(f"process {pid} is gone") from error
    mappings = []
    # Not splitlines(): a file's name may hold other characters that end lines.
    for line in text.removesuffix("\n").split("\n") if text else ():
        fields = line.split(None, 5)
        start, _, end = fields[0].partition("-")
        mappings.append(
            Mapping(
                start=int(start, 16),
                end=int(end, 16),
                flags=fields[1],
                offset=int(fields[2], 16),
                device=fields[3],
                inode=int(fields[4]),
                name=fields[5] if len(fields) > 5 else "",
            )
        )
    if not mappings:
        raise TargetGoneError(f"process {pid} has ended")
    return mappings


def address_limit(mappings: Iterable[Mapping], bits: Sequence[int]) -> int:
    """The address behind a program's last one.

    Args:
        mappings: What is mapped: the stack, at the least, is in the upper half.
        bits: How many bits addresses may have, by rising number (`Machine`).
    """
    # What is beyond all of them ([vsyscall]) is the kernel's.
    limits = [1 << count for count in bits]
    used = max((one.end for one in mappings if one.end <= limits[-1]), default=limits[-1])
    return next(limit for limit in limits if used <= limit)


class FreeSpace:
    """Address ranges where the engine may map memory of its own.

    Keeps clear of what is mapped, of the heap's room to grow and of the stack's.
    Ranges that are handed out are taken at once.

    Attributes:
        limit: The address behind the program's last one.
    """

    def __init__(self, mappings: Iterable[Mapping], heap_room: int = HEAP_ROOM) -> None:
        mappings = list(mappings)
        self.limit = address_limit(mappings, native_machine().address_bits)
        taken: list[tuple[int, int]] = [(0, _LOWEST), (self.limit - PAGE, 1 << 64)]
        for mapping in mappings:
            start, end = mapping.start, mapping.end
            if mapping.name == "[heap]":
                end += heap_room
            elif mapping.name == "[stack]":
                start -= _STACK_ROOM
            elif "w" in mapping.flags and not mapping.name:
                # A thread's stack made with MAP_GROWSDOWN, at worst.
                start -= PAGE
            taken.append((start, end))
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(taken):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def is_free(self, start: int, end: int) -> bool:
        """Whether [start, end) is free and allowed."""
        index = bisect.bisect_left(self._starts, end) - 1
        return index < 0 or self._ends[index] <= start

    def take(self, start: int, end: int) -> None:
        """Mark [start, end) as used."""
        low = bisect.bisect_left(self._ends, start)
        high = bisect.bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def find(self, size: int, low: int, high: int, near: int) -> int | None:
        """The start of a free range of `size` bytes within [low, high), as near
        to `near` as can be, page aligned; None where there is none."""
        best: int | None = None
        for gap_start, gap_end in self._gaps(low, high):
            start = -(-gap_start // PAGE) * PAGE
            last = (gap_end - size) // PAGE * PAGE
            if last < start:
                continue
            candidate = min(max(near // PAGE * PAGE, start), last)
            if best is None or abs(candidate - near) < abs(best - near):
                best = candidate
        return best

    def _gaps(self, low: int, high: int) -> Iterable[tuple[int, int]]:
        index = max(bisect.bisect_right(self._starts, low) - 1, 0)
        for position in range(index, len(self._starts) - 1):
            start = max(self._ends[position], low)
            end = min(self._starts[position + 1], high)
            if start < end:
                yield start, end
            if self._starts[position + 1] >= high:
                return


@dataclass(frozen=True, slots=True)
class StackBounds:
    """Where a thread's own stack is: the stack pointer must be within it."""

    low: int
    high: int


def own_stack(mappings: Sequence[Mapping], sp: int, thread_pointer: int) -> StackBounds | None:
    """The stack that a thread was born with, if `sp` is on it.

    Below the stack pointer of any other stack (a fiber's, a goroutine's, an
    alternate one) may lie somebody else's data (H75). The kernel names the main
    thread's; those of C libraries are one block: guard, stack, and at its top
    what the thread pointer points to.

    Returns:
        None where `sp` is on another stack.
    """
    index = bisect.bisect_right(mappings, sp, key=lambda mapping: mapping.start) - 1
    if index < 0 or not mappings[index].start <= sp < mappings[index].end:
        return None
    mapping = mappings[index]
    if mapping.name == "[stack]":
        # It grows on demand, down to what is below it.
        floor = mappings[index - 1].end if index else 0
        return StackBounds(max(mapping.start - (1 << 20), floor + _STACK_GUARD), mapping.end)
    guard = mappings[index - 1] if index else None
    if guard is None or guard.end != mapping.start or guard.flags != "---p":
        return None
    if mapping.flags != "rw-p" or not sp < thread_pointer < mapping.end:
        return None
    return StackBounds(mapping.start, thread_pointer)


def main_stack_bottom(mappings: Sequence[Mapping], size: int) -> StackBounds | None:
    """The lowest `size` bytes of the main thread's stack, where it is so large
    that they are out of ordinary use."""
    for mapping in mappings:
        if mapping.name == "[stack]" and mapping.end - mapping.start >= 8 * size:
            return StackBounds(mapping.start, mapping.start + size)
    return None


def executable_files(pid: int) -> frozenset[str]:
    """The lines of /proc/PID/maps that are code of files: what is loaded, for
    comparing only; empty where the process is gone."""
    try:
        text = Path(proc_directory(pid), "maps").read_bytes().decode(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError, TargetGoneError):
        return frozenset()
    return frozenset(line for line in text.split("\n") if " r-xp " in line and "/" in line)


def has_locked_memory(pid: int) -> bool:
    """Whether a process has memory locked: then what it maps from now on may be as well,
    all of it there from the first moment (mlockall(2): MCL_FUTURE)."""
    return (status_field(pid, "VmLck") or "0 kB").split()[0] != "0"
