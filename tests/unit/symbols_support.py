"""A small ELF writer and a compiler driver: tests make their binaries, none is checked in."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uftrace_agent.symbols import ModuleImage

TEXT_ADDRESS = 0x1000
SYMBOL = struct.Struct("<IBBHQQ")


def run(*command: str | Path, stdin: str | None = None, check: bool = True) -> str:
    """Run a tool and return what it printed."""
    return subprocess.run(
        [str(word) for word in command], input=stdin, capture_output=True, text=True, check=check
    ).stdout


def compile_program(
    folder: Path, source: str, *options: str, name: str = "program", compiler: str = "gcc"
) -> Path:
    """Compile one C or C++ source into a program or library."""
    suffix = ".cc" if compiler.endswith("++") else ".c"
    path = folder / f"{name}{suffix}"
    path.write_text(source)
    run(compiler, "-o", folder / name, path, *options)
    return folder / name


def names_of(image: ModuleImage) -> set[str]:
    """All linkage names of an image."""
    return set(image.functions.linkage_names())


@dataclass
class ElfWriter:
    """Writes an ELF64 shared object with one text section and a symbol table.

    Attributes:
        symbols: (name, address, size, type, binding), address 0 is undefined.
        sections: Further sections: name to (type, flags, bytes), at no address.
    """

    text: bytes = b"\xc3" * 64
    symbols: Sequence[tuple[str, int, int, int, int]] = ()
    machine: int = 62
    sections: dict[str, tuple[int, int, bytes]] = field(default_factory=dict)

    def build(self) -> bytes:
        strings = bytearray(b"\0")
        table = bytearray(SYMBOL.pack(0, 0, 0, 0, 0, 0))
        for name, address, size, kind, binding in self.symbols:
            table += SYMBOL.pack(
                len(strings), binding << 4 | kind, 0, 1 if address else 0, address, size
            )
            strings += name.encode() + b"\0"
        return self._assemble(bytes(table), bytes(strings))

    def _assemble(self, table: bytes, strings: bytes) -> bytes:
        # (name, type, flags, address, bytes, link, entry size); section 0 is empty.
        sections = [
            (".text", 1, 6, TEXT_ADDRESS, self.text, 0, 0),
            (".symtab", 2, 0, 0, table, 3, SYMBOL.size),
            (".strtab", 3, 0, 0, strings, 0, 0),
        ]
        sections += [
            (name, kind, flags, 0, data, 0, 0)
            for name, (kind, flags, data) in self.sections.items()
        ]
        section_names = b"\0" + b"".join(
            name.encode() + b"\0" for name in [*(s[0] for s in sections), ".shstrtab"]
        )
        sections.append((".shstrtab", 3, 0, 0, section_names, 0, 0))
        body = bytearray(b"\0" * (TEXT_ADDRESS - 64 - 56))
        headers = [bytes(64)]
        for name, kind, flags, address, data, link, entry in sections:
            offset = 64 + 56 + len(body)
            body += data + b"\0" * (-len(data) % 8)
            headers.append(
                struct.pack(
                    "<IIQQQQIIQQ",
                    section_names.index(b"\0" + name.encode() + b"\0") + 1,
                    kind,
                    flags,
                    address,
                    offset,
                    len(data),
                    link,
                    0,
                    8,
                    entry,
                )
            )
        segment = struct.pack(
            "<IIQQQQQQ",
            1,
            5,
            TEXT_ADDRESS,
            TEXT_ADDRESS,
            TEXT_ADDRESS,
            len(self.text),
            len(self.text),
            0x1000,
        )
        header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
            "<HHIQQQIHHHHHH",
            3,
            self.machine,
            1,
            0,
            64,
            64 + 56 + len(body),
            0,
            64,
            56,
            1,
            64,
            len(headers),
            len(headers) - 1,
        )
        return header + segment + bytes(body) + b"".join(headers)


def large_elf(count: int) -> bytes:
    """An ELF file with `count` functions of 16 bytes, in no order, every third name mangled."""
    order = np.random.default_rng(7).permutation(count).tolist()
    symbols = [
        (
            f"_ZN7project6module{len(str(i)) + 8}function{i}Ei" if i % 3 == 0 else f"function_{i}",
            TEXT_ADDRESS + 16 * i,
            16,
            2,
            i % 2,
        )
        for i in order
    ]
    return ElfWriter(text=b"\xc3" * 16 * count, symbols=symbols).build()
