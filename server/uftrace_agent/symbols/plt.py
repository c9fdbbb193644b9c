"""GOT slots and PLT stubs: which import a slot or a stub stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from uftrace_agent.symbols.elf import EM_AARCH64, EM_X86_64, ElfFile, Section
from uftrace_agent.symbols.elf_tables import Relocations, SymbolTable

_PLT_PREFIXES: Final = (".plt", ".iplt")
_X86_ENTRY_SIZE: Final = 16
_BTI_C: Final = 0xD503245F
_BR_X17: Final = 0xD61F0220


@dataclass(frozen=True, slots=True)
class PltStub:
    """A stub that jumps through a GOT slot; link-time address, size in bytes."""

    address: int
    size: int
    slot: int


def got_slots(relocations: Relocations, symbols: SymbolTable | None) -> dict[int, str]:
    """GOT slot address to the name of the symbol that the loader stores there."""
    types = relocations.types
    if symbols is None:
        return {}
    slots = relocations.of_types(types.glob_dat, types.jump_slot)
    named = (slots.symbol > 0) & (slots.symbol < len(symbols.entries))
    names = symbols.names(slots.symbol[named])
    return {
        slot: name.decode("utf-8", "backslashreplace")
        for slot, name in zip(slots.offset[named].tolist(), names, strict=True)
        if name
    }


def irelative_slots(relocations: Relocations) -> dict[int, int]:
    """GOT slot address to the resolver that the loader calls to fill it."""
    found = relocations.of_types(relocations.types.irelative)
    return dict(zip(found.offset.tolist(), found.addend.astype(np.uint64).tolist(), strict=True))


def plt_sections(elf: ElfFile) -> tuple[Section, ...]:
    """The executable sections that hold nothing but stubs."""
    return tuple(s for s in elf.sections if s.executable and s.name.startswith(_PLT_PREFIXES))


def plt_stubs(elf: ElfFile, slots: Mapping[int, object]) -> list[PltStub]:
    """All stubs that jump through one of the given slots."""
    decode = _DECODERS.get(elf.machine)
    if decode is None:
        return []
    return [
        stub
        for section in plt_sections(elf)
        for stub in decode(elf.section_data(section), section)
        if stub.slot in slots
    ]


# jmp *disp32(%rip) is ff 25; with a bnd prefix or endbr64 before it or not.
def _x86_64_stubs(code: bytes, section: Section) -> Iterator[PltStub]:
    small = section.name == ".plt.got" and section.entry_size == 8
    entry = 8 if small else _X86_ENTRY_SIZE
    position = code.find(b"\xff\x25")
    while 0 <= position <= len(code) - 6:
        displacement = int.from_bytes(code[position + 2 : position + 6], "little", signed=True)
        start = position // entry * entry
        yield PltStub(section.address + start, entry, section.address + position + 6 + displacement)
        position = code.find(b"\xff\x25", position + 6)


# [bti c]; adrp x16, page; ldr x17, [x16, #low]; add x16, x16, #low; ...; br x17
def _aarch64_stubs(code: bytes, section: Section) -> Iterator[PltStub]:
    words = np.frombuffer(code[: len(code) // 4 * 4], "<u4")
    heads = (words[:-1] & 0x9F00001F == 0x90000010) & (words[1:] & 0xFFC003FF == 0xF9400211)
    for index in np.flatnonzero(heads).tolist():
        adrp, load = int(words[index]), int(words[index + 1])
        page = (adrp >> 5 & 0x7FFFF) << 2 | (adrp >> 29 & 3)
        page -= (page & 0x100000) << 1
        place = section.address + 4 * index
        slot = (place & ~0xFFF) + (page << 12) + (load >> 10 & 0xFFF) * 8
        first = index - 1 if index and int(words[index - 1]) == _BTI_C else index
        jumps = np.flatnonzero(words[index : index + 6] == _BR_X17)
        end = index + int(jumps[0]) + 1 if len(jumps) else index + 4
        yield PltStub(section.address + 4 * first, 4 * (end - first), slot)


_DECODERS: Final[Mapping[int, Callable[[bytes, Section], Iterator[PltStub]]]] = {
    EM_X86_64: _x86_64_stubs,
    EM_AARCH64: _aarch64_stubs,
}
