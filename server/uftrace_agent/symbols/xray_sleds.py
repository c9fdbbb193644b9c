"""The sleds of a file built with -fxray-instrument: section xray_instr_map.

The section is an array of 32-byte entries (XRaySledEntry in LLVM's compiler-rt,
lib/xray/xray_interface_internal.h). Since version 2 an entry is relative to
itself and needs no relocation; before, it holds absolute addresses, which in
position-independent files are in the relocations' addends only. One file may
have entries of several versions: each object file brings its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.symbols.elf import SHT_NOBITS, ElfFile, Section
from uftrace_agent.symbols.elf_tables import Relocations, read_dynamic_symbols
from uftrace_agent.symbols.index_builder import CodeRanges
from uftrace_agent.symbols.site_tables import relocated_words

_SECTION_NAME: Final = "xray_instr_map"
_ENTRY_DTYPE: Final = np.dtype(
    [
        ("address", "<u8"),
        ("function", "<u8"),
        ("kind", "u1"),
        ("always", "u1"),
        ("version", "u1"),
        ("padding", "V13"),
    ]
)
_FIRST_RELATIVE_VERSION: Final = 2


class SledKind(IntEnum):
    """What the program does where a sled is; the numbers are those of the file."""

    ENTRY = 0
    EXIT = 1
    # In front of a jump to another function. That jump may be a conditional one
    # (clang -Os): then the sled is also met when the function goes on.
    TAIL = 2
    # An entry whose first argument is to be logged.
    ARGUMENTS = 3
    CUSTOM_EVENT = 4
    TYPED_EVENT = 5


@dataclass(frozen=True, slots=True)
class Sled:
    """Bytes that the compiler reserved for patching.

    Attributes:
        address: Link-time address of the sled's first byte.
        kind: What it marks.
        always: Whether the source asked for it (xray_always_instrument).
        version: Of its entry in the file. Version 0 custom events are 22 bytes
            long (`eb 14`), later ones 17 (`eb 0f`).
    """

    address: int
    kind: SledKind
    always: bool
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class SledMap:
    """The sleds of one file, by function.

    Attributes:
        functions: Link-time entry addresses of the functions with sleds,
            ascending, each once.
    """

    functions: NDArray[np.uint64]
    # Rows of function i are _starts[i] up to _starts[i + 1].
    _starts: NDArray[np.intp]
    _entries: NDArray[np.void]

    def of_function(self, address: int) -> tuple[Sled, ...]:
        """The sleds of a function, by rising address; none if it has no sleds.

        Args:
            address: Link-time address of its symbol. The sled of its entry may
                lie some bytes further on: behind an endbr64 and a nop for alignment.
        """
        if not 0 <= address < 1 << 64:
            return ()
        index = int(np.searchsorted(self.functions, np.uint64(address)))
        if index == len(self.functions) or int(self.functions[index]) != address:
            return ()
        rows = self._entries[self._starts[index] : self._starts[index + 1]]
        return tuple(
            Sled(sled, SledKind(kind), bool(always), version)
            for sled, _function, kind, always, version, _padding in rows.tolist()
        )

    def __len__(self) -> int:
        """How many sleds there are."""
        return len(self._entries)


def read_sleds(elf: ElfFile, relocations: Relocations) -> SledMap:
    """All sleds of a file; an empty map where it has none.

    What cannot be a sled is left out: entries of unknown kinds, of functions
    that the linker discarded (they point nowhere), and repeated ones.

    Raises:
        MalformedElfError: The file is cut short while it is read.
    """
    tables = [
        _read_table(elf, section, relocations)
        for section in elf.sections
        if section.name == _SECTION_NAME
    ]
    entries = np.concatenate([np.empty(0, _ENTRY_DTYPE), *tables])
    code = CodeRanges.of(elf.executable_ranges)
    entries = entries[
        (entries["kind"] <= max(SledKind))
        & code.contain(entries["address"])
        & code.contain(entries["function"])
    ]
    entries = entries[np.lexsort((entries["address"], entries["function"]))]
    entries = entries[_differs(entries["function"]) | _differs(entries["address"])]
    starts = np.flatnonzero(_differs(entries["function"]))
    functions = entries["function"][starts].astype(np.uint64)
    return SledMap(functions, np.append(starts, len(entries)), entries)


# Entries with link-time addresses, in the order of the file.
def _read_table(elf: ElfFile, section: Section, relocations: Relocations) -> NDArray[np.void]:
    if section.type == SHT_NOBITS:
        return np.empty(0, _ENTRY_DTYPE)
    size = max(0, min(section.size, elf.source.size - section.offset))
    size -= size % _ENTRY_DTYPE.itemsize
    if not size:
        return np.empty(0, _ENTRY_DTYPE)
    words = relocated_words(elf.source.read(section.offset, size), section.address, relocations)
    _bind_symbols(words, section.address, elf, relocations)
    entries = words.view(_ENTRY_DTYPE)
    relative = entries["version"] >= _FIRST_RELATIVE_VERSION
    # Addresses wrap around as the linker's 64-bit sums do.
    row = np.arange(len(entries), dtype=np.uint64) * np.uint64(_ENTRY_DTYPE.itemsize)
    for field, offset in (("address", 0), ("function", 8)):
        place = row + np.uint64((section.address + offset) % (1 << 64))
        entries[field] += np.where(relative, place, np.uint64(0))
    return entries


# Old entries of a library name a function that it exports by its symbol. The
# loader may bind that to another file's function of the name; the sleds are
# those of this file's own.
def _bind_symbols(
    words: NDArray[np.uint64], base: int, elf: ElfFile, relocations: Relocations
) -> None:
    absolute = relocations.of_types(relocations.types.absolute)
    distance = absolute.offset - np.uint64(base % (1 << 64))  # wraps where it is below
    inside = (distance < np.uint64(8 * len(words))) & (distance % np.uint64(8) == 0)
    symbols = read_dynamic_symbols(elf) if inside.any() else None
    if symbols is None:
        return
    inside &= (absolute.symbol >= 0) & (absolute.symbol < len(symbols.entries))
    values = symbols.entries["value"][absolute.symbol[inside]]
    slots = (distance[inside] // np.uint64(8)).astype(np.intp)
    words[slots] = values + absolute.addend[inside].astype(np.uint64)


# Which values differ from the one in front.
def _differs(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return np.concatenate([np.ones(min(1, len(values)), np.bool_), values[1:] != values[:-1]])
