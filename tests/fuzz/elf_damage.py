"""Damage to ELF files: what an unlucky disk, a broken linker or an enemy would write."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_HEADER: Final = 64
_SECTION: Final = 64
_SEGMENT: Final = 56
_SHF_COMPRESSED: Final = 0x800
# Where a number means an offset, a size, a count or an address.
_INTERESTING: Final = (
    *(0, 1, 2, 7, 8, 23, 24, 63, 64, 4095, 4096, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF),
    *(0x80000000, 0xFFFFFFFF, 0x100000000, 0x7FFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF),
    *(0x8000000000000000, 0xFFFFFFFFFFFFF000, 0xFFFFFFFFFFFFFFF8, 0xFFFFFFFFFFFFFFFF),
)
# (offset, size) of the fields of each header.
_FILE_FIELDS: Final = (
    *((16, 2), (18, 2), (24, 8), (32, 8), (40, 8), (52, 2), (54, 2)),
    *((56, 2), (58, 2), (60, 2), (62, 2)),
)
_SECTION_FIELDS: Final = (
    *((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 8), (56, 8)),
)
_SEGMENT_FIELDS: Final = ((0, 4), (4, 4), (8, 8), (16, 8), (32, 8), (40, 8), (48, 8))
# What the agent reads of a file.
TABLES: Final = (
    *(b".symtab", b".strtab", b".dynsym", b".dynstr", b".gnu.hash", b".hash", b".dynamic"),
    *(b".rela.dyn", b".rela.plt", b".relr.dyn", b".eh_frame", b".eh_frame_hdr", b".plt"),
    *(b".plt.sec", b".plt.got", b".got", b".text", b".note.gnu.build-id", b"__rseq_cs"),
    *(b"__patchable_function_entries", b"__mcount_loc", b"xray_instr_map", b"xray_fn_idx"),
    *(b".gnu_debuglink", b".gnu_debugdata", b".debug_info", b".shstrtab"),
)
# What names are demangled as, and what comes after it as often as there is room.
_NAMES: Final = (b"_Z", b"_ZN", b"_R", b"_RN", b"_ZNSt", b"_Z1fI", b"_RINv")
_PIECES: Final = (
    *(b"P", b"S_", b"I", b"N", b"1a", b"K", b"E", b"T_", b"B_", b"F", b"_", b"R"),
    *(b"B0_", b"NvC1a1b", b"A1_", b"XadL_Z", b"DpT_", b"Z", b"\xff", b"9999999999"),
)
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file and what was done to it.

    Attributes:
        data: The bytes.
        size: Length of the file; what is behind the bytes is a hole.
        steps: In words.
    """

    data: bytes
    size: int
    steps: tuple[str, ...]


class _File:
    def __init__(self, data: bytes, rng: random.Random) -> None:
        self.data = bytearray(data)
        self.hole = 0
        self.rng = rng

    def word(self, at: int, size: int) -> int:
        return int.from_bytes(self.data[at : at + size], "little")

    def set_word(self, at: int, size: int, value: int) -> None:
        if 0 <= at <= len(self.data) - size:
            mask = (1 << (8 * size)) - 1
            self.data[at : at + size] = (value & mask).to_bytes(size, "little")

    def sections(self) -> list[int]:
        """Offsets of the section headers."""
        start, count = self.word(40, 8), self.word(60, 2)
        rows = [start + _SECTION * index for index in range(count)]
        return [at for at in rows if _HEADER <= at <= len(self.data) - _SECTION]

    def segments(self) -> list[int]:
        """Offsets of the program headers."""
        start, count = self.word(32, 8), self.word(56, 2)
        rows = [start + _SEGMENT * index for index in range(count)]
        return [at for at in rows if _HEADER <= at <= len(self.data) - _SEGMENT]

    def name(self, section: int) -> bytes:
        rows = self.sections()
        index = self.word(62, 2)
        if index >= len(rows):
            return b""
        at = self.word(rows[index] + 24, 8) + self.word(section, 4)
        end = self.data.find(b"\0", at, at + 64) if at < len(self.data) else -1
        return bytes(self.data[at:end]) if end > 0 else b""

    def table(self) -> int | None:
        """The header of a section that the agent reads."""
        rows = [at for at in self.sections() if self.name(at) in TABLES]
        return self.rng.choice(rows) if rows else None

    def value(self) -> int:
        """A number that is likely to be in the way."""
        kind = self.rng.random()
        if kind < 0.5:
            return self.rng.choice(_INTERESTING)
        if kind < 0.7:
            return len(self.data) + self.rng.randrange(-65, 65)
        if kind < 0.85 and self.sections():
            section = self.rng.choice(self.sections())
            return self.word(section + self.rng.choice((16, 24, 32)), 8)
        return self.rng.getrandbits(self.rng.choice((4, 8, 16, 32, 64)))


