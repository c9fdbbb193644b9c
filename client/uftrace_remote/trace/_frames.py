"""The file `events.bin` of a trace directory.

    8 bytes   magic and version
    frames    4 bytes tag | u32 CRC-32 | u64 length of the body | body

    META      JSON object: what a batch says beside its records; the CRC is
              that of the body
    RECS      u64 sequence, u64 watermark ticks, u32 threads; for each thread
              i32 tid, u32 bytes; then the records of each thread. The CRC is
              that of the part before the records.

Frames are written whole by one system call, so that a recorder that is killed
leaves at most one torn frame, at the end. What is before it is readable.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from uftrace_remote.enums import EndReason, LossStage
from uftrace_remote.values import (
    ClockAnchor,
    EventBatch,
    Loss,
    MappedModule,
    ThreadRecords,
    TracedFunction,
)

MAGIC = b"UFTREV\x00\x01"
META = b"META"
RECORDS = b"RECS"

_HEADER = struct.Struct("<4sIQ")
_INDEX = struct.Struct("<QQI")
_THREAD = struct.Struct("<iI")

# A length beyond this is damage, not a frame.
_LARGEST_BODY = 1 << 30


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame and the offset behind it."""

    tag: bytes
    body: memoryview
    end: int


def encode_meta(batch: EventBatch, names: dict[int, str]) -> list[bytes]:
    """The frame with what a batch says beside its records, in pieces.

    Args:
        batch: The batch.
        names: Names of threads that are new or changed.
    """
    body = json.dumps(
        {
            "sequence": batch.sequence,
            "records_total": batch.records_total,
            "functions": [_fields(each) for each in batch.functions],
            "anchors": [_fields(each) for each in batch.anchors],
            "modules": [_fields(each) for each in batch.modules],
            "losses": [_fields(each) for each in batch.losses],
            "threads": names,
            "end": int(batch.end),
            "end_detail": batch.end_detail,
        },
        separators=(",", ":"),
    ).encode()
    return [_HEADER.pack(META, zlib.crc32(body), len(body)), body]


def encode_records(batch: EventBatch) -> list[bytes]:
    """The frame with the records of a batch, in pieces that need no copying."""
    index = _INDEX.pack(batch.sequence, batch.watermark_ticks, len(batch.threads)) + b"".join(
        _THREAD.pack(thread.tid, len(thread.records)) for thread in batch.threads
    )
    payload = [thread.records for thread in batch.threads]
    length = len(index) + sum(map(len, payload))
    return [_HEADER.pack(RECORDS, zlib.crc32(index), length), index, *payload]


def read_frames(file: BinaryIO) -> Iterator[Frame]:
    """The whole frames behind the magic, up to a torn or damaged one."""
    offset = file.seek(len(MAGIC))
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        tag, crc, length = _HEADER.unpack(header)
        if tag not in (META, RECORDS) or length > _LARGEST_BODY:
            return
        body = memoryview(file.read(length))
        if len(body) < length:
            return
        if tag == META and zlib.crc32(body) != crc:
            return
        if tag == RECORDS and (length < _INDEX.size or zlib.crc32(_index(body)) != crc):
            return
        offset += _HEADER.size + length
        yield Frame(tag, body, offset)


def decode_meta(body: memoryview) -> tuple[EventBatch, dict[int, str]]:
    """A batch without records, and thread names."""
    found: dict[str, Any] = json.loads(bytes(body))
    batch = EventBatch(
        sequence=found["sequence"],
        records_total=found["records_total"],
        functions=tuple(TracedFunction(*fields) for fields in found["functions"]),
        anchors=tuple(ClockAnchor(*fields) for fields in found["anchors"]),
        modules=tuple(MappedModule(*fields) for fields in found["modules"]),
        losses=tuple(
            Loss(LossStage(stage), records, tid) for stage, records, tid in found["losses"]
        ),
        end=EndReason(found["end"]),
        end_detail=found["end_detail"],
    )
    return batch, {int(tid): name for tid, name in found["threads"].items()}


def decode_records(body: memoryview) -> EventBatch:
    """A batch of records alone; thread names are in META frames."""
    sequence, watermark, count = _INDEX.unpack_from(body)
    offset = _INDEX.size + count * _THREAD.size
    threads = []
    for tid, length in _THREAD.iter_unpack(body[_INDEX.size : offset]):
        threads.append(ThreadRecords(tid, bytes(body[offset : offset + length])))
        offset += length
    return EventBatch(sequence, tuple(threads), watermark)


def _index(body: memoryview) -> memoryview:
    count: int = _INDEX.unpack_from(body)[2]
    return body[: _INDEX.size + count * _THREAD.size]


def _fields(value: TracedFunction | ClockAnchor | MappedModule | Loss) -> list[Any]:
    return [getattr(value, name) for name in value.__slots__]
