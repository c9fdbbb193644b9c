"""One ELF file as the patch engine sees it: functions, code bytes, site tables."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from types import TracebackType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.errors import UnsupportedTargetError
from uftrace_agent.symbols import site_tables
from uftrace_agent.symbols.byte_source import ByteSource, FileSource, MemorySource
from uftrace_agent.symbols.debug_files import symbol_files
from uftrace_agent.symbols.eh_frame import FrameBounds, read_frame_bounds
from uftrace_agent.symbols.elf import (
    EM_AARCH64,
    EM_X86_64,
    ET_DYN,
    ET_EXEC,
    ElfFile,
    MalformedElfError,
    Segment,
)
from uftrace_agent.symbols.elf_tables import (
    Relocations,
    SymbolTable,
    read_dynamic_symbols,
    read_relocations,
    read_static_symbols,
)
from uftrace_agent.symbols.function_table import FunctionTable
from uftrace_agent.symbols.go_table import compiled_functions
from uftrace_agent.symbols.index_builder import CodeRanges, NamedStub, build_function_table
from uftrace_agent.symbols.plt import got_slots, irelative_slots, plt_sections, plt_stubs
from uftrace_agent.symbols.xray_sleds import SledMap, read_sleds

_MACHINE_NAMES: Final = {EM_X86_64: "x86_64", EM_AARCH64: "aarch64"}
_DELETED_SUFFIX: Final = " (deleted)"
# What the function table is made of, besides .plt*.
_INDEX_SECTIONS: Final = frozenset(
    {
        ".symtab",
        ".strtab",
        ".dynsym",
        ".dynstr",
        ".eh_frame_hdr",
        ".eh_frame",
        ".rela.dyn",
        ".rela.plt",
        ".relr.dyn",
        ".iplt",
        ".dynamic",
        ".gnu_debugdata",
    }
)


class FunctionIndexStore(Protocol):
    """Where finished function tables are kept between runs."""

    def load(self, key: str) -> FunctionTable | None:
        """The table stored under a key."""

    def store(self, key: str, table: FunctionTable) -> None:
        """Keep a table; failing to is no error."""


class ModuleImage:
    """An ELF program or library. Usable from several threads; a context manager.

    The headers are read at once, everything else when it is first asked for.
    All addresses are link-time: add the load bias for the live ones.

    Attributes:
        path: Where it was opened.
        name: Base name of the file as the process knows it.
        identity: (device, inode, modification time in ns, size); zeros for bytes.
        elf_type: `e_type`: 2 is linked to a fixed address, 3 is relocatable.
        machine: "x86_64", "aarch64", or the number of another machine.

    Raises:
        MalformedElfError: On opening or on any later access.
    """

    def __init__(
        self,
        source: ByteSource,
        *,
        path: str = "",
        mapped_path: str = "",
        root: str = "/",
        store: FunctionIndexStore | None = None,
    ) -> None:
        self._source = source
        self._elf = ElfFile(source)
        if self._elf.elf_type not in (ET_EXEC, ET_DYN):
            raise MalformedElfError("neither a program nor a shared library")
        self._root = root
        self._store = store
        self._directory, self.name = os.path.split(mapped_path or path)
        self.path = path
        self.identity = source.identity if isinstance(source, FileSource) else (0, 0, 0, 0)
        self.elf_type = self._elf.elf_type
        self.machine = _MACHINE_NAMES.get(self._elf.machine, self._elf.machine)

    @classmethod
    def open(
        cls,
        path: str,
        *,
        root: str = "/",
        expected_build_id: str | None = None,
        mapped_path: str | None = None,
        store: FunctionIndexStore | None = None,
    ) -> ModuleImage:
        """Open a file.

        Args:
            path: The file; `/proc/PID/map_files/...` is fine.
            root: Root directory of the process, to look for debug files.
            expected_build_id: In hex; another build id is refused.
            mapped_path: The file's path as the process knows it, for its name
                and for the debug file's place. If not given, it is taken from
                `path`: without `root`, and through the link if it is in /proc.
            store: Where finished tables are kept.

        Raises:
            OSError: The file cannot be opened.
            MalformedElfError: It is no ELF64 program or library, or damaged.
            UnsupportedTargetError: The build id differs (MODULE_REPLACED).
        """
        source = FileSource.open(path)
        try:
            image = cls(
                source,
                path=path,
                mapped_path=mapped_path or _path_behind(path, root),
                root=root,
                store=store,
            )
            if expected_build_id is not None and image.build_id != expected_build_id:
                raise UnsupportedTargetError(
                    f"{path} is not the file that is mapped",
                    reason="MODULE_REPLACED",
                    hint="the file was replaced while the process runs; restart the process",
                    metadata={"expected": expected_build_id, "found": image.build_id},
                )
        except UnsupportedTargetError:
            source.close()
            raise
        return image

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "") -> ModuleImage:
        """An image of a file whose bytes are at hand, such as the vDSO's."""
        return cls(MemorySource(data), path=name)

    def __enter__(self) -> ModuleImage:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. What was read stays usable; further reads raise ValueError."""
        if isinstance(self._source, FileSource):
            self._source.close()

    @property
    def build_id(self) -> str:
        """GNU build id in hex, empty where there is none."""
        return self._elf.build_id

    @property
    def entry(self) -> int:
        """Address where the program starts; 0 for most libraries."""
        return self._elf.entry

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The PT_LOAD segments, by address."""
        return self._elf.loads

    @property
    def executable_ranges(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of code, by address."""
        return self._elf.executable_ranges

    def vaddr_to_offset(self, vaddr: int) -> int | None:
        """File offset of an address; None where the file has no byte for it."""
        return self._elf.vaddr_to_offset(vaddr)

    def text_bytes(self, vaddr: int, length: int) -> bytes:
        """The file's bytes at an address.

        Returns:
            `length` bytes, fewer at the end of the segment, none outside.
        """
        return self._elf.read_at(vaddr, length)

    @cached_property
    def functions(self) -> FunctionTable:
        """All functions, from every source there is."""
        companions = list(symbol_files(self._elf, self._directory, self._root))
        try:
            if self._store is None:
                return self._build_functions(companions)
            key = self._index_key(companions)
            table = self._store.load(key)
            if table is None:
                table = self._build_functions(companions)
                self._store.store(key, table)
            return table
        finally:
            for companion in companions:
                if isinstance(companion.source, FileSource):
                    companion.source.close()

    def address_of(self, linkage_name: str) -> int | None:
        """Address of the function named exactly so."""
        return self.functions.address_of(linkage_name)

    def _build_functions(self, companions: list[ElfFile]) -> FunctionTable:
        tables = [read_static_symbols(self._elf), self._dynamic_symbols]
        tables += [read_static_symbols(companion) for companion in companions]
        symbols = [table for table in tables if table is not None]
        code = CodeRanges.of(self.executable_ranges)
        plt = CodeRanges.of([(s.address, s.address + s.size) for s in plt_sections(self._elf)])
        frames = self.frames
        stubs = plt_stubs(self._elf, {**self.got_slots, **self.ifunc_slots})
        names = dict(self.got_slots)
        if any(stub.slot not in names for stub in stubs):
            # Static programs: stubs of IFUNCs go by the resolver's name.
            plain = build_function_table(symbols, frames, (), code, plt, self.name)
            for slot, resolver in self.ifunc_slots.items():
                index = plain.index_of_address(resolver)
                if index is not None:
                    names.setdefault(slot, plain.linkage_name(int(plain.first_name[index])))
        named_stubs = [
            NamedStub(stub.address, stub.size, f"{names.get(stub.slot, self.name)}@plt")
            for stub in stubs
        ]
        return build_function_table(symbols, frames, named_stubs, code, plt, self.name)

    # Two files with one build id are not always the same: one may be stripped,
    # and anybody can write any build id into a file of his own. So the key
    # takes in every byte that the table is made of.
    def _index_key(self, companions: list[ElfFile]) -> str:
        digest = hashlib.blake2b(self.name.encode("utf-8", "surrogateescape"), digest_size=16)
        for elf in (self._elf, *companions):
            digest.update(repr((elf.segments, elf.sections)).encode())
            for section in elf.sections:
                if section.name in _INDEX_SECTIONS or section.name.startswith(".plt"):
                    digest.update(elf.section_data(section))
            if not elf.sections:
                for segment in elf.loads:
                    digest.update(elf.source.read(segment.offset, segment.filesz))
        return f"{self.build_id or 'none'}-{digest.hexdigest()}"

    @cached_property
    def frames(self) -> FrameBounds:
        """Function bounds by unwind data."""
        return read_frame_bounds(self._elf)

    @cached_property
    def _dynamic_symbols(self) -> SymbolTable | None:
        return read_dynamic_symbols(self._elf)

    @cached_property
    def _relocations(self) -> Relocations:
        return read_relocations(self._elf)

    @cached_property
    def got_slots(self) -> dict[int, str]:
        """Address of each GOT slot to the name of the symbol that is stored there."""
        return got_slots(self._relocations, self._dynamic_symbols)

    @cached_property
    def ifunc_slots(self) -> dict[int, int]:
        """Address of each slot that an IFUNC fills to the address of its resolver.

        In a running process the slot holds the function that was chosen.
        """
        return irelative_slots(self._relocations)

    @cached_property
    def imports(self) -> frozenset[str]:
        """Names of the functions and data that the file takes from others."""
        return site_tables.read_imports(self._dynamic_symbols)

    @cached_property
    def patchable_sites(self) -> NDArray[np.uint64]:
        """Addresses of the nops that -fpatchable-function-entry made, sorted."""
        return site_tables.read_address_table(
            self._elf, ("__patchable_function_entries",), self._relocations
        )

    @cached_property
    def mcount_loc(self) -> NDArray[np.uint64]:
        """Addresses of the calls (or nops) that -mrecord-mcount recorded, sorted."""
        return site_tables.read_address_table(self._elf, ("__mcount_loc",), self._relocations)

    @cached_property
    def relocated_ranges(self) -> NDArray[np.uint64]:
        """(address, size) rows of code bytes that the loader changes, sorted."""
        return site_tables.read_relocated_code(self._elf, self._relocations)

    @cached_property
    def restartable_sequences(self) -> tuple[tuple[int, int], ...]:
        """(start_ip, post_commit_offset) of each rseq critical section."""
        return site_tables.read_restartable_sequences(self._elf, self._relocations)

    @cached_property
    def sleds(self) -> SledMap:
        """The sleds that -fxray-instrument made."""
        return read_sleds(self._elf, self._relocations)

    @property
    def has_xray(self) -> bool:
        """Whether it was built with -fxray-instrument."""
        return self._elf.section("xray_instr_map") is not None

    @property
    def may_throw(self) -> bool:
        """Whether exceptions can start in, or pass through, its functions."""
        return site_tables.may_throw(self._elf, self.imports)

    @property
    def is_go(self) -> bool:
        """Whether the Go toolchain linked it."""
        return site_tables.is_go(self._elf)

    @property
    def walks_stacks(self) -> bool:
        """Whether it has, or extends, a runtime whose compiled code calls its functions,
        and that takes the addresses which they return to from the stack."""
        walkers = site_tables.STACK_WALKERS
        if any(self.address_of(name) is not None for name in walkers):
            return True
        return any(name.startswith(site_tables.STACK_WALKER_API) for name in self.imports)

    @cached_property
    def go_compiled(self) -> NDArray[np.uint64]:
        """Link-time addresses of what the Go compiler made, sorted; none where that is
        not known."""
        return compiled_functions(self._elf, self._relocations)


# /proc/PID/map_files/... and /proc/PID/exe are links to the mapped file.
def _path_behind(path: str, root: str) -> str:
    inside = path.removeprefix(root.rstrip("/"))
    if inside != path:
        return inside
    if not path.startswith("/proc/"):
        return path
    try:
        return os.readlink(path).removesuffix(_DELETED_SUFFIX)
    except OSError:
        return path
