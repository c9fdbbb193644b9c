"""Which files a process has mapped as code, and where.

Load biases come from the program headers, not from guesses about offsets: one
file may be mapped several times (dlmopen), its text may be split by mprotect,
and neighbouring segments may share a page of the file.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from uftrace_agent.symbols.byte_source import FileSource
from uftrace_agent.symbols.elf import (
    HEADER_SIZE,
    PT_LOAD,
    PT_NOTE,
    SEGMENT_ENTRY_SIZE,
    ElfFile,
    MalformedElfError,
    Segment,
    build_id_of_notes,
    parse_segments,
)

ReadMemory = Callable[[int, int], bytes]

_PAGE: Final = mmap.PAGESIZE
_DELETED_SUFFIX: Final = " (deleted)"
_LARGEST_NOTES: Final = 1 << 16
_LINE: Final = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<permissions>[-rwxsp]{4}) (?P<offset>[0-9a-f]+) "
    r"(?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+) (?P<inode>\d+)[ \t]*(?P<path>.*)"
)
_SPECIAL: Final = ("[vdso]", "[vsyscall]", "[uprobes]")


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    offset: int
    device: int
    inode: int
    path: str

    @property
    def executable(self) -> bool:
        """Whether code can run there."""
        return "x" in self.permissions


@dataclass(frozen=True, slots=True)
class TextRange:
    """A live range of a module's code."""

    start: int
    end: int
    file_offset: int
    shared: bool


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """An ELF file that is mapped as code.

    Attributes:
        path: As the process knows it, without " (deleted)".
        start: First live address of the image.
        end: Live address after its last segment.
        load_bias: Live address minus link-time address.
        dev: Device of the file.
        inode: Inode of the file.
        deleted: The file is no longer at `path`.
        replaced: The file at `open_path` is not what is mapped.
        text_ranges: The parts that are code.
        open_path: The best way to open the mapped file.
        is_main: The program itself.
        build_id: Out of the process's memory, or the file where memory
            does not tell; empty if neither does.
    """

    path: str
    start: int
    end: int
    load_bias: int
    dev: int
    inode: int
    deleted: bool
    replaced: bool
    text_ranges: tuple[TextRange, ...]
    open_path: str
    is_main: bool
    build_id: str


@dataclass(frozen=True, slots=True)
class ProcessModules:
    """All code of a process.

    Attributes:
        modules: ELF files, by address.
        vdso: (start, end) of the kernel's library, None where there is none.
        anonymous_code: (start, end) of code that belongs to no ELF file:
            just-in-time compilers and the like.
    """

    modules: tuple[LoadedModule, ...]
    vdso: tuple[int, int] | None
    anonymous_code: tuple[tuple[int, int], ...]

    @property
    def main(self) -> LoadedModule | None:
        """The program itself."""
        return next((module for module in self.modules if module.is_main), None)

    def at_address(self, address: int) -> LoadedModule | None:
        """The module whose code has a live address."""
        for module in self.modules:
            if any(text.start <= address < text.end for text in module.text_ranges):
                return module
        return None


@dataclass(frozen=True, slots=True)
class _Headers:
    segments: tuple[Segment, ...]
    build_id: str


def parse_maps(text: str) -> list[Mapping]:
    """The lines of /proc/PID/maps; lines that make no sense are left out."""
    mappings = []
    for line in text.split("\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        mappings.append(
            Mapping(
                int(match["start"], 16),
                int(match["end"], 16),
                match["permissions"],
                int(match["offset"], 16),
                os.makedev(int(match["major"], 16), int(match["minor"], 16)),
                int(match["inode"]),
                match["path"].replace("\\012", "\n"),  # all that the kernel escapes
            )
        )
    return mappings


def list_modules(maps_text: str, proc: str, read_memory: ReadMemory) -> ProcessModules:
    """What code a process has.

    Args:
        maps_text: Content of /proc/PID/maps.
        proc: The directory `/proc/PID`.
        read_memory: Reads the process's memory; may raise OSError.
    """
    mappings = parse_maps(maps_text)
    main = _MainProgram.of(proc)
    by_file: dict[tuple[int, int, str], list[Mapping]] = {}
    anonymous: list[tuple[int, int]] = []
    vdso = None
    for mapping in mappings:
        if mapping.path == "[vdso]":
            vdso = (mapping.start, mapping.end)
        elif mapping.inode:
            by_file.setdefault((mapping.device, mapping.inode, mapping.path), []).append(mapping)
        elif mapping.executable and mapping.path not in _SPECIAL:
            anonymous.append((mapping.start, mapping.end))
    modules: list[LoadedModule] = []
    for group in by_file.values():
        if not any(mapping.executable for mapping in group):
            continue
        found = _modules_of_file(group, proc, read_memory, main)
        modules.extend(found)
        known = {text.start for module in found for text in module.text_ranges}
        anonymous.extend((m.start, m.end) for m in group if m.executable and m.start not in known)
    modules.sort(key=lambda module: module.start)
    return ProcessModules(tuple(modules), vdso, tuple(sorted(anonymous)))


