"""Symbols that live outside of the file: debug files, and .gnu_debugdata.

A file of a container is looked up inside the container's root, with symbolic
links resolved there too (openat2, RESOLVE_IN_ROOT), so that a container cannot
make the agent open files of the host.
"""

from __future__ import annotations

import ctypes
import lzma
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from uftrace_agent.symbols.byte_source import FileSource, MemorySource
from uftrace_agent.symbols.elf import ElfFile, MalformedElfError

_DEBUG_ROOT: Final = "usr/lib/debug"
_SYS_OPENAT2: Final = 437  # the same number on every architecture
_RESOLVE_IN_ROOT: Final = 0x10
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_CRC_CHUNK: Final = 1 << 22
# A debug file with a CRC but no build id has to be read whole; beyond this it is not worth it.
_LARGEST_CHECKED_FILE: Final = 1 << 31
_LARGEST_DEBUGDATA: Final = 256 << 20


def open_debug_file(elf: ElfFile, directory: str, root: str) -> ElfFile | None:
    """The separate debug file of a file, checked to belong to it.

    Args:
        elf: The file.
        directory: Where the file is, as seen inside `root`.
        root: Root directory of the process, such as `/proc/PID/root`. Debug
            files of the agent's own root serve too when the build id agrees.
    """
    build_id = elf.build_id
    link = _debug_link(elf)
    candidates: list[tuple[str, str, int | None]] = []
    roots = [root] if os.path.abspath(root) == "/" else [root, "/"]
    if len(build_id) > 4:
        name = f"{_DEBUG_ROOT}/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
        candidates += [(where, name, None) for where in roots]
    if link is not None:
        name, checksum = link[0], link[1]
        inside = directory.strip("/")
        for path in (f"{inside}/{name}", f"{inside}/.debug/{name}"):
            candidates.append((root, path, checksum))
        candidates += [(where, f"{_DEBUG_ROOT}/{inside}/{name}", checksum) for where in roots]
    for where, path, expected_crc in candidates:
        source = _open_below(where, path)
        if source is None:
            continue
        found = _checked(source, build_id, expected_crc)
        if found is not None:
            return found
        source.close()
    return None


def _checked(source: FileSource, build_id: str, checksum: int | None) -> ElfFile | None:
    try:
        found = ElfFile(source)
        if build_id and found.build_id:
            return found if found.build_id == build_id else None
        if checksum is None or source.size > _LARGEST_CHECKED_FILE:
            return None
        crc = 0
        for offset in range(0, source.size, _CRC_CHUNK):
            crc = zlib.crc32(source.read(offset, min(_CRC_CHUNK, source.size - offset)), crc)
        return found if crc == checksum else None
    except (MalformedElfError, OSError):
        return None  # a broken debug file must not make the program untraceable


def _debug_link(elf: ElfFile) -> tuple[str, int] | None:
    data = elf.section_data(elf.section(".gnu_debuglink"))
    end = data.find(b"\0")
    checksum_at = end + 4 & ~3
    if end <= 0 or checksum_at + 4 > len(data):
        return None
    name = os.path.basename(data[:end].decode("utf-8", "surrogateescape"))
    if name in ("", ".", ".."):
        return None
    return name, struct.unpack_from("<I", data, checksum_at)[0]


def _open_below(root: str, path: str) -> FileSource | None:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        name = os.fsencode(path)
        if b"\0" in name:
            return None
        how = struct.pack("<QQQ", flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        descriptor = ctypes.CDLL(None).syscall(_SYS_OPENAT2, directory, name, how, len(how))
    finally:
        os.close(directory)
    if descriptor < 0:
        return None
    try:
        return FileSource(descriptor)
    except MalformedElfError:
        return None


def open_embedded_debug_data(elf: ElfFile) -> ElfFile | None:
    """The small ELF file with a .symtab that is packed in .gnu_debugdata, if any."""
    packed = elf.section_data(elf.section(".gnu_debugdata"))
    if not packed:
        return None
    unpacker = lzma.LZMADecompressor(memlimit=_LARGEST_DEBUGDATA)
    try:
        data = unpacker.decompress(packed, max_length=_LARGEST_DEBUGDATA)
        return ElfFile(MemorySource(data)) if unpacker.eof else None
    except (lzma.LZMAError, MalformedElfError):
        return None


def symbol_files(elf: ElfFile, directory: str, root: str) -> Iterator[ElfFile]:
    """The files that hold further symbols of a file, the best first."""
    separate = open_debug_file(elf, directory, root)
    if separate is not None:
        yield separate
    embedded = open_embedded_debug_data(elf)
    if embedded is not None:
        yield embedded
