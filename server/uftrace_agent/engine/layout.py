"""Where the engine's code lies in a target: code regions, stubs, landings.

Planning allocates here without touching the target; what must be mapped before
the plan can be carried out is kept in `pending`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from uftrace_agent.engine.model import Refusal, RefusedError
from uftrace_agent.process.address_space import PAGE, SMALLER_HEAP_ROOMS, FreeSpace, Mapping

# A branch reaches 2 GiB; keep away from the edge, so that code at the far end
# of a region is reached as well.
_REGION_BYTES = 1 << 20
# Landing pages nearer than this share a mapping: the free pages between them
# cost address space only, and the process has a limited number of mappings
# (vm.max_map_count, H81).
_MERGE_PAGES = 16
# Where code goes whose address must end in a given byte: that much at a time.
_YARD = PAGE
# No landing is longer.
LANDING_BYTES = 16


class Span(Protocol):
    """Bytes of the program."""

    @property
    def address(self) -> int: ...

    @property
    def end(self) -> int: ...


@dataclass(slots=True)
class CodeRegion:
    """A mapping with a copy of the runtime at its start and stubs behind it."""

    base: int
    size: int
    cursor: int
    free_stubs: list[int] = field(default_factory=list)
    yards: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.base + self.size

    @property
    def stubs_end(self) -> int:
        """Where its room for stubs ends."""
        return self.yards[-1] if self.yards else self.end


@dataclass(frozen=True, slots=True)
class PendingMap:
    """Memory to be mapped for code; a region gets the runtime, a landing run nothing."""

    start: int
    size: int
    region: CodeRegion | None


class CodeLayout:
    """Allocates stubs and landings of one process.

    Args:
        mappings: What is mapped in the process.
        runtime_bytes: Size of the runtime's copy at the start of each region.
        stub_bytes: Size of one stub.
        reach: How far a jump goes, in bytes.
    """

    def __init__(
        self, mappings: Sequence[Mapping], runtime_bytes: int, stub_bytes: int, reach: int
    ) -> None:
        self._look(mappings)
        self._runtime_bytes = -(-runtime_bytes // stub_bytes) * stub_bytes
        self._stub_bytes = stub_bytes
        self._reach = reach
        self.regions: list[CodeRegion] = []
        self._pages: list[int] = []
        self._used: dict[int, list[tuple[int, int]]] = {}
        self._pending_regions: list[CodeRegion] = []
        self._pending_pages: set[int] = set()
        self._written: set[int] = set()
        self._depended: set[int] = set()
        self._in_yards: set[int] = set()
        self._next_in_yard: dict[tuple[int, int], int] = {}

    def refresh(self, mappings: Sequence[Mapping]) -> None:
        """Take a new look at the address space; what is pending stays taken."""
        self._look(mappings)
        for region in self._pending_regions:
            self._take(region.base, region.end)
        for page in self._pending_pages:
            self._take(page, page + PAGE)

    # The most careful view first; landings may use the others too.
    def _look(self, mappings: Sequence[Mapping]) -> None:
        self._free = FreeSpace(mappings)
        rooms = (FreeSpace(mappings, room) for room in SMALLER_HEAP_ROOMS)
        self._views = (self._free, *rooms)

    def _take(self, start: int, end: int) -> None:
        for view in self._views:
            view.take(start, end)

    # -- stubs ------------------------------------------------------------

    def region_near(self, low: int, high: int, stubs: int = 1) -> CodeRegion:
        """A region with room from which code in [low, high) is in reach.

        Raises:
            RefusedError: No address is free there.
        """
        for region in self.regions:
            if self._reaches(region.base, region.end, low, high) and (
                region.free_stubs or region.cursor + self._stub_bytes <= region.stubs_end
            ):
                return region
        return self._new_region(low, high, stubs)

    def _new_region(self, low: int, high: int, stubs: int) -> CodeRegion:
        size = max(_REGION_BYTES, self._runtime_bytes + stubs * self._stub_bytes)
        size = -(-size // PAGE) * PAGE
        base = self._free.find(
            size + 2 * PAGE,
            max(high - self._reach, 0),
            low + self._reach,
            near=max(low - size - (64 << 20), 0),
        )
        if base is None:
            raise RefusedError(
                Refusal.NO_TRAMPOLINE_SPACE,
                f"no {size >> 10} KiB of free address space within {self._reach >> 20} MiB of "
                "the code",
            )
        base += PAGE  # a gap on both sides keeps it a mapping of its own
        region = CodeRegion(base, size, base + self._runtime_bytes)
        self._take(base, base + size)
        self.regions.append(region)
        self._pending_regions.append(region)
        return region

    def take_stub(self, region: CodeRegion) -> int:
        """The address of a free stub of the region."""
        if region.free_stubs:
            return region.free_stubs.pop()
        at = region.cursor
        region.cursor += self._stub_bytes
        return at

    def region_of(self, address: int) -> CodeRegion:
        """The region that an address of a stub lies in."""
        return next(one for one in self.regions if one.base <= address < one.end)

    def give_back_stub(self, region: CodeRegion, stub: int) -> None:
        """Return a stub that was never reachable."""
        region.free_stubs.append(stub)

    def give_back_stub_at(self, stub: int) -> None:
        """The same; one that an earlier agent left in memory of its own stays unused."""
        for region in self.regions:
            if region.base <= stub < region.end:
                region.free_stubs.append(stub)

    def give_back_in_yard(self, start: int, size: int) -> None:
        """Return bytes that `place_by_low_byte` gave."""
        self._in_yards.difference_update(range(start, start + size))
        self._next_in_yard.clear()

    def place_by_low_byte(self, low: int, high: int, low_byte: int, size: int) -> int:
        """`size` bytes in reach of code in [low, high), at an address that ends in a
        given byte: where a jump leads whose displacement must have such a byte.

        Raises:
            RefusedError: No address is free there.
        """
        for region in self.regions:
            if not self._reaches(region.base, region.end, low, high):
                continue
            key = (region.base, low_byte)
            for at in range(self._next_in_yard.get(key, 0), _YARD // 256 * len(region.yards)):
                start = region.yards[at // (_YARD // 256)] + at % (_YARD // 256) * 256 + low_byte
                if self._take_in_yard(region, start, size):
                    self._next_in_yard[key] = at + 1
                    return start
        # Stubs come first in a region, yards last: both grow until they meet.
        for region in self.regions:
            if self._reaches(region.base, region.end, low, high) and self._add_yard(region):
                return self.place_by_low_byte(low, high, low_byte, size)
        self._add_yard(self._new_region(low, high, 1))
        return self.place_by_low_byte(low, high, low_byte, size)

    def _take_in_yard(self, region: CodeRegion, start: int, size: int) -> bool:
        addresses = range(start, start + size)
        if start // _YARD != (start + size - 1) // _YARD:
            return False
        if any(address in self._in_yards for address in addresses):
            return False
        self._in_yards.update(addresses)
        return True

    def _add_yard(self, region: CodeRegion) -> bool:
        start = (region.yards[-1] if region.yards else region.end) - _YARD
        if start < region.cursor or start < region.base + self._runtime_bytes:
            return False
        region.yards.append(start)
        return True

    def _reaches(self, start: int, end: int, low: int, high: int) -> bool:
        return max(end, high) - min(start, low) < self._reach

    # -- landings ---------------------------------------------------------

    def place_landing(self, low: int, span: int, size: int) -> int | None:
        """`size` bytes that begin in [low, low + span); None where nothing is free."""
        if span == 1:
            return low if self._claim_landing(low, size) else None
        first = bisect.bisect_left(self._pages, low // PAGE * PAGE)
        for page in self._pages[first : first + 8]:
            if page >= low + span:
                break
            start = self._hole(page, max(low, page), min(low + span, page + PAGE - size), size)
            if start is not None and self._claim_landing(start, size):
                return start
        # From `low` on, or from the page behind it, if a landing there would
        # reach into a page that is taken.
        behind = -(-low // PAGE) * PAGE
        for free in self._views:
            for first_page in (low // PAGE * PAGE, behind):
                base = free.find(PAGE, first_page, low + span + PAGE, near=first_page)
                if base is not None:
                    start = max(base, low)
                    if start < low + span and self._claim_landing(start, size):
                        return start
        return None

    def _hole(self, page: int, low: int, high: int, size: int) -> int | None:
        start = low
        for used_start, used_end in self._used.get(page, ()):
            if start + size <= used_start:
                break
            start = max(start, used_end)
        return start if start <= high else None

    def _claim_landing(self, start: int, size: int) -> bool:
        pages = range(start // PAGE * PAGE, start + size, PAGE)
        for page in pages:
            if page in self._used:
                if any(s < start + size and start < e for s, e in self._used[page]):
                    return False
            elif not self._views[-1].is_free(page, page + PAGE):
                return False
        for page in pages:
            if page not in self._used:
                self._used[page] = []
                bisect.insort(self._pages, page)
                self._pending_pages.add(page)
                self._take(page, page + PAGE)
            bisect.insort(self._used[page], (start, start + size))
        return True

    def give_back_landing(self, start: int, size: int) -> None:
        """Return a landing that was never reachable."""
        for page in range(start // PAGE * PAGE, start + size, PAGE):
            if (start, start + size) in self._used.get(page, ()):
                self._used[page].remove((start, start + size))

    # -- bytes of the program that plans rely on --------------------------

    def claim(self, changed: Iterable[int], unchanged: Iterable[int]) -> bool:
        """Reserve program bytes: some will change, some must not.

        Returns:
            False, with nothing reserved, where another plan stands against it.
        """
        new, old = set(changed), set(unchanged)
        if new & self._written or new & self._depended or old & self._written:
            return False
        self._written |= new
        self._depended |= old
        return True

    def can_claim(self, changed: Iterable[int], unchanged: Iterable[int]) -> bool:
        """Whether `claim` would succeed."""
        new, old = set(changed), set(unchanged)
        return not (new & self._written or new & self._depended or old & self._written)

    def release(self, spans: Iterable[Span]) -> None:
        """Forget what was claimed in spans of program bytes that are there no more."""
        for span in spans:
            addresses = set(range(span.address, span.end))
            self._written -= addresses
            self._depended -= addresses

    # -- what has to be mapped --------------------------------------------

    def pending(self) -> list[PendingMap]:
        """Mappings that the plans made so far need, landing pages in runs."""
        maps = [PendingMap(region.base, region.size, region) for region in self._pending_regions]
        run: list[int] = []
        for page in sorted(self._pending_pages):
            if run and page - run[-1] <= _MERGE_PAGES * PAGE and self._all_free(run[-1], page):
                run.append(page)
                continue
            if run:
                maps.append(PendingMap(run[0], run[-1] + PAGE - run[0], None))
            run = [page]
        if run:
            maps.append(PendingMap(run[0], run[-1] + PAGE - run[0], None))
        return maps

    def _all_free(self, last: int, page: int) -> bool:
        return last + PAGE >= page or self._free.is_free(last + PAGE, page)

    def adopt_page(self, page: int) -> None:
        """Use a landing page that an earlier agent mapped."""
        if page not in self._used:
            self._used[page] = []
            bisect.insort(self._pages, page)

    def adopt_landing(self, start: int, size: int) -> None:
        """Leave an earlier agent's landing alone, which is in use."""
        self.adopt_page(start // PAGE * PAGE)
        for page in range(start // PAGE * PAGE, start + size, PAGE):
            if page in self._used:
                bisect.insort(self._used[page], (start, start + size))

    def mapped(self, pending: PendingMap) -> None:
        """`pending` is there now."""
        if pending.region is not None:
            self._pending_regions.remove(pending.region)
            return
        self._take(pending.start, pending.start + pending.size)
        for page in range(pending.start, pending.start + pending.size, PAGE):
            self._pending_pages.discard(page)
            if page not in self._used:
                self._used[page] = []
                bisect.insort(self._pages, page)
