"""Where the parts of an annex lie in the process."""

from __future__ import annotations

from dataclasses import dataclass

from uftrace_agent.engine.manifest import MANIFEST_BYTES
from uftrace_agent.process.address_space import PAGE
from uftrace_agent.runtime.layout import (
    CALL_TABLE_BYTES,
    DIRECTORY_BYTES,
    RING_HEADER_BYTES,
    SLOT_TABLE_BYTES,
    TRAP_TABLE_BYTES,
)


@dataclass(frozen=True, slots=True)
class RingOptions:
    """Bytes of one thread's ring (a power of two), and how many rings. Ring 0 is shared."""

    ring_bytes: int
    ring_count: int

    @property
    def data_offset(self) -> int:
        """Where ring data begin in the shared file, after all headers."""
        return -(-self.ring_count * RING_HEADER_BYTES // PAGE) * PAGE

    @property
    def total_bytes(self) -> int:
        """Size of the shared file."""
        return self.data_offset + self.ring_count * self.ring_bytes


@dataclass(frozen=True, slots=True)
class DataPlaces:
    """Live addresses of the annex's data."""

    manifest: int
    control: int
    directory: int
    slots: int
    traps: int
    calls: int
    end: int

    @staticmethod
    def at(base: int) -> DataPlaces:
        """All places, from that of the manifest."""
        control = base + MANIFEST_BYTES
        directory = control + PAGE
        slots = directory + DIRECTORY_BYTES
        traps = slots + SLOT_TABLE_BYTES
        calls = traps + TRAP_TABLE_BYTES
        return DataPlaces(base, control, directory, slots, traps, calls, calls + CALL_TABLE_BYTES)
