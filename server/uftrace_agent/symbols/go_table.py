"""Go's own table of functions (.gopclntab): which of them its compiler made.

Layouts of Go 1.18 and 1.20 (cmd/link/internal/ld/pcln.go, runtime/symtab.go); the flag
for assembly is there since 1.18.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.symbols.elf import ElfFile
from uftrace_agent.symbols.elf_tables import Relocations
from uftrace_agent.symbols.site_tables import relocated_words

_SECTIONS: Final = (".gopclntab", ".data.rel.ro.gopclntab")
# By magic: where the flags of a function lie behind the begin of its entry.
_FLAGS_AT: Final = {0xFFFFFFF0: 37, 0xFFFFFFF1: 41}
_ASSEMBLY: Final = 4
# pcsp, pcfile, pcln: where they are missing it is C, linked in by cgo.
_TABLES_AT: Final = (16, 20, 24)
_HEADER_WORDS: Final = 9
_COUNT, _TEXT, _FUNCTIONS = 1, 3, 8
_POINTER_SIZE_AT: Final = 7


def compiled_functions(elf: ElfFile, relocations: Relocations) -> NDArray[np.uint64]:
    """Link-time addresses of the functions that the Go compiler made, sorted; none where
    there is no table or it is of an unknown kind."""
    nothing: NDArray[np.uint64] = np.empty(0, np.uint64)
    section = next((found for name in _SECTIONS if (found := elf.section(name))), None)
    if section is None:
        return nothing
    data = elf.section_data(section)
    flags_at = _FLAGS_AT.get(int.from_bytes(data[:4], "little"))
    if flags_at is None or len(data) < 8 * _HEADER_WORDS or data[_POINTER_SIZE_AT] != 8:
        return nothing
    header = relocated_words(data[: 8 * _HEADER_WORDS], section.address, relocations).tolist()
    count, text, table = header[_COUNT], header[_TEXT], header[_FUNCTIONS]
    if not text or not 0 < count <= len(data) // 8 or table + 8 * count > len(data):
        return nothing
    rows = np.frombuffer(data, "<u4", 2 * count, table).reshape(-1, 2).astype(np.uint64)
    rows = rows[rows[:, 1] + np.uint64(table + flags_at) < len(data)]
    entries = rows[:, 1].astype(np.int64) + table
    octets = np.frombuffer(data, "u1")
    is_compiled = octets[entries + flags_at] & _ASSEMBLY == 0
    for at in _TABLES_AT:
        is_compiled &= (octets[entries[:, None] + at + np.arange(4)] != 0).any(axis=1)
    addresses: NDArray[np.uint64] = np.unique(rows[is_compiled, 0] + np.uint64(text))
    return addresses
