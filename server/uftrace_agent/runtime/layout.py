"""The numbers of `target/annex.h`, the one source of the annex's layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_HEADER = Path(__file__).parent / "target" / "annex.h"


def _read_defines(text: str) -> dict[str, int]:
    found = re.findall(r"^#define UF_(\w+) (0x[0-9a-f]+|\d+)$", text, re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


_DEFINES: Final = _read_defines(_HEADER.read_text(encoding="ascii"))


def define(name: str) -> int:
    """The value of `#define UF_<name>`; KeyError where annex.h has none."""
    return _DEFINES[name]


ANNEX_VERSION: Final = define("ANNEX_VERSION")

PARAM_BYTES: Final = define("PARAM_BYTES")
DIRECTORY_BYTES: Final = define("THREAD_BYTES") << define("DIRECTORY_BITS")
THREAD_BYTES: Final = define("THREAD_BYTES")

RING_HEADER_BYTES: Final = define("RING_HEADER_BYTES")
RECORD_BYTES: Final = define("RECORD_BYTES")

THUNK_BYTES: Final = define("THUNK_BYTES")
THUNK_COUNT: Final = 1 << define("THUNK_BITS")
THUNK_SPAN: Final = THUNK_BYTES * THUNK_COUNT
SLOT_BYTES: Final = define("SLOT_BYTES")
SLOT_TABLE_BYTES: Final = SLOT_BYTES * THUNK_COUNT

TRAP_TABLE_BYTES: Final = (
    -(-(define("TRAPS_ENTRIES") + define("TRAP_BYTES") * define("TRAP_CAPACITY")) // 4096) * 4096
)

# With one call more than asked for: the first is the agent's own.
CALL_TABLE_BYTES: Final = (
    -(-(define("CALLS_ENTRIES") + define("CALL_BYTES") * (define("CALLS_CAPACITY") + 1)) // 4096)
    * 4096
)

KIND_ENTRY: Final = define("KIND_ENTRY")
KIND_EXIT: Final = define("KIND_EXIT")
KIND_ENTRY_ONLY: Final = define("KIND_ENTRY_ONLY")
KIND_TAIL_ENTRY: Final = define("KIND_TAIL_ENTRY")
KIND_SHIFT: Final = define("KIND_SHIFT")
ID_SHIFT: Final = define("ID_SHIFT")
ID_MAX: Final = define("ID_MAX")

MANIFEST_MAGIC: Final = define("MANIFEST_MAGIC")
MANIFEST_HEADER_BYTES: Final = define("MANIFEST_HEADER_BYTES")
SITE_BYTES: Final = define("SITE_BYTES")


def id_word(function_id: int, kind: int) -> int:
    """The low half of a record's word, as a stub passes it to the probe."""
    return function_id << ID_SHIFT | kind << KIND_SHIFT
