"""Bounds of functions out of .eh_frame: what is left in stripped binaries.

`.eh_frame_hdr` has a table of all FDEs sorted by address, so that starts and
sizes are read with a handful of numpy operations. Files without it are walked
entry by entry. Format: LSB Core 5.0, chapter 10.6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.symbols.elf import PT_GNU_EH_FRAME, ElfFile, MalformedElfError

_HEADER_ENCODING: Final = 0x3B  # datarel | sdata4: what every linker writes
_SIZES: Final = {0x0: 8, 0x2: 2, 0x3: 4, 0x4: 8, 0xA: 2, 0xB: 4, 0xC: 8}
_SIGNED: Final = frozenset({0xA, 0xB, 0xC})
_PCREL: Final = 0x10
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class FrameBounds:
    """Function bounds by link-time address, sorted, one per start.

    Attributes:
        start: Link-time address.
        size: Bytes, never 0.
        is_entry: The frame is as after a call: the return address is where the
            caller put it. False for cold parts of functions, which are jumped
            to with a frame in place, and for code that never returns.
    """

    start: NDArray[np.uint64]
    size: NDArray[np.uint64]
    is_entry: NDArray[np.bool_]

    def of_starts(
        self, addresses: NDArray[np.uint64]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """For each address a row of this table, and whether that row starts exactly there."""
        if not len(self.start):
            return np.zeros(len(addresses), np.intp), np.zeros(len(addresses), np.bool_)
        rows = np.minimum(np.searchsorted(self.start, addresses), len(self.start) - 1)
        return rows, self.start[rows] == addresses


@dataclass(frozen=True, slots=True)
class _Cie:
    encoding: int
    is_signal_frame: bool
    has_augmentation_data: bool


class _UnreadableFrameError(Exception):
    pass


def read_frame_bounds(elf: ElfFile) -> FrameBounds:
    """Bounds of all FDEs except those of signal trampolines.

    The FDE of a signal trampoline (augmentation `S`) starts one byte before
    its function, and nobody wants to patch it.

    Raises:
        MalformedElfError: The section lies outside of the file.
    """
    header = elf.segment_of_type(PT_GNU_EH_FRAME)
    if header is not None:
        try:
            return _bounds_by_header(elf, header.vaddr)
        except _UnreadableFrameError:
            pass  # an unusual encoding, or a damaged table: walk the section
    section = elf.section(".eh_frame")
    if section is None:
        return _bounds_by_walk(b"", 0)
    return _bounds_by_walk(elf.section_data(section), section.address)


def _sorted(
    start: NDArray[np.uint64], size: NDArray[np.uint64], is_entry: NDArray[np.bool_]
) -> FrameBounds:
    keep = size > 0
    unique, first = np.unique(start[keep], return_index=True)
    return FrameBounds(unique, size[keep][first], is_entry[keep][first])


def _bounds_by_header(elf: ElfFile, base: int) -> FrameBounds:
    header = elf.read_at(base, 12)
    if len(header) < 12 or header[0] != 1 or header[3] != _HEADER_ENCODING:
        raise _UnreadableFrameError
    if header[1] != 0x1B or header[2] != 0x03:  # pcrel sdata4, absolute udata4
        raise _UnreadableFrameError
    frame_relative, count = struct.unpack_from("<iI", header, 4)
    frame_base = base + 4 + frame_relative
    data = elf.read_at(base + 12, count * 8)
    table = np.frombuffer(data[: len(data) // 8 * 8], "<i4").reshape(-1, 2).astype(np.int64)
    if len(table) < count:
        raise _UnreadableFrameError
    frame = elf.read_at(frame_base, _MASK)
    starts = table[:, 0] + base
    positions = table[:, 1] + (base - frame_base)
    buffer = np.frombuffer(frame, np.uint8)
    # Length, CIE pointer, start and range take 8 + 16 bytes at most.
    inside = (positions >= 0) & (positions + 8 <= len(buffer)) & (starts > 0)
    starts, positions = starts[inside], positions[inside]
    lengths = _gather(buffer, positions, 4)
    if (lengths == 0xFFFFFFFF).any():
        raise _UnreadableFrameError  # 64-bit DWARF
    cies = positions + 4 - _gather(buffer, positions + 4, 4)
    sizes = np.zeros(len(positions), np.uint64)
    is_entry = np.ones(len(positions), np.bool_)
    unique_cies, cie_of_row = np.unique(cies, return_inverse=True)
    layouts = np.array([_fde_layout(frame, cie) for cie in unique_cies.tolist()], np.int64)
    for width, has_data in ((2, 1), (4, 1), (8, 1), (2, 0), (4, 0), (8, 0)):
        rows = np.flatnonzero((layouts == width << 1 | has_data)[cie_of_row])
        rows = rows[positions[rows] + 8 + 2 * width <= len(buffer)]
        fields = positions[rows] + 8
        sizes[rows] = _gather(buffer, fields + width, width).astype(np.uint64)
        ends = np.minimum(positions[rows] + 4 + lengths[rows], len(buffer))
        is_entry[rows] = _starts_as_called(buffer, fields + 2 * width, ends, bool(has_data))
    return _sorted(starts.astype(np.uint64), sizes, is_entry)


# Whether the call frame instructions at `cursor` leave the state of the CIE as
# it is for the first instruction of the code: an FDE of a whole function
# begins with an advance, one of a cold part sets up where the frame is.
def _starts_as_called(
    buffer: NDArray[np.uint8],
    cursor: NDArray[np.int64],
    end: NDArray[np.int64],
    has_augmentation_data: bool,
) -> NDArray[np.bool_]:
    padded = np.concatenate([buffer, np.zeros(1, np.uint8)])
    if has_augmentation_data:
        cursor = cursor + 1 + padded[np.minimum(cursor, len(buffer))]
    opcode = padded[np.minimum(cursor, len(buffer))]
    advance = (opcode & 0xC0) == 0x40
    nop_or_advance = np.isin(opcode, (0x00, 0x01, 0x02, 0x03, 0x04))
    as_called: NDArray[np.bool_] = (cursor >= end) | advance | nop_or_advance
    return as_called


# Little-endian unsigned numbers of `width` bytes at unaligned positions.
def _gather(
    buffer: NDArray[np.uint8], positions: NDArray[np.int64], width: int
) -> NDArray[np.int64]:
    result = np.zeros(len(positions), np.int64)
    for byte in range(width):
        result |= buffer[positions + byte].astype(np.int64) << (8 * byte)
    return result


# Twice the bytes of an FDE's start field, plus 1 if augmentation data follow
# its range field; 0 for FDEs to leave out.
def _fde_layout(frame: bytes, cie_position: int) -> int:
    cie = _parse_cie(frame, cie_position)
    if cie is None or cie.is_signal_frame:
        return 0
    return _SIZES.get(cie.encoding & 0x0F, 0) << 1 | cie.has_augmentation_data


def _parse_cie(frame: bytes, position: int) -> _Cie | None:
    if not 0 <= position <= len(frame) - 9:
        return None
    length, cie_id = struct.unpack_from("<II", frame, position)
    end = position + 4 + length
    if cie_id != 0 or end > len(frame):
        return None
    cursor = position + 8
    version = frame[cursor]
    augmentation_end = frame.find(b"\0", cursor + 1, end)
    if augmentation_end < 0:
        return None
    augmentation = frame[cursor + 1 : augmentation_end]
    cursor = augmentation_end + 1
    if not augmentation.startswith(b"z"):
        return _Cie(0, False, False)  # no encoding given: absolute addresses
    try:
        cursor = _skip_leb128(frame, _skip_leb128(frame, cursor))  # code, data alignment
        cursor = cursor + 1 if version == 1 else _skip_leb128(frame, cursor)  # return register
        cursor = _skip_leb128(frame, cursor)  # length of the augmentation data
        encoding = 0
        for letter in augmentation[1:]:
            if letter == ord("R"):
                encoding = frame[cursor]
                cursor += 1
            elif letter == ord("P"):
                cursor += 1 + _SIZES[frame[cursor] & 0x0F]
            elif letter == ord("L"):
                cursor += 1
    except (IndexError, KeyError):
        return None
    return _Cie(encoding, b"S" in augmentation, True)


def _skip_leb128(data: bytes, cursor: int) -> int:
    while data[cursor] & 0x80:
        cursor += 1
    return cursor + 1


def _bounds_by_walk(frame: bytes, base: int) -> FrameBounds:
    rows: list[tuple[int, int, bool]] = []
    cies: dict[int, _Cie | None] = {}
    position = 0
    while position + 8 <= len(frame):
        length, pointer = struct.unpack_from("<II", frame, position)
        if length == 0 or length == 0xFFFFFFFF:  # the terminator; 64-bit DWARF is not in use
            break
        if pointer != 0:
            cie_position = position + 4 - pointer
            if cie_position not in cies:
                cies[cie_position] = _parse_cie(frame, cie_position)
            cie = cies[cie_position]
            if cie is not None:
                end = min(position + 4 + length, len(frame))
                rows.extend(_read_fde(frame, position, end, cie, base))
        position += 4 + length
    starts = np.array([row[0] for row in rows], np.uint64)
    sizes = np.array([row[1] for row in rows], np.uint64)
    return _sorted(starts, sizes, np.array([row[2] for row in rows], np.bool_))


# One (start, size, is entry), or nothing for FDEs to leave out.
def _read_fde(
    frame: bytes, position: int, end: int, cie: _Cie, base: int
) -> list[tuple[int, int, bool]]:
    width = _SIZES.get(cie.encoding & 0x0F)
    relative = cie.encoding & 0xF0
    field = position + 8
    if cie.is_signal_frame or width is None or relative not in (0, _PCREL):
        return []
    if field + 2 * width > len(frame):
        return []
    signed = cie.encoding & 0x0F in _SIGNED
    start = int.from_bytes(frame[field : field + width], "little", signed=signed)
    if relative == _PCREL:
        start += base + field
    size = int.from_bytes(frame[field + width : field + 2 * width], "little")
    cursor = field + 2 * width
    if cie.has_augmentation_data and cursor < end:
        cursor += 1 + frame[cursor]
    opcode = frame[cursor] if cursor < end else 0
    is_entry = opcode <= 4 or opcode & 0xC0 == 0x40
    return [(start & _MASK, size, is_entry)] if start & _MASK else []


__all__ = ["FrameBounds", "MalformedElfError", "read_frame_bounds"]