def _flip(file: _File) -> str:
    regions = [(0, 1024), (max(0, len(file.data) - 2500), len(file.data)), (0, len(file.data))]
    count = file.rng.choice((1, 1, 2, 8, 64, 512))
    for _ in range(count):
        low, high = file.rng.choice(regions)
        file.data[file.rng.randrange(low, min(high, len(file.data)))] ^= 1 << file.rng.randrange(8)
    return f"{count} bits flipped"


def _truncate(file: _File) -> str:
    del file.data[file.rng.randrange(len(file.data)) :]
    return f"cut to {len(file.data)} bytes"


def _file_field(file: _File) -> str:
    at, size = file.rng.choice(_FILE_FIELDS)
    value = file.value()
    file.set_word(at, size, value)
    return f"file header +{at} = {value:#x}"


def _section_field(file: _File) -> str:
    section = file.table() if file.rng.random() < 0.8 else None
    if section is None:
        rows = file.sections()
        if not rows:
            return "no sections"
        section = file.rng.choice(rows)
    name = file.name(section).decode(errors="replace")
    at, size = file.rng.choice(_SECTION_FIELDS)
    value = file.value()
    if (at, size) == (8, 8) and file.rng.random() < 0.5:
        value = file.word(section + 8, 8) | _SHF_COMPRESSED
    file.set_word(section + at, size, value)
    return f"section {name} +{at} = {value:#x}"


def _segment_field(file: _File) -> str:
    rows = file.segments()
    if not rows:
        return "no segments"
    at, size = file.rng.choice(_SEGMENT_FIELDS)
    value = file.value()
    file.set_word(file.rng.choice(rows) + at, size, value)
    return f"segment +{at} = {value:#x}"


def _copied_header(file: _File) -> str:
    rows = file.sections()
    if len(rows) < 2:
        return "no sections"
    one, other = file.rng.sample(rows, 2)
    # Without the name: a table that lies on another, or is its own string table.
    start = file.rng.choice((0, 4, 8, 16))
    file.data[one + start : one + _SECTION] = file.data[other + start : other + _SECTION]
    return "a section header over another"


def _renamed(file: _File) -> str:
    rows = file.sections()
    if len(rows) < 2:
        return "no sections"
    wanted = file.table()
    one = file.rng.choice(rows)
    if wanted is None:
        return "no tables"
    file.set_word(one, 4, file.word(wanted, 4))
    return f"a second {file.name(wanted).decode(errors='replace')}"


def _contents(file: _File) -> str:
    section = file.table()
    if section is None:
        return "no tables"
    offset, size = file.word(section + 24, 8), file.word(section + 32, 8)
    end = min(offset + size, len(file.data))
    if offset >= end:
        return "an empty table"
    name = file.name(section).decode(errors="replace")
    start = file.rng.randrange(offset, end) if file.rng.random() < 0.6 else offset
    length = min(end - start, file.rng.choice((1, 4, 8, 24, 32, 256, 1 << 20)))
    kind = file.rng.choice(("noise", "ones", "zeros", "words", "name", "repeated"))
    file.data[start : start + length] = _filling(file, kind, start, length)
    return f"{kind} in {name}, {length} bytes"


