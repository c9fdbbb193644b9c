"""The leases of a session as the journal keeps them, for the agent that comes after a crash."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MOST_LEASES: Final = 32

# Name, end. No check sum: a lease whose end is torn ends too early or is shown, and can
# be released; without any, what it holds would stay.
_ROW: Final = struct.Struct("<48sQ")
LEASE_TABLE_BYTES: Final = MOST_LEASES * _ROW.size


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease.

    Attributes:
        name: What its holder calls it.
        ends_ns: CLOCK_BOOTTIME in nanoseconds.
    """

    name: str
    ends_ns: int


def pack_leases(leases: Iterable[tuple[int, LeaseRecord]]) -> bytes:
    """`LEASE_TABLE_BYTES` bytes; each lease is at its place."""
    table = bytearray(LEASE_TABLE_BYTES)
    for place, lease in leases:
        _ROW.pack_into(table, place * _ROW.size, lease.name.encode()[:48], lease.ends_ns)
    return bytes(table)


def unpack_leases(data: bytes) -> list[tuple[int, LeaseRecord]]:
    """The reverse, of what there is."""
    leases = []
    for place in range(min(len(data) // _ROW.size, MOST_LEASES)):
        name, ends_ns = _ROW.unpack_from(data, place * _ROW.size)
        if ends_ns:
            text = name.rstrip(b"\0").decode(errors="replace")
            leases.append((place, LeaseRecord(text, ends_ns)))
    return leases
