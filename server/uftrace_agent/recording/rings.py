"""Reading the rings that a target writes."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from uftrace_agent.runtime.host_library import CDrain, CRun, library
from uftrace_agent.runtime.layout import RECORD_BYTES, RING_HEADER_BYTES, define

_RUNS: Final = 4096
_OWNER: Final = define("RING_OWNER") // 8
_LOST: Final = define("RING_LOST") // 8
_TAKEN: Final = define("RING_TAKEN") // 8
_HOLES: Final = define("RING_HOLES") // 8
_USED: Final = define("RING_USED")
_LOST_WORDS: Final = define("RING_LOST_WORDS") // 4
_LOST_WORD_COUNT: Final = 8
# Threads whose losses are told apart; those of later ones are counted together.
_MOST_THREADS: Final = 1024


@dataclass(frozen=True, slots=True)
class Drained:
    """Records taken out of the rings.

    Attributes:
        threads: Packed 16-byte records by thread id, in the order written.
        count: Records in all.
        more: The buffer was too small; call again.
        watermark_ticks: Without `more`: all records from before are taken.
    """

    threads: dict[int, list[bytes]]
    count: int
    more: bool
    watermark_ticks: int


class RingReader:
    """The agent's own mapping of a session's rings: it outlives the target.

    Args:
        fd: The shared file; not kept.
        data_offset: Where ring data begin.
        ring_bytes: Size of one ring.
        ring_count: Number of rings; ring 0 is the shared one.
        buffer_bytes: How much is taken at once.
    """

    def __init__(
        self, fd: int, data_offset: int, ring_bytes: int, ring_count: int, buffer_bytes: int
    ) -> None:
        total = data_offset + ring_count * ring_bytes
        self._map = mmap.mmap(fd, total, mmap.MAP_SHARED)
        anchor = ctypes.c_char.from_buffer(self._map)
        base = ctypes.addressof(anchor)
        del anchor  # the address stays; a live export would forbid closing
        self._headers: npt.NDArray[np.uint64] = np.frombuffer(
            self._map, "<u8", ring_count * RING_HEADER_BYTES // 8
        ).reshape(ring_count, RING_HEADER_BYTES // 8)
        self._buffer = bytearray(buffer_bytes)
        self._view = memoryview(self._buffer)
        self._runs = (CRun * _RUNS)()
        # A ring that is in use goes on with the thread that it belongs to.
        owners = self._headers[:, _OWNER].tolist()
        self._tids = (ctypes.c_int32 * ring_count)(*(owner & 0x7FFF_FFFF for owner in owners))
        self._hole_since = (ctypes.c_uint64 * ring_count)()
        self._base = base
        # Counting goes on in the array that it began with.
        self._counting = threading.Lock()
        self._calls: npt.NDArray[np.uint64] = np.zeros(64, np.uint64)
        self._counted = (ctypes.c_uint64 * ring_count)()
        self._drain = CDrain(
            headers=base,
            data=base + data_offset,
            ring_bytes=ring_bytes,
            ring_count=ring_count,
            run_capacity=_RUNS,
            out=ctypes.addressof((ctypes.c_char * buffer_bytes).from_buffer(self._buffer)),
            out_bytes=buffer_bytes,
            runs=self._runs,
            tids=self._tids,
            hole_since=self._hole_since,
            calls=self._calls.ctypes.data,
            call_capacity=len(self._calls),
            counted=self._counted,
        )

        # An earlier session's losses are not this one's.
        self._lost_before: npt.NDArray[np.uint64] = self._losses()
        self._inherited = 0
        # A ring has several owners, one after the other: what each lost is its own.
        self._attributed = self._lost_before.copy()
        self._lost_by_thread: dict[int, int] = {}
        self._attributing = threading.Lock()

    def drain(self, *, target_is_gone: bool = False) -> Drained:
        """Take what is there, up to the buffer's size.

        Args:
            target_is_gone: Records that were begun and never finished are
                passed over.
        """
        drain = self._drain
        drain.skip_holes = int(target_is_gone)
        with self._counting:
            library().uh_drain_rings(ctypes.byref(drain))
        threads: dict[int, list[bytes]] = {}
        view = self._view
        for run in self._runs[: drain.run_count]:
            start = run.offset
            data = bytes(view[start : start + run.records * RECORD_BYTES])
            threads.setdefault(run.tid, []).append(data)
        return Drained(threads, drain.used // RECORD_BYTES, bool(drain.more), int(drain.last_ticks))

    def discard(self) -> int:
        """Throw away what is there; how many records that were."""
        count = 0
        while True:
            drained = self.drain()
            count += drained.count
            if not drained.more:
                return count

    def count(self) -> None:
        """Bring `calls` up to date without taking anything."""
        with self._counting:
            library().uh_count_rings(ctypes.byref(self._drain))

    def make_room(self, record_id: int) -> None:
        """From now on, calls of all ids up to this one are counted each for itself."""
        with self._counting:
            missing = record_id + 1 - len(self._calls)
            if missing > 0:
                self._calls = np.pad(self._calls, (0, missing + len(self._calls)))
                self._drain.calls = self._calls.ctypes.data
                self._drain.call_capacity = len(self._calls)

    @property
    def calls(self) -> npt.NDArray[np.uint64]:
        """Entries found in the rings so far, by record id; ids without room count as 0."""
        return self._calls

    @property
    def dropped(self) -> npt.NDArray[np.uint64]:
        """Records that found no room, by ring, since the rings were made."""
        dropped: npt.NDArray[np.uint64] = self._headers[:, _LOST]
        return dropped

    @property
    def lost_words(self) -> npt.NDArray[np.uint32]:
        """The low words of eight of the latest records that found no room, by ring; 0
        where there were none."""
        words: npt.NDArray[np.uint32] = self._headers.view("<u4")[
            :, _LOST_WORDS : _LOST_WORDS + _LOST_WORD_COUNT
        ]
        return words

    @property
    def taken_ever(self) -> int:
        """Records taken out of these rings since they were made, by whichever agent."""
        return int(self._headers[:, _TAKEN].sum())

    @property
    def lost_ever(self) -> int:
        """Records lost at these rings since they were made."""
        return int(self._losses().sum())

    def count_losses_since(self, lost_before: int) -> None:
        """Count what was lost since `lost_ever` was so much in `lost_total` too."""
        self._inherited = self.lost_ever - lost_before

    def lost(self) -> tuple[int, dict[int, int]]:
        """Records lost since this was made: in the shared ring, and by thread where rings
        were full; by 0 for threads that came when there were too many. No count falls."""
        shared, by_thread, _ = self.lost_with_total()
        return shared, by_thread

    def lost_with_total(self) -> tuple[int, dict[int, int], int]:
        """The same, and `lost_total` at that very moment: who goes on from one with the
        other counts nothing twice."""
        with self._attributing:
            self._attribute()
            lost = self._attributed - self._lost_before
            return int(lost[0]), dict(self._lost_by_thread), self._inherited + int(lost.sum())

    def _attribute(self) -> None:
        losses = self._losses()
        new = losses - self._attributed
        self._attributed = losses
        owners = self._headers[:, _OWNER]
        known = self._lost_by_thread
        for index in np.flatnonzero(new[1:]).tolist():
            tid = int(owners[index + 1]) & 0xFFFF_FFFF
            if tid not in known and len(known) >= _MOST_THREADS:
                tid = 0
            known[tid] = known.get(tid, 0) + int(new[index + 1])

    def lost_total(self) -> int:
        """Records lost in the session, in all."""
        return self._inherited + int(self._lost_now().sum())

    def _lost_now(self) -> npt.NDArray[np.uint64]:
        return self._losses() - self._lost_before

    def _losses(self) -> npt.NDArray[np.uint64]:
        losses: npt.NDArray[np.uint64] = self._headers[:, _LOST] + self._headers[:, _HOLES]
        return losses

    def owners(self) -> set[int]:
        """The threads that have a ring of their own."""
        return {tid for _, tid in self._in_use()}

    def _in_use(self) -> list[tuple[int, int]]:
        owners = self._headers[:, _OWNER].tolist()
        return [
            (index, owner & 0xFFFF_FFFF)
            for index, owner in enumerate(owners)
            if index and owner >> 32 == _USED
        ]

    def retire(self, ended: Collection[int]) -> None:
        """Offer the rings of these threads to new threads.

        What is not drained by now would be taken for records of the next owner: so the
        threads must have ended before the last drain began, and it must have left
        nothing. A ring in which records wait behind one that was never finished is kept.
        """
        with self._attributing:
            self._attribute()
        for index, tid in self._in_use():
            if tid in ended and not self._hole_since[index]:
                library().uh_retire_ring(self._base, index, tid)

    def close(self) -> None:
        """Unmap."""
        self._headers = np.zeros((0, 0), "u8")
        self._view.release()
        self._map.close()