def _filling(file: _File, kind: str, start: int, length: int) -> bytes:
    rng = file.rng
    if kind == "ones":
        return b"\xff" * length
    if kind == "zeros":
        return bytes(length)
    if kind == "words":
        width = rng.choice((2, 4, 8))
        words = (file.value() & (1 << (8 * width)) - 1 for _ in range(length // width + 1))
        return b"".join(word.to_bytes(width, "little") for word in words)[:length]
    if kind == "name":
        name = rng.choice(_NAMES)
        pieces = [rng.choice(_PIECES) for _ in range(rng.choice((1, 2, 5)))]
        return (name + b"".join(pieces) * length)[: length - 1] + b"\0" if length > 1 else name[:1]
    if kind == "repeated":
        record = bytes(file.data[start : start + rng.choice((8, 16, 24, 32))]) or b"\0"
        return (record * length)[:length]
    return rng.randbytes(length)


# A table of megabytes, that other tables are pointed at.
def _huge(file: _File) -> str:
    rng = file.rng
    file.data += bytes(-len(file.data) % 4096)
    start, size = len(file.data), rng.choice((1, 4, 16)) * MIB
    pattern = rng.choice(
        (
            b"\xff" * 8,
            b"\1" * 24,
            struct.pack("<QQ", 0x1000, 37),
            struct.pack("<II", 4, 4),
            struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 0x1010, 16),
            struct.pack("<QQQ", 0x1000, 8, 0x1000),
            rng.randbytes(64),
            b"_ZN" + b"1aI" * 100 + b"\0",
        )
    )
    file.data += (pattern * (size // len(pattern) + 1))[:size]
    touched = []
    for _ in range(rng.choice((1, 2, 3))):
        section = file.table()
        if section is None:
            break
        file.set_word(section + 24, 8, start)
        file.set_word(section + 32, 8, size)
        touched.append(file.name(section).decode(errors="replace"))
    touched += [word for word in (_huge_segment(file, start, size),) if word]
    return f"{size} bytes of {pattern[:24].hex()} as {', '.join(touched)}"


# What is found by address: a segment over it, and dynamic entries that name it.
def _huge_segment(file: _File, start: int, size: int) -> str:
    rows = file.segments()
    if not rows or file.rng.random() < 0.4:
        return ""
    address = 0x10000000
    row = file.rng.choice(rows)
    segment = struct.pack("<IIQQQQQQ", 1, 4, start, address, address, size, size, 4096)
    file.data[row : row + _SEGMENT] = segment
    dynamic = [at for at in file.sections() if file.name(at) == b".dynamic"]
    if dynamic:
        offset, length = file.word(dynamic[0] + 24, 8), file.word(dynamic[0] + 32, 8)
        tags = file.rng.choice(((36, 35), (7, 8), (23, 2), (5, 10), (6, 11)))  # RELR, RELA...
        for at, (tag, value) in zip(
            range(offset, min(offset + length, len(file.data) - 16), 16),
            zip(tags, (address, size), strict=True),
            strict=False,
        ):
            file.data[at : at + 16] = struct.pack("<QQ", tag, value)
    return "a segment and dynamic entries"


# A file that is far larger than the memory there is, on no disk space at all.
def _hole(file: _File) -> str:
    file.hole = file.rng.choice((1 << 30, 3 << 30, 1 << 36, 1 << 40))
    for _ in range(file.rng.choice((1, 2))):
        section = file.table()
        if section is not None:
            size = file.hole - file.rng.choice((0, 1 << 20)) - file.word(section + 24, 8)
            file.set_word(section + 32, 8, size)
            if file.name(section) == b".text":
                return "a hole, with code in it"
    return f"a hole of {file.hole:#x} bytes, with tables in it"


_Damage = Callable[[_File], str]
_COMMON: Final[tuple[_Damage, ...]] = (
    *(_flip, _truncate, _file_field, _section_field, _section_field, _section_field),
    *(_segment_field, _copied_header, _renamed, _contents, _contents, _contents),
)
_RARE: Final[tuple[_Damage, ...]] = (_huge, _hole)


def damage(data: bytes, seed: int, rare: float = 0.04) -> Damaged:
    """Damage a sound file in one to four ways.

    Args:
        data: The file.
        seed: Decides what happens.
        rare: Share of the files that become huge.
    """
    rng = random.Random(seed)
    file = _File(data, rng)
    steps = []
    if rng.random() < rare:
        steps.append(rng.choice(_RARE)(file))
    for _ in range(rng.choice((0, 1)) if steps else rng.choice((1, 1, 1, 2, 4))):
        if len(file.data) > _HEADER:
            steps.append(rng.choice(_COMMON)(file))
    return Damaged(bytes(file.data), max(len(file.data), file.hole), tuple(steps))
