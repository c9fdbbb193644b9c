"""The 16-byte record of the wire.

    u64 ticks
    u64 word    bit 0       0
                bits 1-3    kind (RecordKind)
                bits 4-27   function id
                bits 28-63  frame key: stack pointer at entry >> 3, low 36 bits

An entry and its exit have the same frame key on the same thread. Stacks grow
down: a callee's key is smaller than its caller's. Records of goroutines follow one
of kind `STRAND`, whose key names the goroutine (see `strands.py`); there it is the
same goroutine, and not the same thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.enums import RecordKind

RECORD_DTYPE = np.dtype([("ticks", "<u8"), ("word", "<u8")])

KEY_BITS = 36
FUNCTION_BITS = 24


@dataclass(frozen=True, slots=True)
class RecordColumns:
    """Decoded records as columns of equal length.

    Attributes:
        ticks: int64, rising.
        kind: int8, `RecordKind`.
        function: int32, function id.
        key: int64, frame key.
    """

    ticks: NDArray[np.int64]
    kind: NDArray[np.int8]
    function: NDArray[np.int32]
    key: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ticks)


def decode_records(data: bytes | memoryview) -> RecordColumns:
    """Decodes packed records of one thread and puts them in order of time.

    The order of writing is that of time, except where a signal handler
    interrupted a probe between its reading the clock and its storing the
    record; a stable sort puts that right.

    Args:
        data: Whole records; bytes behind the last whole one are ignored.
    """
    return columns(packed_records(data))


def packed_records(data: bytes | memoryview) -> NDArray[Any]:
    """Rows of RECORD_DTYPE; bytes behind the last whole record are ignored."""
    return np.frombuffer(data, RECORD_DTYPE, count=len(data) // RECORD_DTYPE.itemsize)


def columns(packed: NDArray[Any]) -> RecordColumns:
    """Rows of RECORD_DTYPE as columns, in order of time (see `decode_records`)."""
    ticks = packed["ticks"].astype(np.int64)
    if len(ticks) > 1 and bool((ticks[1:] < ticks[:-1]).any()):
        order = np.argsort(ticks, kind="stable")
        packed = packed[order]
        ticks = ticks[order]
    word = packed["word"]
    return RecordColumns(
        ticks=ticks,
        kind=((word >> np.uint64(1)) & np.uint64(7)).astype(np.int8),
        function=((word >> np.uint64(4)) & np.uint64((1 << FUNCTION_BITS) - 1)).astype(np.int32),
        key=(word >> np.uint64(28)).astype(np.int64),
    )


def encode_record(ticks: int, kind: RecordKind, function: int, key: int) -> bytes:
    """Packs one record, as the target writes it."""
    word = (
        kind << 1 | (function & (1 << FUNCTION_BITS) - 1) << 4 | (key & (1 << KEY_BITS) - 1) << 28
    )
    return ticks.to_bytes(8, "little") + word.to_bytes(8, "little")
