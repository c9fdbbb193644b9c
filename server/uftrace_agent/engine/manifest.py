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
from typing import Final

import numpy as np

from uftrace_agent.engine.journal_entry import FORM_OFFSET, Entry, Phase
from uftrace_agent.engine.model import Form
from uftrace_agent.engine.site import Patch
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
# start, address of the return thunks; session: id, owner, generation, since when,
# records taken and lost before it; crc of all before.
_HEADER: Final = struct.Struct("<QIIQ36sIQQQ16s64sIQQQ")
_HEADER_CRC: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """The session that holds a process, for the agent that comes after a crash.

    Attributes:
        session_id: Its name; empty where none holds the process.
        owner: Who opened it.
        generation: How often another agent has gone on with it.
        since_unix_ns: When it began.
        taken_before: Records that were taken out of the rings before it.
        lost_before: Records that were lost before it.
    """

    session_id: str = ""
    owner: str = ""
    generation: int = 0
    since_unix_ns: int = 0
    taken_before: int = 0
    lost_before: int = 0

    def pack(self) -> tuple[bytes, bytes, int, int, int, int]:
        """The last fields of the header."""
        # A cut through a character leaves a torn one, which reading replaces.
        owner = self.owner.encode()[:64]
        numbers = (self.generation, self.since_unix_ns, self.taken_before, self.lost_before)
        return self.session_id.encode(), owner, *numbers

    @staticmethod
    def unpack(fields: Sequence[bytes | int]) -> SessionRecord:
        """The reverse."""
        session_id, owner, *numbers = fields
        assert isinstance(session_id, bytes) and isinstance(owner, bytes)
        return SessionRecord(
            session_id.rstrip(b"\0").decode(errors="ignore"),
            owner.rstrip(b"\0").decode(errors="ignore"),
            *(int(number) for number in numbers),
        )


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
        self.session = SessionRecord()
        self._in_use = 0

    @classmethod
    def of_found(cls, memory: ProcessMemory, found: FoundManifest, identity: Identity) -> Manifest:
        """A journal that another agent wrote, held by `identity`'s agent from now on."""
        manifest = cls(memory, found.address, identity)
        manifest._in_use = max((row + 1 for row in found.rows), default=0)
        manifest.session = found.session
        if any(entry.may_be_changed for entry in found.entries):
            manifest.hold()
        else:
            manifest._forget_sites(found)
        return manifest

    @classmethod
    def without_memory(
        cls, memory: ProcessMemory, found: FoundManifest, rows: Sequence[int]
    ) -> None:
        """Forget entries of another agent's journal: memory that was never mapped."""
        cls(memory, found.address, found.identity).forget_memory(rows)

    def begin_session(self, session: SessionRecord) -> None:
        """Say which session holds the process from now on."""
        self.session = session
        self._write_header()

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
            *self.session.pack(),
        )
        self._memory.write(self.address, body + _HEADER_CRC.pack(zlib.crc32(body)))

    def release(self) -> None:
        """No agent holds the process; the journal is kept for the next session."""
        self.session = SessionRecord()
        self._write_header(held=False)

    def hold(self) -> None:
        """This agent holds the process again."""
        self._write_header()

    def free(self, rows: Sequence[int], entries: Sequence[Entry]) -> None:
        """Say of entries that their sites are as they were."""
        self.write(
            [
                (row, replace(entry, phase=Phase.FREE))
                for row, entry in zip(rows, entries, strict=True)
                if entry.may_be_changed
            ]
        )

    def forget_memory(self, rows: Sequence[int]) -> None:
        """Say of entries of code memory that it was never mapped."""
        none = Entry(Phase.FREE, Form.PUN, 0, Patch(0, b"", b""), None)
        self.write([(row, none) for row in rows])

    def _forget_sites(self, found: FoundManifest) -> None:
        """Keep only where there is code memory: nothing is patched."""
        memory = sorted({entry.memory() for entry in found.entries} - {(0, 1)})
        self._in_use = 0
        self._write_header()
        first = self.reserve(len(memory))
        entries = [Entry.of_memory(start, size) for start, size in memory]
        self.write(list(enumerate(entries, first)))

    def disown(self, found: FoundManifest) -> None:
        """Say that no site is patched and no agent holds the process any more."""
        self._in_use = max((row + 1 for row in found.rows), default=0)
        self.free(found.rows, found.entries)
        self.release()


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A journal that an earlier agent (or this process's parent) left."""

    address: int
    identity: Identity
    entries: tuple[Entry, ...]
    rows: tuple[int, ...] = ()
    session: SessionRecord = SessionRecord()

    def without(self, rows: Sequence[int]) -> FoundManifest:
        """The same, less some entries."""
        gone = set(rows)
        kept = [pair for pair in zip(self.rows, self.entries, strict=True) if pair[0] not in gone]
        return replace(
            self, rows=tuple(row for row, _ in kept), entries=tuple(entry for _, entry in kept)
        )


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
    fields = _HEADER.unpack(body)
    magic, version, pid, start, boot, in_use, agent_pid, agent_start, thunks = fields[:9]
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
    used = np.flatnonzero(rows[:, FORM_OFFSET]).tolist()
    entries = [(row, Entry.unpack(raw[row * SITE_BYTES : (row + 1) * SITE_BYTES])) for row in used]
    whole_entries = [(row, entry) for row, entry in entries if entry is not None]
    boot_id = boot.rstrip(b"\0").decode(errors="replace")
    yield FoundManifest(
        address=address,
        identity=Identity(pid, start, boot_id, agent_pid, agent_start, thunks),
        entries=tuple(entry for _, entry in whole_entries),
        rows=tuple(row for row, _ in whole_entries),
        session=SessionRecord.unpack(fields[9:]),
    )
