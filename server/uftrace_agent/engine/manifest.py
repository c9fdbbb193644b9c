"""The journal of sites in the target: the only truth after a crash of the agent.

Two header pages, then one 128-byte entry a site. An entry is written before the
byte that it describes; what a site is can be told from the entry and the live
bytes alone: they are the original, ours, or somebody else's.
"""

from __future__ import annotations

import bisect
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from uftrace_agent.engine.journal_entry import (
    FORM_OFFSET,
    LEASES_OFFSET,
    PHASE_OFFSET,
    Entry,
    Phase,
)
from uftrace_agent.engine.lease_record import (
    LEASE_TABLE_BYTES,
    LeaseRecord,
    pack_leases,
    unpack_leases,
)
from uftrace_agent.errors import ExhaustedError
from uftrace_agent.process.address_space import Mapping, code_ranges
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
# In the second page of the header.
_LEASE_TABLE_OFFSET: Final = 4096
# Of agents that took a session over: sequence numbers have room for so many.
_MOST_GENERATIONS: Final = 1 << 20
_SESSION_ID: Final = re.compile(rb"[0-9a-f]{12}")

# Behind them in the header page: what the session wants its next agent to know.
_NOTE_OFFSET: Final = 1024
NOTE_BYTES: Final = _LEASE_TABLE_OFFSET - _NOTE_OFFSET


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
        """The reverse; no session where no agent wrote that."""
        session_id, owner, *numbers = fields
        assert isinstance(session_id, bytes) and isinstance(owner, bytes)
        name = session_id.rstrip(b"\0")
        if not _SESSION_ID.fullmatch(name) or int(numbers[0]) > _MOST_GENERATIONS:
            return SessionRecord()
        return SessionRecord(
            name.decode(),
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
        # Places that serve no site any more, by how many there are in a row.
        self._free_rows: dict[int, list[int]] = {}

    @classmethod
    def of_found(cls, memory: ProcessMemory, found: FoundManifest, identity: Identity) -> Manifest:
        """A journal that another agent wrote, held by `identity`'s agent from now on."""
        manifest = cls(memory, found.address, identity)
        manifest.session = found.session
        if found.row_count < CAPACITY // 2 or any(e.may_be_changed for e in found.entries):
            manifest._use_rows(found)
            manifest.hold()
        else:
            manifest._forget_sites(found)
        return manifest

    def begin_session(self, session: SessionRecord) -> None:
        """Say which session holds the process from now on."""
        self.session = session
        self._write_header()

    def keep_note(self, note: bytes) -> None:
        """Keep what the session wants its next agent to know: NOTE_BYTES at most, that
        tell by themselves whether they are whole."""
        self._memory.write(self.address + _NOTE_OFFSET, note)

    def read_note(self) -> bytes:
        """What was kept last, and what is behind it."""
        return self._memory.read_some(self.address + _NOTE_OFFSET, NOTE_BYTES)

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

    def keeps(self, found: FoundManifest) -> bool:
        """Whether the sites of a journal that was taken over are still in it."""
        return self._in_use == found.row_count

    def reserve_each(self, counts: Sequence[int]) -> list[int]:
        """The first index of each of several functions with so many sites.

        Raises:
            ExhaustedError: The journal is full.
        """
        free = self._free_rows
        rows = [free[count].pop() if free.get(count) else -1 for count in counts]
        new = [count for count, row in zip(counts, rows, strict=True) if row < 0]
        next_row = self.reserve(sum(new)) if new else 0
        for index, count in enumerate(counts):
            if rows[index] < 0:
                rows[index] = next_row
                next_row += count
        return rows

    def give_back(self, first: int, count: int) -> None:
        """Places of sites that are as they were, and are none any more. Cleared before
        their stubs serve others: the next agent would lead functions into those."""
        self.clear(range(first, first + count))
        self._free_rows.setdefault(count, []).append(first)

    def write(self, entries: Sequence[tuple[int, Entry]]) -> None:
        """Write entries at their indices, neighbours in one write."""
        self._write_rows((index, entry.pack()) for index, entry in entries)

    def mark(self, indices: Sequence[int], phase: Phase) -> None:
        """Say of entries that are there what has become of them.

        Args:
            indices: Theirs, by rising numbers.
            phase: The same for all.
        """
        self._stamp(indices, PHASE_OFFSET, bytes([phase]))

    def set_leases(self, indices: Sequence[int], leases: int) -> None:
        """Say of entries that are there which leases hold their tracepoints.

        Args:
            indices: Theirs, by rising numbers.
            leases: A bit each, the same for all entries; 0: none is needed.
        """
        self._stamp(indices, LEASES_OFFSET, leases.to_bytes(4, "little"))

    def write_leases(self, leases: Sequence[tuple[int, LeaseRecord]]) -> None:
        """Write the leases of the session, with their places."""
        self._memory.write(self.address + _LEASE_TABLE_OFFSET, pack_leases(leases))

    # The same bytes in many entries, each of which changes in one store (or not at all).
    def _stamp(self, indices: Sequence[int], offset: int, data: bytes) -> None:
        places = np.asarray(indices, np.int64)
        stamp = np.frombuffer(data, "u1")
        for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
            if not run.size:
                continue
            address = self._entry_address(int(run[0]))
            raw = bytearray(self._memory.read(address, run.size * SITE_BYTES))
            rows = np.frombuffer(raw, "u1").reshape(-1, SITE_BYTES)
            rows[:, offset : offset + stamp.size] = stamp
            self._memory.write(address, bytes(raw))

    def clear(self, indices: Iterable[int]) -> None:
        """Have no entries there: what they were about is not so."""
        self._write_rows((index, bytes(SITE_BYTES)) for index in indices)

    def _write_rows(self, rows: Iterable[tuple[int, bytes]]) -> None:
        run_start = 0
        run: list[bytes] = []
        for index, row in rows:
            if run and index != run_start + len(run):
                self._memory.write(self._entry_address(run_start), b"".join(run))
                run = []
            if not run:
                run_start = index
            run.append(row)
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
        places = zip(rows, entries, strict=True)
        self.mark(sorted(row for row, entry in places if entry.may_be_changed), Phase.FREE)

    # Take the rows of another agent's journal as they are, less those that say nothing
    # true: code memory that it died before mapping would be taken for code once
    # anything else is mapped there.
    def _use_rows(self, found: FoundManifest) -> None:
        self._in_use = found.row_count
        self.clear(sorted(set(range(found.row_count)).difference(found.rows)))

    # Keep only where there is code memory, since nothing is patched. A copy of each such
    # entry is there at any moment.
    def _forget_sites(self, found: FoundManifest) -> None:
        memory = sorted({entry.memory() for entry in found.entries} - {(0, 1)})
        self.write([(row, Entry.of_memory(*place)) for row, place in enumerate(memory)])
        self.clear(range(len(memory), found.row_count))
        self._in_use = len(memory)
        self._write_header()

    def disown(self, found: FoundManifest) -> None:
        """Say that no site is patched and no agent holds the process any more."""
        self._use_rows(found)
        self.free(found.rows, found.entries)
        self.release()


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A journal that an earlier agent (or this process's parent) left.

    Attributes:
        address: Where it is.
        identity: Whose it is.
        entries: What it says that can be so.
        rows: The place of each entry.
        row_count: How many places may hold anything.
        leases: Those of the session, with their places.
        session: The session that held the process; none if the header is torn.
    """

    address: int
    identity: Identity
    entries: tuple[Entry, ...]
    rows: tuple[int, ...] = ()
    row_count: int = 0
    leases: tuple[tuple[int, LeaseRecord], ...] = ()
    session: SessionRecord = SessionRecord()

    def code_ranges(self, mappings: Iterable[Mapping], *places: int) -> list[tuple[int, int]]:
        """[start, end) of the annex's code: what the journal names, and the whole mappings
        around that, by rising address.

        Args:
            mappings: The process's.
            places: What is known besides.
        """
        known = {*places, self.identity.thunks}
        known |= {entry.facts.stub for entry in self.entries}
        known |= {entry.landing for entry in self.entries}
        rising = sorted(known)
        ranges: list[tuple[int, int]] = []
        for mapping in mappings:
            first = bisect.bisect_left(rising, mapping.start)
            is_known = first < len(rising) and rising[first] < mapping.end
            if is_known and mapping.is_anonymous_code:
                ranges.append((mapping.start, mapping.end))
        return ranges


def find_manifests(memory: ProcessMemory, mappings: Sequence[Mapping]) -> list[FoundManifest]:
    """All journals in the process.

    Args:
        memory: The process's.
        mappings: All that is mapped in it: code memory that is in a journal and not
            there was never mapped, and does not count.
    """
    code = code_ranges(mappings)
    return [
        found
        for mapping in mappings
        if mapping.flags.startswith("rw-p") and not mapping.inode
        for found in _read_manifest(memory, mapping.start, mapping.end, code)
    ]


def _read_manifest(
    memory: ProcessMemory, address: int, end: int, code: Sequence[tuple[int, int]]
) -> Iterator[FoundManifest]:
    data = memory.read_some(address, _HEADER.size + _HEADER_CRC.size)
    if len(data) < _HEADER.size + _HEADER_CRC.size:
        return
    body = data[: _HEADER.size]
    fields = _HEADER.unpack(body)
    magic, version, pid, start, boot, in_use, agent_pid, agent_start, thunks = fields[:9]
    if magic != MANIFEST_MAGIC or version != ANNEX_VERSION:
        return
    session = SessionRecord.unpack(fields[9:])
    if _HEADER_CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(body):
        # Torn while it was rewritten: the count may be off, the entries are not.
        in_use = CAPACITY
        session = SessionRecord()
    first = address + MANIFEST_HEADER_BYTES
    raw = memory.read_some(first, min(in_use * SITE_BYTES, max(end - first, 0)))
    whole = len(raw) // SITE_BYTES * SITE_BYTES
    rows = np.frombuffer(raw[:whole], "u1").reshape(-1, SITE_BYTES)
    # Most of a journal whose count is not known is empty: form 0.
    used = np.flatnonzero(rows[:, FORM_OFFSET]).tolist()
    entries = [(row, Entry.unpack(raw[row * SITE_BYTES : (row + 1) * SITE_BYTES])) for row in used]
    whole_entries = [
        (row, entry)
        for row, entry in entries
        if entry is not None and (entry.phase is not Phase.MAPPED or _is_inside(entry, code))
    ]
    boot_id = boot.rstrip(b"\0").decode(errors="replace")
    yield FoundManifest(
        address=address,
        identity=Identity(pid, start, boot_id, agent_pid, agent_start, thunks),
        entries=tuple(entry for _, entry in whole_entries),
        rows=tuple(row for row, _ in whole_entries),
        row_count=used[-1] + 1 if used else 0,
        leases=tuple(
            unpack_leases(memory.read_some(address + _LEASE_TABLE_OFFSET, LEASE_TABLE_BYTES))
        ),
        session=session,
    )


def _is_inside(entry: Entry, code: Sequence[tuple[int, int]]) -> bool:
    start, size = entry.memory()
    index = bisect.bisect_right(code, (start, 1 << 64)) - 1
    return index >= 0 and start + size <= code[index][1]
