"""The target runtime's code, as bytes and entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from uftrace_agent.errors import EngineFaultError

_BUILT = Path(__file__).parent / "_built"


@dataclass(frozen=True, slots=True)
class Blob:
    """Position-independent code that is copied to the start of a code region.

    Attributes:
        code: The bytes, parameters (zero) first.
        symbols: Offset of each entry point in `code`.
    """

    code: bytes
    symbols: Mapping[str, int]


@cache
def load_blob(architecture: str) -> Blob:
    """The blob of `x86_64` or `aarch64`.

    Raises:
        EngineFaultError: It was not built.
    """
    path = _BUILT / f"target-{architecture}.elf"
    try:
        file = path.open("rb")
    except OSError as error:
        raise EngineFaultError(
            f"the target runtime {path.name} is missing",
            reason="RUNTIME_NOT_BUILT",
            hint="install the package anew, or run `make setup` in a checkout",
        ) from error
    with file:
        elf = ELFFile(file)
        section = elf.get_section_by_name(".blob")
        table = elf.get_section_by_name(".symtab")
        if section is None or not isinstance(table, SymbolTableSection):
            raise EngineFaultError(f"{path.name} is not a target runtime")
        symbols = {
            symbol.name: int(symbol["st_value"])
            for symbol in table.iter_symbols()
            if symbol.name.startswith("uf_")
        }
        return Blob(code=bytes(section.data()), symbols=symbols)
