"""The journal of sites in the target: the only truth after a crash of the agent.

A header page, then one 128-byte entry a site. An entry is written before the
byte that it describes; what a site is can be told from the entry and the live
bytes alone: they are the original, ours, or somebody else's.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

import numpy as np

from uftrace_agent.engine.model import Form
from uftrace_agent.engine.site import Patch, SitePlan
from uftrace_agent.errors import ExhaustedError
from uftrace_agent.process.address_space import Mapping
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.runtime.layout import (
    ANNEX_VERSION,
    MANIFEST_HEADER_BYTES,
    MANIFEST_MAGIC,
    SITE_BYTES,
)

CAPACITY: Final = 131072
MANIFEST_BYTES: Final = MANIFEST_HEADER_BYTES + CAPACITY * SITE_BYTES

# magic, version, pid, process start, boot id, entries in use, agent's pid and
# start, address of the return thunks, crc of all before.
_HEADER: Final = struct.Struct("<QIIQ36sIQQQ")
_HEADER_CRC: Final = struct.Struct("<I")
# phase, form, head length, tail length, function id, head address, tail address,
# head before and after, tail before and after, landing, crc of all before.
_ENTRY: Final = struct.Struct("<BBBBIQQ16s16s8s8sQ")
_ENTRY_CRC: Final = struct.Struct("<I")
_FORM_OFFSET: Final = 1


class Phase(IntEnum):
    """What may have happened to a site."""

    FREE = 0
    PATCHING = 1
    PATCHED = 2
    RESTORING = 3
    # The head is as it was; the tail, which nothing leads to, is not yet.
    PARKED = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One site of the journal."""

    phase: Phase
    form: Form
    function_id: int
    head: Patch
    tail: Patch | None
    landing: int = 0

    @staticmethod
    def of(plan: SitePlan, function_id: int, phase: Phase) -> Entry:
        """The entry of a planned site."""
        return Entry(phase, plan.form, function_id, plan.head, plan.tail, plan.landing)

    def pack(self) -> bytes:
        """128 bytes."""
        tail = self.tail or Patch(0, b"", b"")
        body = _ENTRY.pack(
            self.phase,
            self.form,
            len(self.head.expected),
            len(tail.expected),
            self.function_id,
            self.head.address,
            tail.address,
            self.head.expected,
            self.head.wanted,
            tail.expected,
            tail.wanted,
            self.landing,
        )
        return (body + _ENTRY_CRC.pack(zlib.crc32(body))).ljust(SITE_BYTES, b"\0")

    @staticmethod
    def unpack(data: bytes) -> Entry | None:
        """The entry, or None where there is none or it is torn (then its site was
        never touched)."""
        body = data[: _ENTRY.size]
        (crc,) = _ENTRY_CRC.unpack_from(data, _ENTRY.size)
        if crc != zlib.crc32(body) or not body[1]:
            return None
        fields = _ENTRY.unpack(body)
        phase, form, head_size, tail_size, function_id, at, tail_at = fields[:7]
        old, new, tail_old, tail_new, landing = fields[7:]
        tail = Patch(tail_at, tail_old[:tail_size], tail_new[:tail_size]) if tail_size else None
        head = Patch(at, old[:head_size], new[:head_size])
        try:
            return Entry(Phase(phase), Form(form), function_id, head, tail, landing)
        except ValueError:  # no agent wrote that: the process can write here too
            return None


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process a manifest is about, and which agent holds it."""

    pid: int
    start_time_ticks: int
    boot_id: str
    agent_pid: int
    agent_start_time_ticks: int
    thunks: int = 0


class Manifest:
    """The journal of one process."""

    def __init__(self, memory: ProcessMemory, address: int, identity: Identity) -> None:
        self._memory = memory
        self.address = address
        self.identity = identity
        self._in_use = 0

    def create(self) -> None:
        """Write the header of an empty journal."""
        self._write_header()

    def reserve(self, count: int) -> int:
        """Indices for `count` new sites; the first of them.

        Raises:
            ExhaustedError: The journal is full.
        """
        if self._in_use + count > CAPACITY:
            raise ExhaustedError(
                f"the journal of the process holds {CAPACITY} sites and is full",
                hint="detach and attach again",
            )
        first = self._in_use
        self._in_use += count
        self._write_header()
        return first

    def write(self, entries: Sequence[tuple[int, Entry]]) -> None:
        """Write entries at their indices, neighbours in one write."""
        run_start = 0
        run: list[bytes] = []
        for index, entry in entries:
            if run and index != run_start + len(run):
                self._memory.write(self._entry_address(run_start), b"".join(run))
                run = []
            if not run:
                run_start = index
            run.append(entry.pack())
        if run:
            self._memory.write(self._entry_address(run_start), b"".join(run))

    def _entry_address(self, index: int) -> int:
        return self.address + MANIFEST_HEADER_BYTES + index * SITE_BYTES

    def _write_header(self, *, held: bool = True) -> None:
        identity = self.identity
        body = _HEADER.pack(
            MANIFEST_MAGIC,
            ANNEX_VERSION,
            identity.pid,
            identity.start_time_ticks,
            identity.boot_id.encode(),
            self._in_use,
            identity.agent_pid if held else 0,
            identity.agent_start_time_ticks,
            identity.thunks,
        )
        self._memory.write(self.address, body + _HEADER_CRC.pack(zlib.crc32(body)))

    def release(self) -> None:
        """No agent holds the process; the journal is kept for the next session."""
        self._write_header(held=False)

    def hold(self) -> None:
        """This agent holds the process again."""
        self._write_header()

    def disown(self, entries: Sequence[Entry]) -> None:
        """Say that no site is patched and no agent holds the process any more.

        Args:
            entries: All that the journal holds.
        """
        self._in_use = len(entries)
        freed = [replace(entry, phase=Phase.FREE) for entry in entries]
        self.write(list(enumerate(freed)))
        self._write_header(held=False)


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A journal that an earlier agent (or this process's parent) left."""

    address: int
    identity: Identity
    entries: tuple[Entry, ...]


