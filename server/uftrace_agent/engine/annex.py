"""What the engine leaves in a target: journal, control word, tables, rings, code.

Data first, in one mapping with a gap on both sides:

    manifest | control (MADV_WIPEONFORK) | directory of threads | return slots | traps | calls

A forked child reads the control word as 0 and records nothing; it has copies
of the directory and the slots, so that a probe or a return that was under way
ends well in it. The rings stay mapped in it for the same reason.
"""

from __future__ import annotations

import bisect
import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from uftrace_agent.engine.annex_places import DataPlaces, RingOptions
from uftrace_agent.engine.architecture import Architecture
from uftrace_agent.engine.journal_entry import Entry
from uftrace_agent.engine.layout import CodeLayout, PendingMap
from uftrace_agent.engine.manifest import FoundManifest, Identity, Manifest
from uftrace_agent.engine.needed_calls import PRIVATE_MAPPING, RING_FILE, RING_MAPPING
from uftrace_agent.engine.site import CodeWrite
from uftrace_agent.errors import (
    AgentError,
    BusyTargetError,
    ExhaustedError,
    ForbiddenError,
    UnsupportedTargetError,
)
from uftrace_agent.process.address_space import (
    PAGE,
    FreeSpace,
    code_ranges,
    has_locked_memory,
    read_mappings,
)
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.remote_calls import BatchPlace, RemoteCall, RemoteCaller
from uftrace_agent.process.system_calls import (
    MADV_DONTDUMP,
    MADV_WIPEONFORK,
    PR_GET_TSC,
    PR_TSC_SIGSEGV,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    SystemCallNumbers,
)
from uftrace_agent.process.threads import proc_directory
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import (
    PARAM_BYTES,
    THUNK_SPAN,
    define,
)

_SEALS: Final = 0x0002 | 0x0004 | 0x0001  # F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_THUNK_ALIGNMENT: Final = 4096
_TRIES: Final = 3
_CALLS_AT_ONCE: Final = 512
# Stubs and landings of all tracepoints together. Landings lie where jumps happen to lead,
# one to a page at worst.
_CODE_LIMIT_BYTES: Final = 512 << 20


