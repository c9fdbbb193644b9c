"""The calls of a whole stream, thread by thread, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from uftrace_remote.trace.model import PairedChunk
from uftrace_remote.trace.pairing import ThreadPairer
from uftrace_remote.trace.records import RECORD_DTYPE, decode_records
from uftrace_remote.values import EventBatch

# Large enough that the vectorised pairing runs at full speed, small enough
# for its columns to stay in the cache.
_CHUNK_BYTES = RECORD_DTYPE.itemsize << 15


class StreamPairer:
    """One `ThreadPairer` for each thread of a stream.

    Attributes:
        threads: The pairers by tid.
    """

    def __init__(self) -> None:
        self.threads: dict[int, ThreadPairer] = {}

    def feed(self, tid: int, data: bytes) -> PairedChunk:
        """Takes the next packed records of one thread."""
        pairer = self.threads.get(tid)
        if pairer is None:
            pairer = self.threads[tid] = ThreadPairer()
        return pairer.feed(decode_records(data))

    @property
    def orphan_exits(self) -> int:
        """Exits without an entry, of all threads."""
        return sum(pairer.orphan_exits for pairer in self.threads.values())


def paired_chunks(
    batches: Iterable[EventBatch], pairer: StreamPairer
) -> Iterator[tuple[int, PairedChunk]]:
    """Pairs all records of some batches, gathering small pieces of a thread first.

    Args:
        batches: Batches in order.
        pairer: Holds the open calls; ask it for them afterwards.

    Yields:
        Thread id and chunk; the chunks of one thread are in order.
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
    for tid, pieces in waiting.items():
        yield tid, pairer.feed(tid, b"".join(pieces))
