"""The calls of a whole stream, thread by thread, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from uftrace_remote.trace.model import PairedChunk
from uftrace_remote.trace.pairing import ThreadPairer
from uftrace_remote.trace.records import RECORD_DTYPE, columns, packed_records
from uftrace_remote.trace.strands import Packed, StrandSorter
from uftrace_remote.values import EventBatch

# Large enough that the vectorised pairing runs at full speed, small enough
# for its columns to stay in the cache.
_CHUNK_BYTES = RECORD_DTYPE.itemsize << 15
# Records of goroutines that are put in order at once.
_HELD = 1 << 18


class StreamPairer:
    """One `ThreadPairer` for each thread of a stream, and for each goroutine.

    Goroutines are numbered from `FIRST_STRAND` on.

    Attributes:
        threads: The pairers by tid, or by number.
    """

    def __init__(self) -> None:
        self.threads: dict[int, ThreadPairer] = {}
        self._strands = StrandSorter()

    def feed(self, tid: int, data: bytes) -> PairedChunk:
        """Takes the next packed records of one thread: the calls of the thread itself.
        What is of goroutines waits for `release`."""
        return self._pair(tid, self._strands.take(packed_records(data)))

    def release(self, watermark_ticks: int | None) -> list[tuple[int, PairedChunk]]:
        """The calls of goroutines, by number, as far as all threads' records from before
        `watermark_ticks` have been fed; None: there are no more."""
        if watermark_ticks == 0:
            return []
        released = self._strands.release(watermark_ticks)
        return [(number, self._pair(number, packed)) for number, packed in released]

    @property
    def held(self) -> int:
        """Records that wait for `release`."""
        return self._strands.held

    def strand_names(self) -> dict[int, str]:
        """What to call goroutines, by number."""
        return self._strands.names()

    @property
    def orphan_exits(self) -> int:
        """Exits without an entry, of all threads."""
        return sum(pairer.orphan_exits for pairer in self.threads.values())

    def _pair(self, number: int, packed: Packed) -> PairedChunk:
        pairer = self.threads.get(number)
        if pairer is None:
            pairer = self.threads[number] = ThreadPairer()
        return pairer.feed(columns(packed))


def paired_chunks(
    batches: Iterable[EventBatch], pairer: StreamPairer
) -> Iterator[tuple[int, PairedChunk]]:
    """Pairs all records of some batches, gathering small pieces of a thread first.

    Args:
        batches: Batches in order.
        pairer: Holds the open calls; ask it for them afterwards.

    Yields:
        Thread id (or a goroutine's number) and chunk; the chunks of one thread are in
        order.
    """
    waiting: dict[int, list[bytes]] = {}
    sizes: dict[int, int] = {}
    for batch in batches:
        for thread in batch.threads:
            waiting.setdefault(thread.tid, []).append(thread.records)
            sizes[thread.tid] = sizes.get(thread.tid, 0) + len(thread.records)
            if sizes[thread.tid] >= _CHUNK_BYTES:
                yield thread.tid, pairer.feed(thread.tid, b"".join(waiting.pop(thread.tid)))
                sizes[thread.tid] = 0
        if pairer.held >= _HELD and batch.watermark_ticks:
            # What is gathered may be earlier than what is held.
            for tid, pieces in waiting.items():
                yield tid, pairer.feed(tid, b"".join(pieces))
            waiting, sizes = {}, {}
            yield from pairer.release(batch.watermark_ticks)
    for tid, pieces in waiting.items():
        yield tid, pairer.feed(tid, b"".join(pieces))
    yield from pairer.release(None)