class Annex:
    """The engine's memory in one target."""

    def __init__(
        self,
        memory: ProcessMemory,
        caller: RemoteCaller,
        calls: SystemCallNumbers,
        architecture: Architecture,
        rings: RingOptions,
    ) -> None:
        self.memory = memory
        self.caller = caller
        self.calls = calls
        self._architecture = architecture
        self._blob = load_blob(architecture.name)
        self.ring_options = rings
        self.ring_fd = -1
        self._manifest: Manifest | None = None
        self.tid_offset = -1
        self.thunks = 0
        self.data = DataPlaces.at(0)
        self._ring_base = 0
        self._is_locked = has_locked_memory(memory.pid)
        # What is mapped in the target so far, while `create` is not done.
        self._held: list[tuple[int, int]] = []
        self.mapped_bytes = 0
        self.code_ranges: list[tuple[int, int]] = []
        self.layout = self._new_layout()

    def _new_layout(self) -> CodeLayout:
        mappings = read_mappings(self.memory.pid)
        return CodeLayout(
            mappings, len(self._blob.code), self._architecture.stub_bytes, self._architecture.reach
        )

    def create(self, identity: Identity, tid_offset: int) -> Manifest:
        """Map and fill everything; nothing of the program changes.

        Raises:
            BusyTargetError: The address space changed under us at every try.
            ExhaustedError: The kernel gives the process no more memory.
            ForbiddenError: It does not let the agent write code (MEMORY_WRITE_DENIED).
            UnsupportedTargetError: A probe would kill the process (TSC_FORBIDDEN).
        """
        try:
            return self._create(identity, tid_offset)
        except BaseException:
            # A refusal leaves the process as it was, if there still is one.
            self.close()
            with suppress(AgentError):
                self._undo()
            raise

    def _create(self, identity: Identity, tid_offset: int) -> Manifest:
        self.tid_offset = tid_offset
        for _ in range(_TRIES):
            if self._map_data():
                break
        else:
            raise BusyTargetError(
                f"process {self.memory.pid} maps memory faster than the agent can plan",
                hint="try again",
            )
        identity = replace(identity, thunks=self.thunks)
        if self.memory.read(self._answer_place, 4) == PR_TSC_SIGSEGV.to_bytes(4, "little"):
            raise UnsupportedTargetError(
                f"process {self.memory.pid} has forbidden itself to read the time stamp counter",
                reason="TSC_FORBIDDEN",
                hint="prctl(PR_SET_TSC, PR_TSC_SIGSEGV): a probe would kill it (H89)",
            )
        self.memory.write(self.thunks, self._thunk_array())
        # Last: what has a journal is whole, and can be taken over (H86).
        manifest = Manifest(self.memory, self.data.manifest, identity)
        manifest.create()
        self._manifest = manifest
        return manifest

    def _thunk_array(self) -> bytes:
        return self._architecture.thunk_array(
            self.thunks, self.runtime_address("uf_exit"), self.data.slots
        )

    def take_over(
        self, found: FoundManifest, identity: Identity, rings: RingOptions | None = None
    ) -> Manifest | None:
        """Use the annex that another agent left in the process.

        Args:
            found: Its journal.
            identity: Who holds it from now on.
            rings: Such rings it must have; None: whatever it has.

        Returns:
            The journal, held from now on; None where the annex is not whole, is of
            another version, or its rings cannot be opened: nothing was changed then.
        """
        thunks = found.identity.thunks
        home = thunks - self._home_offset()
        if home != _after_data(found.address):
            return None  # no agent laid it out so: the process can write there too
        size = len(self._blob.code)
        code = self.memory.read_some(home, size)
        if len(code) != size:
            return None

        def parameter(name: str) -> int:
            offset = define(f"PARAM_{name}")
            return int.from_bytes(code[offset : offset + 8], "little")

        before = self.data, self.thunks, self._ring_base, self.tid_offset, self.ring_options
        self.data, self.thunks = DataPlaces.at(found.address), thunks
        self._ring_base = parameter("RING_HEADERS")
        tid_offset = parameter("TID_OFFSET")
        self.tid_offset = tid_offset - (tid_offset >> 63 << 64)
        self.ring_options = RingOptions(parameter("RING_BYTES"), parameter("RING_COUNT"))
        array = self._thunk_array()
        is_whole = self._code() == code and self.memory.read_some(thunks, len(array)) == array
        if is_whole and rings in (None, self.ring_options):
            self.ring_fd = self._find_ring_file()
        if self.ring_fd < 0:
            self.data, self.thunks, self._ring_base, self.tid_offset, self.ring_options = before
            return None
        self.caller.use_batches(BatchPlace(self.runtime_address("uf_calls"), self.data.calls))
        self._find_code(home, found)
        self.adopt_memory(entry.memory() for entry in found.entries)
        self._manifest = Manifest.of_found(self.memory, found, replace(identity, thunks=thunks))
        return self._manifest

    # The process has closed its descriptor; the mapping leads to the file too, for those
    # who may look (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE).
    def _find_ring_file(self) -> int:
        start, end = self._ring_base, self._ring_base + self.ring_options.total_bytes
        link = f"{proc_directory(self.memory.pid)}/map_files/{start:x}-{end:x}"
        try:
            fd = os.open(link, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return -1
        is_whole = os.fstat(fd).st_size == self.ring_options.total_bytes
        # Such a file as nobody can cut under the agent's feet (H88).
        if not is_whole or _seals(fd) & _SEALS != _SEALS:
            os.close(fd)
            return -1
        return fd

    def _find_code(self, home: int, found: FoundManifest) -> None:
        self.code_ranges = found.code_ranges(read_mappings(self.memory.pid), home)
        self.mapped_bytes += sum(end - start for start, end in self.code_ranges)
        self.mapped_bytes += DataPlaces.at(0).end + self.ring_options.total_bytes

    # Where a remote call may leave an answer: behind the control word.
    @property
    def _answer_place(self) -> int:
        return self.data.control + 64

    def runtime_address(self, name: str) -> int:
        """Where an entry point of the runtime lies in the copy beside the thunks."""
        return self.thunks - self._home_offset() + self._blob.symbols[name]

    def _home_offset(self) -> int:
        return -(-len(self._blob.code) // _THUNK_ALIGNMENT) * _THUNK_ALIGNMENT

    def _map_data(self) -> bool:
        free = FreeSpace(read_mappings(self.memory.pid))
        data_size = DataPlaces.at(0).end
        code_size = self._home_offset() + THUNK_SPAN
        ring_size = self.ring_options.total_bytes
        # Anywhere: nothing here has to be near the program's code. Low in the mapping
        # area, away from where the kernel puts new mappings. The thunks refer to their
        # data, which therefore lie just below them.
        places = []
        for size in (data_size + PAGE + code_size, ring_size):
            near = free.limit // 4 * 3
            place = free.find(size + 2 * PAGE, 1 << 32, free.limit, near=near)
            if place is None:
                raise ExhaustedError("the process has no free address space left")
            free.take(place, place + size + 2 * PAGE)
            places.append(place + PAGE)
        data, rings = places
        code = _after_data(data)
        self.data = DataPlaces.at(data)
        self.thunks = code + self._home_offset()
        results = self.caller.call(
            [
                self._mmap(data, data_size, self._first_protection),
                self._mmap(code, code_size, PROT_READ | PROT_EXEC),
            ]
        )
        sizes = (data_size, code_size)
        self._held = [
            (start, size) for start, size in zip(results, sizes, strict=True) if start > 0
        ]
        if min(results) < 0:
            self._undo()
            self._raise_if_final(results)
            return False
        self._ring_base = rings
        self._unlock(data, data_size)
        self._fill_home()
        if not self._map_rings(rings, ring_size):
            return False
        self.code_ranges.append((code, code + code_size))
        self.mapped_bytes += data_size + code_size + ring_size
        return True

    # The runtime's first copy; from now on a thread makes many calls in one go.
    def _fill_home(self) -> None:
        try:
            self._fill_code(self.thunks - self._home_offset())
        except OSError as error:
            raise ForbiddenError(
                "the kernel does not let the agent write code through /proc/PID/mem",
                reason="MEMORY_WRITE_DENIED",
                hint="it was booted with proc_mem.force_override=ptrace or never (H79)",
            ) from error
        self.caller.use_batches(BatchPlace(self.runtime_address("uf_calls"), self.data.calls))

    def _map_rings(self, rings: int, size: int) -> bool:
        calls = self.calls
        name = self._answer_place
        self.memory.write(name, b"uftrace-rings\0")
        results = self.caller.call(
            [
                RemoteCall(calls.madvise, (self.data.control, PAGE, MADV_WIPEONFORK)),
                RemoteCall(calls.memfd_create, (name, RING_FILE)),
            ]
        )
        fd = results[1]
        if min(results) < 0:
            self._undo(fd)
            self._raise_if_final(results)
            return False
        try:
            self.ring_fd = self._open_ring_file(fd)
        finally:
            results = self.caller.call(
                [
                    RemoteCall(
                        calls.mmap, (rings, size, self._first_protection, RING_MAPPING, fd, 0)
                    ),
                    RemoteCall(calls.close, (fd,)),
                    RemoteCall(calls.madvise, (rings, size, MADV_DONTDUMP)),
                    RemoteCall(calls.prctl, (PR_GET_TSC, self._answer_place)),
                ]
            )
            if results[0] > 0:
                self._held.append((rings, size))
        if results[0] < 0:
            self.close()
            self._undo()
            self._raise_if_final(results[:1])
            return False
        self._unlock(rings, size)
        return True

    # Where all memory is to be locked, the kernel makes all of a new mapping's pages at
    # once: hundreds of MiB, while a thread of the program waits. Those that may not be
    # accessed have none (mm/gup.c, populate_vma_page_range).
    @property
    def _first_protection(self) -> int:
        return PROT_NONE if self._is_locked else PROT_READ | PROT_WRITE

    # Only of what is known to be ours: a call of its own, after the mapping.
    def _unlock(self, start: int, size: int) -> None:
        if not self._is_locked:
            return
        results = self.caller.call(
            [
                RemoteCall(self.calls.munlock, (start, size)),
                RemoteCall(self.calls.mprotect, (start, size, PROT_READ | PROT_WRITE)),
            ]
        )
        if min(results) < 0:
            self._raise_if_final(results)

    def _mmap(self, start: int, size: int, protection: int) -> RemoteCall:
        return RemoteCall(self.calls.mmap, (start, size, protection, PRIVATE_MAPPING, -1, 0))

    def _undo(self, fd: int = -1) -> None:
        undo = [RemoteCall(self.calls.munmap, held) for held in self._held]
        if fd >= 0:
            undo.append(RemoteCall(self.calls.close, (fd,)))
        self._held = []
        if undo:
            # By single calls: the routine for many may be what is unmapped.
            self.caller.use_batches(None)
            self.caller.call(undo)

    def _raise_if_final(self, results: Sequence[int]) -> None:
        worst = min(results)
        if worst == -17:  # EEXIST: somebody was faster; look again
            return
        raise ExhaustedError(
            f"the kernel refused memory in process {self.memory.pid}: {os.strerror(-worst)}",
            reason="TARGET_MEMORY_REFUSED",
            hint="a memory limit (RLIMIT_AS, RLIMIT_MEMLOCK, vm.max_map_count), a seccomp filter "
            "or SELinux stands against it",
        )

    def _open_ring_file(self, fd: int) -> int:
        ring_fd = os.open(f"{proc_directory(self.memory.pid)}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(ring_fd, self.ring_options.total_bytes)
        # Neither side can cut the file under the other's feet (H88).
        fcntl.fcntl(ring_fd, _F_ADD_SEALS, _SEALS)
        return ring_fd

    # -- code --------------------------------------------------------------

    def adopt_memory(self, memory: Iterable[tuple[int, int]]) -> None:
        """Use the landing pages that an earlier agent left: the addresses that punned
        jumps can reach are few. (begin, size) of what it mapped, or meant to."""
        code = code_ranges(read_mappings(self.memory.pid))
        pages = {
            page
            for start, size in memory
            for page in range(start // PAGE * PAGE, start + size, PAGE)
        }
        for page in sorted(pages):
            index = bisect.bisect_right(code, (page, 1 << 64)) - 1
            if index >= 0 and page < code[index][1]:
                self.layout.adopt_page(page)

    def map_pending(self) -> list[PendingMap]:
        """Map what the layout's plans need; what could not be mapped is returned."""
        pending, failed = self._within_limit(self.layout.pending())
        # Before it is mapped: an agent that comes after a crash finds what is free.
        landings = [one for one in pending if one.region is None]
        rows = self._journal_memory(landings)
        for start in range(0, len(pending), _CALLS_AT_ONCE):
            batch = pending[start : start + _CALLS_AT_ONCE]
            results = self.caller.call(
                [self._mmap(m.start, m.size, PROT_READ | PROT_EXEC) for m in batch]
            )
            for wanted, result in zip(batch, results, strict=True):
                if result != wanted.start:
                    failed.append(wanted)
                    if id(wanted) in rows and self._manifest is not None:
                        self._manifest.clear([rows[id(wanted)]])
                    continue
                self.layout.mapped(wanted)
                self.mapped_bytes += wanted.size
                self.code_ranges.append((wanted.start, wanted.start + wanted.size))
                if wanted.region is not None:
                    self._fill_code(wanted.region.base)
        return failed

    @property
    def limit_bytes(self) -> int:
        """The most that `mapped_bytes` can become."""
        home = self._home_offset() + THUNK_SPAN
        data = DataPlaces.at(0).end + self.ring_options.total_bytes
        return data + home + _CODE_LIMIT_BYTES

    def _within_limit(
        self, pending: Sequence[PendingMap]
    ) -> tuple[list[PendingMap], list[PendingMap]]:
        fitting: list[PendingMap] = []
        room = self.limit_bytes - self.mapped_bytes
        for wanted in pending:
            room -= wanted.size
            if room >= 0:
                fitting.append(wanted)
        return fitting, list(pending[len(fitting) :])

    # By the identity of what is to be mapped, its place in the journal.
    def _journal_memory(self, landings: Sequence[PendingMap]) -> dict[int, int]:
        if not landings or self._manifest is None:
            return {}
        first = self._manifest.reserve(len(landings))
        self._manifest.write(
            [(row, Entry.of_memory(m.start, m.size)) for row, m in enumerate(landings, first)]
        )
        return {id(landing): row for row, landing in enumerate(landings, first)}

    def _fill_code(self, base: int) -> None:
        self.memory.write(base, self._code())

    def _code(self) -> bytes:
        code = bytearray(self._blob.code)
        code[:PARAM_BYTES] = self._parameters()
        fde, _ = self._architecture.unwind_entry(self.thunks, self.data.slots)
        at = self._blob.symbols["uf_unwind_fde"]
        code[at : at + len(fde)] = fde
        return bytes(code)

    def _parameters(self) -> bytes:
        _, fde_offset = self._architecture.unwind_entry(self.thunks, self.data.slots)
        values = {
            "CONTROL": self.data.control,
            "DIRECTORY": self.data.directory,
            "SLOTS": self.data.slots,
            "THUNKS": self.thunks,
            "TID_OFFSET": self.tid_offset & (1 << 64) - 1,
            "RING_HEADERS": self._ring_base,
            "RING_DATA": self._ring_base + self.ring_options.data_offset,
            "RING_BYTES": self.ring_options.ring_bytes,
            "RING_COUNT": self.ring_options.ring_count,
            "FDE_OFFSET": fde_offset,
            "TRAPS": self.data.traps,
        }
        block = bytearray(PARAM_BYTES)
        for name, value in values.items():
            offset = define(f"PARAM_{name}")
            block[offset : offset + 8] = value.to_bytes(8, "little")
        return bytes(block)

    def write_code(self, writes: Iterable[CodeWrite]) -> None:
        """Fill code memory, neighbours in one write; before anything leads there."""
        start = 0
        run: list[bytes] = []
        length = 0
        for write in sorted(writes, key=lambda item: item.address):
            if run and write.address != start + length:
                self.memory.write(start, b"".join(run))
                run = []
            if not run:
                start, length = write.address, 0
            run.append(write.code)
            length += len(write.code)
        if run:
            self.memory.write(start, b"".join(run))

    # -- switches ----------------------------------------------------------

    def enable(self, on: bool) -> None:
        """Switch all probes of the process on or off at once."""
        self.memory.write(self.data.control, int(on).to_bytes(4, "little"))

    def close(self) -> None:
        """Give the agent's descriptors back; the target's memory stays."""
        if self.ring_fd >= 0:
            os.close(self.ring_fd)
            self.ring_fd = -1


# Where the code follows the data: the thunks refer to their data by distances.
def _after_data(data: int) -> int:
    return data + -(-DataPlaces.at(0).end // PAGE) * PAGE + PAGE


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:  # a file that can have none
        return 0
