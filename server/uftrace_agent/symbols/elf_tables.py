"""Symbol tables and dynamic relocations of an ELF file, as numpy columns.

Both are found by section, and by the dynamic segment in files whose section
table was stripped off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.symbols.elf import EM_AARCH64, EM_X86_64, ElfFile, MalformedElfError

STT_NOTYPE: Final = 0
STT_FUNC: Final = 2
STT_GNU_IFUNC: Final = 10
STB_LOCAL: Final = 0
STB_WEAK: Final = 2
SHN_UNDEF: Final = 0
SHN_ABS: Final = 0xFFF1
SHN_COMMON: Final = 0xFFF2

_SHT_SYMTAB: Final = 2
_SHT_RELA: Final = 4
_SHT_DYNSYM: Final = 11
_DT_PLTRELSZ: Final = 2
_DT_HASH: Final = 4
_DT_STRTAB: Final = 5
_DT_SYMTAB: Final = 6
_DT_RELA: Final = 7
_DT_RELASZ: Final = 8
_DT_STRSZ: Final = 10
_DT_JMPREL: Final = 23
_DT_RELRSZ: Final = 35
_DT_RELR: Final = 36
_DT_GNU_HASH: Final = 0x6FFFFEF5

SYMBOL_DTYPE: Final = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("shndx", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
_RELA_DTYPE: Final = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")])

_Item = TypeVar("_Item", bound=np.generic)

# A table whose names overlap so much that together they are far larger than
# the string table was made to exhaust memory; linkers merge only tails.
_NAME_EXPANSION_LIMIT: Final = 32
_LONGEST_NAME: Final = 1 << 16
_MOST_PACKED: Final = 1 << 21


@dataclass(frozen=True, slots=True)
class RelocationTypes:
    """The numbers of one machine's dynamic relocation types."""

    absolute: int
    glob_dat: int
    jump_slot: int
    relative: int
    irelative: int
    narrow: frozenset[int]


RELOCATION_TYPES: Final = {
    EM_X86_64: RelocationTypes(1, 6, 7, 8, 37, frozenset({2, 4, 10, 11})),
    EM_AARCH64: RelocationTypes(257, 1025, 1026, 1027, 1032, frozenset({258, 261})),
}
_UNKNOWN_MACHINE: Final = RelocationTypes(-1, -1, -1, -1, -1, frozenset())