def find_manifests(memory: ProcessMemory, mappings: Sequence[Mapping]) -> list[FoundManifest]:
    """All journals in the process."""
    return [
        found
        for mapping in mappings
        if mapping.flags.startswith("rw-p") and not mapping.inode
        for found in _read_manifest(memory, mapping.start, mapping.end)
    ]


def _read_manifest(memory: ProcessMemory, address: int, end: int) -> Iterator[FoundManifest]:
    data = memory.read_some(address, _HEADER.size + _HEADER_CRC.size)
    if len(data) < _HEADER.size + _HEADER_CRC.size:
        return
    body = data[: _HEADER.size]
    magic, version, pid, start, boot, in_use, agent_pid, agent_start, thunks = _HEADER.unpack(body)
    if magic != MANIFEST_MAGIC or version != ANNEX_VERSION:
        return
    if _HEADER_CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(body):
        # Torn while it was rewritten: the count may be off, the entries are not.
        in_use = CAPACITY
    first = address + MANIFEST_HEADER_BYTES
    raw = memory.read_some(first, min(in_use * SITE_BYTES, max(end - first, 0)))
    whole = len(raw) // SITE_BYTES * SITE_BYTES
    rows = np.frombuffer(raw[:whole], "u1").reshape(-1, SITE_BYTES)
    # Most of a journal whose count is not known is empty: form 0.
    used = np.flatnonzero(rows[:, _FORM_OFFSET]).tolist()
    entries = (Entry.unpack(raw[row * SITE_BYTES : (row + 1) * SITE_BYTES]) for row in used)
    boot_id = boot.rstrip(b"\0").decode(errors="replace")
    yield FoundManifest(
        address=address,
        identity=Identity(pid, start, boot_id, agent_pid, agent_start, thunks),
        entries=tuple(entry for entry in entries if entry is not None),
    )
