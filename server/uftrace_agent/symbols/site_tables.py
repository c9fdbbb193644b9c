"""What compilers and libraries left in a file for those who patch code."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.symbols.elf import ElfFile
from uftrace_agent.symbols.elf_tables import SHN_UNDEF, Relocations, SymbolTable

# What embedders of HotSpot, V8, CoreCLR and Mono call, whatever the version.
STACK_WALKERS: Final = (
    "JNI_CreateJavaVM",
    "_ZN2v82V810GetVersionEv",
    "coreclr_initialize",
    "mono_jit_init",
)
# Addons of V8: its compiled code calls their functions.
STACK_WALKER_API: Final = ("_ZN2v8", "_ZNK2v8")
_GO_SECTIONS: Final = (".gopclntab", ".go.buildinfo", ".note.go.buildid")
_THROWING_IMPORTS: Final = frozenset(
    {"__cxa_throw", "__cxa_rethrow", "_Unwind_RaiseException", "_Unwind_Resume"}
)
_RSEQ_ENTRY: Final = struct.Struct("<IIQQQ")  # struct rseq_cs


def read_address_table(
    elf: ElfFile, section_names: tuple[str, ...], relocations: Relocations
) -> NDArray[np.uint64]:
    """Link-time addresses in sections that are arrays of pointers to code.

    In position-independent files the pointers may be in the relocations'
    addends only. Zeros (entries of discarded functions) are left out.

    Returns:
        Sorted, each once.
    """
    tables = [
        relocated_words(elf.section_data(section), section.address, relocations)
        for section in elf.sections
        if section.name in section_names
    ]
    addresses: NDArray[np.uint64] = np.unique(np.concatenate([np.empty(0, np.uint64), *tables]))
    return np.extract(addresses != 0, addresses)


def relocated_words(data: bytes, base: int, relocations: Relocations) -> NDArray[np.uint64]:
    """64-bit words with relative relocations applied; a torn last word is dropped.

    Args:
        data: The bytes of a section.
        base: Its link-time address.
        relocations: All of the file's.

    Returns:
        A new array, which the caller may change.
    """
    words = np.frombuffer(data[: len(data) // 8 * 8], "<u8").astype(np.uint64)
    if not len(words):
        return words
    relative = relocations.of_types(relocations.types.relative)
    inside = (relative.offset >= np.uint64(base)) & (
        relative.offset - np.uint64(base) < np.uint64(8 * len(words))
    )
    distance = relative.offset[inside] - np.uint64(base)
    aligned = distance % np.uint64(8) == 0
    slots = (distance[aligned] // np.uint64(8)).astype(np.intp)
    words[slots] = relative.addend[inside][aligned].astype(np.uint64)
    return words


def read_restartable_sequences(
    elf: ElfFile, relocations: Relocations
) -> tuple[tuple[int, int], ...]:
    """(start, length) of each restartable sequence, by link-time address."""
    section = elf.section("__rseq_cs")
    if section is None:
        return ()
    words = relocated_words(elf.section_data(section), section.address, relocations)
    found = []
    for _version, _flags, start, length, _abort in _RSEQ_ENTRY.iter_unpack(
        words.tobytes()[: len(words) * 8 // _RSEQ_ENTRY.size * _RSEQ_ENTRY.size]
    ):
        if start and length:
            found.append((start, length))
    return tuple(found)


def read_relocated_code(elf: ElfFile, relocations: Relocations) -> NDArray[np.uint64]:
    """(address, size) rows of code that the loader changes (text relocations)."""
    rows = np.zeros(len(relocations.offset), np.bool_)
    for segment in elf.loads:
        if segment.executable:
            rows |= (relocations.offset >= np.uint64(segment.vaddr)) & (
                relocations.offset < np.uint64(segment.vaddr + segment.memsz)
            )
    narrow = np.isin(relocations.type[rows], tuple(relocations.types.narrow))
    sizes = np.where(narrow, np.uint64(4), np.uint64(8))
    return np.unique(np.column_stack([relocations.offset[rows], sizes]), axis=0)


def read_imports(symbols: SymbolTable | None) -> frozenset[str]:
    """Names that the file wants from others."""
    if symbols is None:
        return frozenset()
    entries = symbols.entries
    rows = np.flatnonzero((entries["shndx"] == SHN_UNDEF) & (entries["name"] != 0))
    return frozenset(name.decode("utf-8", "backslashreplace") for name in symbols.names(rows))


def may_throw(elf: ElfFile, imports: frozenset[str]) -> bool:
    """Whether exceptions can start in, or pass through, the file's functions."""
    return elf.section(".gcc_except_table") is not None or bool(imports & _THROWING_IMPORTS)


def is_go(elf: ElfFile) -> bool:
    """Whether the Go toolchain linked the file."""
    return any(elf.section(name) is not None for name in _GO_SECTIONS)
