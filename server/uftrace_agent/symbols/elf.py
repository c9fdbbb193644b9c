"""ELF64 little-endian: headers, sections, segments, notes, dynamic entries.

Only what the kernel itself relies on (the ELF header and the program headers)
has to be sound. A missing or broken section table is treated as absent, since
programs run without one; a table inside it that turns out damaged raises
`MalformedElfError` when it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from uftrace_agent.symbols.byte_source import ByteSource, MalformedElfError

__all__ = ["ElfFile", "MalformedElfError", "Section", "Segment", "parse_notes"]

EM_X86_64: Final = 62
EM_AARCH64: Final = 183
ET_EXEC: Final = 2
ET_DYN: Final = 3
PT_LOAD: Final = 1
PT_DYNAMIC: Final = 2
PT_NOTE: Final = 4
PT_GNU_EH_FRAME: Final = 0x6474E550
PF_X: Final = 1
SHT_NOBITS: Final = 8
SHF_ALLOC: Final = 2
SHF_EXECINSTR: Final = 4
NT_GNU_BUILD_ID: Final = 3

HEADER_SIZE: Final = 64
SEGMENT_ENTRY_SIZE: Final = 56
_SECTION_ENTRY_SIZE: Final = 64
# Of a section, for which no linker needs more.
_LONGEST_NAME: Final = 1024
# The kernel takes 73 (one page); more would be there to waste our time.
_MOST_SEGMENTS: Final = 128
# User space is far below; and sums stay inside numpy's int64.
_ADDRESS_LIMIT: Final = 1 << 62

_SECTION_DTYPE: Final = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("address", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("alignment", "<u8"),
        ("entry_size", "<u8"),
    ]
)


@dataclass(frozen=True, slots=True)
class Section:
    """A section header; addresses are link-time, sizes in bytes."""

    index: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    entry_size: int

    @property
    def executable(self) -> bool:
        """Whether it holds code that is loaded."""
        return self.flags & (SHF_ALLOC | SHF_EXECINSTR) == SHF_ALLOC | SHF_EXECINSTR


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header; addresses are link-time, sizes in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int
    alignment: int

    @property
    def executable(self) -> bool:
        """Whether it is loaded as code."""
        return self.type == PT_LOAD and bool(self.flags & PF_X)


class ElfFile:
    """The structure of one ELF file.

    Attributes:
        source: The file's bytes.
        elf_type: `e_type` (2 fixed address, 3 shared object or PIE).
        machine: `e_machine`.
        entry: Link-time address of the entry point.

    Raises:
        MalformedElfError: On construction or on any later access: not an
            ELF64 little-endian file, or damaged.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        if source.size < HEADER_SIZE:
            raise MalformedElfError("too short for an ELF header")
        header = source.read(0, HEADER_SIZE)
        if header[:4] != b"\x7fELF":
            raise MalformedElfError("not an ELF file")
        if header[4:6] != b"\x02\x01":
            raise MalformedElfError("not a 64-bit little-endian ELF file", reason="NOT_ELF64")
        self.elf_type: int
        self.machine: int
        self.entry: int
        (
            self.elf_type,
            self.machine,
            _version,
            self.entry,
            self._segments_offset,
            self._sections_offset,
            _flags,
            _header_size,
            self._segment_entry_size,
            self._segment_count,
            self._section_entry_size,
            self._section_count,
            self._names_index,
        ) = struct.unpack("<HHIQQQIHHHHHH", header[16:])
        self.segments = self._read_segments()

    def _read_segments(self) -> tuple[Segment, ...]:
        if self._segment_count == 0:
            return ()
        if self._segment_entry_size != SEGMENT_ENTRY_SIZE:
            raise MalformedElfError("program headers of an unknown size")
        if self._segment_count > _MOST_SEGMENTS:
            raise MalformedElfError(f"more than {_MOST_SEGMENTS} program headers")
        table = self.source.read(self._segments_offset, self._segment_count * SEGMENT_ENTRY_SIZE)
        return parse_segments(table)

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """All section headers; none where the file has no usable table."""
        table = self._section_table()
        if not len(table):
            return ()
        count = len(table)
        names_index = self._names_index
        if names_index == 0xFFFF:  # SHN_XINDEX: the real index is in section 0
            names_index = int(table[0]["link"])
        names = b""
        if names_index < count and table[names_index]["type"] != SHT_NOBITS:
            header = table[names_index]
            start, size = int(header["offset"]), int(header["size"])
            if start + size <= self.source.size:
                names = self.source.read(start, size)
        return tuple(
            Section(
                index,
                _string_at(names, row[0]),
                row[1],
                row[2],
                row[3],
                row[4],
                row[5],
                row[6],
                row[9],
            )
            for index, row in enumerate(table.tolist())
        )

    def _section_table(self) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        offset, count, size = self._sections_offset, self._section_count, self.source.size
        empty = np.empty(0, _SECTION_DTYPE)
        if offset == 0 or self._section_entry_size != _SECTION_ENTRY_SIZE:
            return empty
        if offset + _SECTION_ENTRY_SIZE > size:
            return empty
        if count == 0:  # 65,280 sections and more: the count is in section 0
            first = np.frombuffer(self.source.read(offset, _SECTION_ENTRY_SIZE), _SECTION_DTYPE)
            count = int(first[0]["size"])
        if offset + count * _SECTION_ENTRY_SIZE > size:
            return empty
        return np.frombuffer(self.source.read(offset, count * _SECTION_ENTRY_SIZE), _SECTION_DTYPE)

    @cached_property
    def _sections_by_name(self) -> dict[str, Section]:
        return {section.name: section for section in reversed(self.sections)}

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return self._sections_by_name.get(name)

    def section_data(self, section: Section | None) -> bytes:
        """The section's bytes; empty for None and for NOBITS sections."""
        if section is None or section.type == SHT_NOBITS:
            return b""
        return self.source.read(section.offset, section.size)

    def segment_of_type(self, segment_type: int) -> Segment | None:
        """The first program header of that type."""
        return next((s for s in self.segments if s.type == segment_type), None)

    @cached_property
    def loads(self) -> tuple[Segment, ...]:
        """The PT_LOAD segments, by address."""
        return tuple(sorted((s for s in self.segments if s.type == PT_LOAD), key=lambda s: s.vaddr))

    @cached_property
    def executable_ranges(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of executable sections, or segments where there are no sections.

        Only what is inside an executable segment counts. Sorted by address.
        """
        segments = [(s.vaddr, s.vaddr + s.memsz) for s in self.loads if s.executable]
        sections = [(s.address, s.address + s.size) for s in self.sections if s.executable]
        if not sections:
            return tuple(segments)
        clipped = (
            (max(start, low), min(end, high)) for start, end in sections for low, high in segments
        )
        return tuple(sorted((start, end) for start, end in clipped if start < end))

    def vaddr_to_offset(self, vaddr: int) -> int | None:
        """File offset of a link-time address; None where the file has no byte for it."""
        for segment in self.loads:
            if segment.vaddr <= vaddr < segment.vaddr + segment.filesz:
                return vaddr - segment.vaddr + segment.offset
        return None

    def read_at(self, vaddr: int, length: int) -> bytes:
        """Up to `length` bytes of the segment at an address; empty outside of segments."""
        for segment in self.loads:
            if segment.vaddr <= vaddr < segment.vaddr + segment.filesz:
                skip = vaddr - segment.vaddr
                return self.source.read(
                    segment.offset + skip, max(0, min(length, segment.filesz - skip))
                )
        return b""

    @cached_property
    def dynamic(self) -> dict[int, int]:
        """Tag to value of the dynamic segment, the first of each tag."""
        segment = self.segment_of_type(PT_DYNAMIC)
        if segment is None:
            return {}
        data = self.source.read(segment.offset, segment.filesz // 16 * 16)
        entries: dict[int, int] = {}
        for tag, value in struct.iter_unpack("<QQ", data):
            if tag == 0:
                break
            entries.setdefault(tag, value)
        return entries

    @cached_property
    def build_id(self) -> str:
        """The GNU build id in hex; empty where there is none."""
        for segment in self.segments:
            if segment.type == PT_NOTE and segment.filesz:
                found = build_id_of_notes(self.source.read(segment.offset, segment.filesz))
                if found:
                    return found
        return build_id_of_notes(self.section_data(self.section(".note.gnu.build-id")))


def parse_segments(table: bytes) -> tuple[Segment, ...]:
    """Program headers from their bytes.

    Raises:
        MalformedElfError: A loaded segment wraps around the address space.
    """
    segments = []
    for kind, flags, offset, vaddr, _paddr, filesz, memsz, alignment in struct.iter_unpack(
        "<IIQQQQQQ", table
    ):
        if kind == PT_LOAD and (vaddr + memsz > _ADDRESS_LIMIT or filesz > memsz):
            raise MalformedElfError("a loaded segment has impossible bounds")
        segments.append(Segment(kind, flags, offset, vaddr, filesz, memsz, alignment))
    return tuple(segments)


def parse_notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """(owner, type, description) of each note; stops at the first that is damaged."""
    position = 0
    while position + 12 <= len(data):
        name_size, description_size, kind = struct.unpack_from("<III", data, position)
        position += 12
        name_end = position + name_size
        start = position + (name_size + 3 & ~3)
        end = start + description_size
        if end > len(data):
            return
        yield data[position:name_end].rstrip(b"\0"), kind, data[start:end]
        position = start + (description_size + 3 & ~3)


def build_id_of_notes(data: bytes) -> str:
    """The GNU build id in hex out of the bytes of a note segment; empty if none."""
    for owner, kind, description in parse_notes(data):
        if owner == b"GNU" and kind == NT_GNU_BUILD_ID:
            return description.hex()
    return ""


def _string_at(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset, offset + _LONGEST_NAME)
    if end < 0:
        table = table[: offset + _LONGEST_NAME]
    return table[offset : end if end >= 0 else None].decode("utf-8", "backslashreplace")