@dataclass(frozen=True, slots=True)
class SymbolTable:
    """One symbol table: entries (`SYMBOL_DTYPE`) and the strings they point into."""

    entries: NDArray[np.void]
    strings: bytes

    def names(self, indices: NDArray[np.intp]) -> list[bytes]:
        """Names of the entries at `indices`; empty where the offset is outside the strings.

        Raises:
            MalformedElfError: The names overlap beyond reason.
        """
        strings = self.strings + b"\0"
        starts = np.minimum(self.entries["name"][indices].astype(np.int64), len(strings) - 1)
        nul = np.flatnonzero(np.frombuffer(strings, np.uint8) == 0)
        ends = nul[np.searchsorted(nul, starts)]
        if len(starts) and int((ends - starts).max()) > _LONGEST_NAME:
            raise MalformedElfError("a symbol's name is longer than any")
        if int((ends - starts).sum()) > _NAME_EXPANSION_LIMIT * (len(strings) + 65536):
            raise MalformedElfError("symbol names overlap beyond reason")
        return [
            strings[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]

    def name(self, index: int) -> str:
        """One name; empty where there is no such symbol."""
        if not 0 <= index < len(self.entries):
            return ""
        return self.names(np.array([index]))[0].decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Relocations:
    """Dynamic relocations in file order: target vaddr, type, dynsym index, addend."""

    offset: NDArray[np.uint64]
    type: NDArray[np.int64]
    symbol: NDArray[np.int64]
    addend: NDArray[np.int64]
    types: RelocationTypes

    def of_types(self, *types: int) -> Relocations:
        """Only those of the given types."""
        keep = np.isin(self.type, types)
        return Relocations(
            self.offset[keep], self.type[keep], self.symbol[keep], self.addend[keep], self.types
        )


def read_static_symbols(elf: ElfFile) -> SymbolTable | None:
    """.symtab, or None where the file is stripped."""
    return _symbols_of_section(elf, _SHT_SYMTAB)


def read_dynamic_symbols(elf: ElfFile) -> SymbolTable | None:
    """.dynsym, or what the dynamic segment points at; None where there is neither."""
    found = _symbols_of_section(elf, _SHT_DYNSYM)
    return found if found is not None else _symbols_of_dynamic_segment(elf)


def _symbols_of_section(elf: ElfFile, section_type: int) -> SymbolTable | None:
    for section in elf.sections:
        if section.type == section_type and section.link < len(elf.sections):
            data = elf.section_data(section)
            strings = elf.section_data(elf.sections[section.link])
            return SymbolTable(_records(data, SYMBOL_DTYPE), strings)
    return None


def _symbols_of_dynamic_segment(elf: ElfFile) -> SymbolTable | None:
    dynamic = elf.dynamic
    if _DT_SYMTAB not in dynamic or _DT_STRTAB not in dynamic:
        return None
    count = _dynamic_symbol_count(elf)
    data = elf.read_at(dynamic[_DT_SYMTAB], count * SYMBOL_DTYPE.itemsize)
    strings = elf.read_at(dynamic[_DT_STRTAB], dynamic.get(_DT_STRSZ, 0))
    return SymbolTable(_records(data, SYMBOL_DTYPE), strings)


# The dynamic segment does not say how many symbols there are; the hash tables do.
def _dynamic_symbol_count(elf: ElfFile) -> int:
    dynamic = elf.dynamic
    if _DT_HASH in dynamic:
        header = np.frombuffer(elf.read_at(dynamic[_DT_HASH], 8), "<u4")
        return int(header[1]) if len(header) == 2 else 0
    if _DT_GNU_HASH not in dynamic:
        return 0
    base = dynamic[_DT_GNU_HASH]
    header = np.frombuffer(elf.read_at(base, 16), "<u4")
    if len(header) < 4:
        return 0
    bucket_count, first_hashed, bloom_words = (int(value) for value in header[:3])
    buckets_at = base + 16 + 8 * bloom_words
    buckets = _records(elf.read_at(buckets_at, 4 * bucket_count), np.dtype("<u4"))
    last = int(buckets.max()) if len(buckets) else 0
    if last < first_hashed:
        return first_hashed
    chain_at = buckets_at + 4 * bucket_count + 4 * (last - first_hashed)
    chain = _records(elf.read_at(chain_at, 1 << 20), np.dtype("<u4"))
    ends = np.flatnonzero(chain & 1)  # bit 0 marks the end of a chain
    return last + int(ends[0]) + 1 if len(ends) else 0


def read_relocations(elf: ElfFile) -> Relocations:
    """All dynamic relocations: RELA, PLT and RELR tables.

    RELR entries appear as relative relocations whose addend is what the file
    has at the place.
    """
    types = RELOCATION_TYPES.get(elf.machine, _UNKNOWN_MACHINE)
    dynamic = elf.dynamic
    if dynamic:
        tables = [
            elf.read_at(dynamic.get(_DT_RELA, 0), dynamic.get(_DT_RELASZ, 0)),
            elf.read_at(dynamic.get(_DT_JMPREL, 0), dynamic.get(_DT_PLTRELSZ, 0)),
        ]
    else:  # static executables have .rela.plt for IRELATIVE and no dynamic segment
        tables = [elf.section_data(s) for s in elf.sections if s.type == _SHT_RELA and s.flags & 2]
    rela = np.concatenate([_records(table, _RELA_DTYPE) for table in tables or [b""]])
    # DT_RELA of some linkers spans the PLT's table too.
    rela = np.unique(rela) if len(tables) > 1 else rela
    offset = rela["offset"].astype(np.uint64)
    kind = (rela["info"] & 0xFFFFFFFF).astype(np.int64)
    symbol = (rela["info"] >> np.uint64(32)).astype(np.int64)
    addend = rela["addend"].astype(np.int64)
    packed = _relr_addresses(elf)
    if packed:
        values = [_word_at(elf, address) for address in packed]
        offset = np.concatenate([offset, np.array(packed, np.uint64)])
        kind = np.concatenate([kind, np.full(len(packed), types.relative, np.int64)])
        symbol = np.concatenate([symbol, np.zeros(len(packed), np.int64)])
        addend = np.concatenate([addend, np.array(values, np.uint64).view(np.int64)])
    return Relocations(offset, kind, symbol, addend, types)


# RELR: an even word is an address, an odd word a bitmap of the 63 words after it.
def _relr_addresses(elf: ElfFile) -> Sequence[int]:
    dynamic = elf.dynamic
    if _DT_RELR not in dynamic:
        return []
    words = _records(
        elf.read_at(dynamic[_DT_RELR], dynamic.get(_DT_RELRSZ, 0)), np.dtype("<u8")
    ).tolist()
    if sum(word.bit_count() for word in words if word & 1) > _MOST_PACKED:
        raise MalformedElfError("more packed relocations than any file has")
    addresses: list[int] = []
    where = 0
    for word in words:
        if word & 1 == 0:
            addresses.append(word)
            where = word + 8
            continue
        addresses.extend(where + 8 * bit for bit in range(63) if word >> (bit + 1) & 1)
        where += 63 * 8
    return [address for address in addresses if address < (1 << 64) - 8]


def _word_at(elf: ElfFile, vaddr: int) -> int:
    return int.from_bytes(elf.read_at(vaddr, 8), "little")


# Whole records only; a torn last record is dropped.
def _records(data: bytes, dtype: np.dtype[_Item]) -> NDArray[_Item]:
    return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