@dataclass(frozen=True, slots=True)
class _MainProgram:
    device: int
    inode: int
    path: str

    @classmethod
    def of(cls, proc: str) -> _MainProgram:
        link = f"{proc}/exe"
        try:
            status = os.stat(link)
            return cls(status.st_dev, status.st_ino, os.readlink(link))
        except OSError:
            return cls(0, 0, "")

    # Some file systems (btrfs, overlayfs) show another device in maps than in stat.
    def is_file_of(self, mapping: Mapping) -> bool:
        if (mapping.device, mapping.inode) == (self.device, self.inode):
            return True
        return bool(self.path) and mapping.inode == self.inode and mapping.path == self.path


def _modules_of_file(
    group: Sequence[Mapping], proc: str, read_memory: ReadMemory, main: _MainProgram
) -> list[LoadedModule]:
    path = group[0].path
    deleted = path.endswith(_DELETED_SUFFIX)
    path = path.removesuffix(_DELETED_SUFFIX)
    is_main = main.is_file_of(group[0])
    open_path, on_disk = _open_best(group, proc, path, is_main)
    in_memory = _headers_in_memory(group, read_memory)
    # Memory tells what is mapped; the file may be another one by now.
    headers = in_memory or on_disk
    if headers is None:
        return []
    replaced = on_disk is not None and in_memory is not None and _differ(on_disk, in_memory)
    loads = [segment for segment in headers.segments if segment.type == PT_LOAD]
    modules = []
    for bias, texts in _texts_by_bias(group, loads).items():
        modules.append(
            LoadedModule(
                path=path,
                start=bias + min(_floor(load.vaddr) for load in loads),
                end=bias + max(_ceil(load.vaddr + load.memsz) for load in loads),
                load_bias=bias,
                dev=group[0].device,
                inode=group[0].inode,
                deleted=deleted,
                replaced=replaced,
                text_ranges=tuple(
                    TextRange(m.start, m.end, m.offset, m.permissions[3] == "s") for m in texts
                ),
                open_path=open_path,
                is_main=is_main,
                build_id=headers.build_id or (on_disk.build_id if on_disk else ""),
            )
        )
    return modules


def _texts_by_bias(group: Iterable[Mapping], loads: Sequence[Segment]) -> dict[int, list[Mapping]]:
    texts: dict[int, list[Mapping]] = {}
    for mapping in group:
        if not mapping.executable:
            continue
        biases = [
            mapping.start - mapping.offset - (load.vaddr - load.offset)
            for load in loads
            if load.executable
            and _floor(load.offset) <= mapping.offset < _ceil(load.offset + load.filesz)
        ]
        # Two segments may share a page of the file; then only one of them fits the rest.
        known = next((bias for bias in biases if bias in texts), None)
        if biases:
            texts.setdefault(biases[0] if known is None else known, []).append(mapping)
    return texts


# map_files reaches the mapped inode itself, whatever became of its name, but
# needs privileges; /proc/PID/exe does so for the program.
def _open_best(
    group: Sequence[Mapping], proc: str, path: str, is_main: bool
) -> tuple[str, _Headers | None]:
    first = group[0]
    candidates = [f"{proc}/map_files/{first.start:x}-{first.end:x}"]
    if is_main:
        candidates.append(f"{proc}/exe")
    candidates.append(f"{proc}/root{path}")
    for candidate in candidates:
        try:
            source = FileSource.open(candidate)
        except (OSError, ValueError, MalformedElfError):
            continue
        try:
            elf = ElfFile(source)
            return candidate, _Headers(elf.segments, elf.build_id)
        except (OSError, MalformedElfError):
            return candidate, None
        finally:
            source.close()
    return candidates[-1], None


def _headers_in_memory(group: Iterable[Mapping], read_memory: ReadMemory) -> _Headers | None:
    first = next((m for m in group if m.offset == 0 and "r" in m.permissions), None)
    if first is None:
        return None
    try:
        header = read_memory(first.start, HEADER_SIZE)
        if len(header) < HEADER_SIZE or header[:6] != b"\x7fELF\x02\x01":
            return None
        table_offset = struct.unpack_from("<Q", header, 32)[0]
        entry_size, count = struct.unpack_from("<HH", header, 54)
        size = count * SEGMENT_ENTRY_SIZE
        if entry_size != SEGMENT_ENTRY_SIZE or table_offset + size > first.end - first.start:
            return None
        segments = parse_segments(read_memory(first.start + table_offset, size))
        origin = next((s for s in segments if s.type == PT_LOAD and _floor(s.offset) == 0), None)
        if origin is None:
            return None
        bias = first.start - _floor(origin.vaddr)
        for segment in segments:
            if segment.type == PT_NOTE and 0 < segment.memsz <= _LARGEST_NOTES:
                notes = read_memory(bias + segment.vaddr, segment.memsz)
                build_id = build_id_of_notes(notes)
                if build_id:
                    return _Headers(segments, build_id)
        return _Headers(segments, "")
    except (OSError, OverflowError, ValueError, struct.error, MalformedElfError):
        return None  # the process may have anything there


def _differ(on_disk: _Headers, in_memory: _Headers) -> bool:
    if on_disk.build_id and in_memory.build_id:
        return on_disk.build_id != in_memory.build_id
    return on_disk.segments != in_memory.segments


def _floor(address: int) -> int:
    return address & ~(_PAGE - 1)


def _ceil(address: int) -> int:
    return address + _PAGE - 1 & ~(_PAGE - 1)
