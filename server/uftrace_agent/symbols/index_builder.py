"""Makes the function table of a file out of all that is known about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.symbols.eh_frame import FrameBounds
from uftrace_agent.symbols.elf_tables import (
    SHN_ABS,
    SHN_COMMON,
    SHN_UNDEF,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    STT_GNU_IFUNC,
    STT_NOTYPE,
    SymbolTable,
)
from uftrace_agent.symbols.function_table import (
    FLAG_FRAGMENT,
    FLAG_LOCAL,
    FLAG_SYNTHETIC,
    FunctionKind,
    FunctionTable,
)

# Which of several names at one address is shown; the lowest wins. Names that
# people write (`write`, weak) go before those of the implementation (`__write`,
# global), and anything visible before anything local.
_RANK_WEAK: Final = 1
_RANK_UNDERSCORE: Final = 2
_RANK_LABEL: Final = 8
_RANK_LOCAL: Final = 16
_RANK_STUB: Final = 64
_RANK_SYNTHETIC: Final = 128


@dataclass(frozen=True, slots=True)
class NamedStub:
    """A PLT stub under the name it is shown as."""

    address: int
    size: int
    name: str


@dataclass(frozen=True, slots=True)
class CodeRanges:
    """Ranges of link-time addresses, sorted."""

    starts: NDArray[np.uint64]
    ends: NDArray[np.uint64]

    @classmethod
    def of(cls, ranges: Sequence[tuple[int, int]]) -> CodeRanges:
        """From (start, end) pairs; those that overlap are merged."""
        merged: list[list[int]] = []
        for start, end in sorted(ranges):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        return cls(
            np.array([low for low, _ in merged], np.uint64),
            np.array([min(high, (1 << 64) - 1) for _, high in merged], np.uint64),
        )

    def contain(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of the addresses lie inside."""
        return self.room_at(addresses) > 0

    def room_at(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Bytes from each address to the end of its range; 0 outside."""
        if not len(self.starts):
            return np.zeros(len(addresses), np.uint64)
        row = np.searchsorted(self.starts, addresses, side="right").astype(np.int64) - 1
        end = self.ends[np.maximum(row, 0)]
        inside = (row >= 0) & (addresses < end)
        return np.where(inside, end - addresses, np.uint64(0))


@dataclass(frozen=True, slots=True)
class _Rows:
    address: NDArray[np.uint64]
    size: NDArray[np.uint64]
    kind: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    rank: NDArray[np.uint8]
    names: list[bytes]


def build_function_table(
    symbols: Sequence[SymbolTable],
    frames: FrameBounds,
    stubs: Sequence[NamedStub],
    code: CodeRanges,
    plt: CodeRanges,
    module_name: str,
) -> FunctionTable:
    """Merge all sources into one table.

    Args:
        symbols: Symbol tables, the most trusted first.
        frames: Bounds from unwind data.
        stubs: PLT stubs.
        code: Where functions may be.
        plt: Where only stubs are.
        module_name: What functions without a name are called after.

    Returns:
        One entry per address.
    """
    parts = [_rows_of_symbols(table, frames, code) for table in symbols]
    parts.append(_rows_of_stubs(stubs))
    parts.append(_rows_of_frames(_joined(parts), frames, code, plt, module_name))
    return _fold(_joined(parts), frames, code)


def _rows_of_symbols(table: SymbolTable, frames: FrameBounds, code: CodeRanges) -> _Rows:
    entries = table.entries
    kind = entries["info"] & 0xF
    bind = entries["info"] >> 4
    shndx = entries["shndx"]
    typed = (kind == STT_FUNC) | (kind == STT_GNU_IFUNC)
    usable = (typed | (kind == STT_NOTYPE)) & (entries["name"] != 0)
    usable &= (shndx != SHN_UNDEF) & (shndx != SHN_ABS) & (shndx != SHN_COMMON)
    rows = np.flatnonzero(usable)
    rows = rows[code.contain(entries["value"][rows].astype(np.uint64))]
    address = entries["value"][rows].astype(np.uint64)
    # A local label counts where unwind data say that a function starts there.
    _, starts_frame = frames.of_starts(address)
    rows = rows[typed[rows] | (bind[rows] != STB_LOCAL) | starts_frame]
    names = _plain_names(table.names(rows))
    # AArch64 mapping symbols ($x, $d) are marks, and no name is no function.
    named = np.array([bool(name) and name[:1] != b"$" for name in names], np.bool_)
    rows, names = rows[named], [name for name, keep in zip(names, named, strict=True) if keep]

    is_local = bind[rows] == STB_LOCAL
    rank = _RANK_UNDERSCORE * _underscores(table, rows)
    rank += _RANK_WEAK * (bind[rows] == STB_WEAK).astype(np.uint8)
    rank += _RANK_LABEL * (kind[rows] == STT_NOTYPE).astype(np.uint8)
    rank += _RANK_LOCAL * is_local.astype(np.uint8)
    resolver = np.uint8(FunctionKind.IFUNC_RESOLVER)
    return _Rows(
        entries["value"][rows].astype(np.uint64),
        entries["size"][rows].astype(np.uint64),
        np.where(kind[rows] == STT_GNU_IFUNC, resolver, np.uint8(0)),
        np.where(is_local, np.uint8(FLAG_LOCAL), np.uint8(0)),
        rank,
        names,
    )


# Names in .symtab may carry a version: foo@@GLIBC_2.34.
def _plain_names(names: list[bytes]) -> list[bytes]:
    joined = b"\0".join(names)
    if b"@" in joined:
        names = [name.partition(b"@")[0] for name in names]
    if b"\n" in joined:
        names = [name.replace(b"\n", b"?") for name in names]
    return names


# 0, 1 or 2 leading underscores; those of mangled names (_Z, _R) do not count.
def _underscores(table: SymbolTable, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
    letters = np.frombuffer(table.strings + b"\0\0", np.uint8)
    start = np.minimum(table.entries["name"][rows].astype(np.int64), len(letters) - 2)
    first, second = letters[start], letters[start + 1]
    mangled = (second == ord("Z")) | (second == ord("R"))
    count = 1 + (second == ord("_")).astype(np.uint8)
    return np.where((first == ord("_")) & ~mangled, count, 0).astype(np.uint8)


def _rows_of_stubs(stubs: Sequence[NamedStub]) -> _Rows:
    count = len(stubs)
    return _Rows(
        np.array([stub.address for stub in stubs], np.uint64),
        np.array([stub.size for stub in stubs], np.uint64),
        np.full(count, FunctionKind.PLT_STUB, np.uint8),
        np.full(count, FLAG_LOCAL, np.uint8),
        np.full(count, _RANK_STUB, np.uint8),
        [_plain_stub_name(stub.name) for stub in stubs],
    )


def _plain_stub_name(name: str) -> bytes:
    return name.replace("\n", "?").encode("utf-8", "surrogateescape")


def _rows_of_frames(
    known: _Rows, frames: FrameBounds, code: CodeRanges, plt: CodeRanges, module_name: str
) -> _Rows:
    order = np.argsort(known.address, kind="stable")
    address = known.address[order]
    reach = np.maximum.accumulate(address + np.minimum(known.size[order], code.room_at(address)))
    row = np.searchsorted(address, frames.start, side="right").astype(np.int64) - 1
    covered = np.zeros(len(frames.start), np.bool_)
    if len(address):
        at = np.maximum(row, 0)
        covered = (row >= 0) & ((reach[at] > frames.start) | (address[at] == frames.start))
    wanted = ~covered & frames.is_entry & code.contain(frames.start) & ~plt.contain(frames.start)
    starts, sizes = frames.start[wanted], frames.size[wanted]
    count = len(starts)
    prefix = module_name.replace("\n", "?")
    return _Rows(
        starts,
        sizes,
        np.zeros(count, np.uint8),
        np.full(count, FLAG_LOCAL | FLAG_SYNTHETIC, np.uint8),
        np.full(count, _RANK_SYNTHETIC, np.uint8),
        [f"{prefix}+{start:#x}".encode("utf-8", "surrogateescape") for start in starts.tolist()],
    )


def _joined(parts: Sequence[_Rows]) -> _Rows:
    return _Rows(
        np.concatenate([part.address for part in parts]),
        np.concatenate([part.size for part in parts]),
        np.concatenate([part.kind for part in parts]),
        np.concatenate([part.flags for part in parts]),
        np.concatenate([part.rank for part in parts]),
        [name for part in parts for name in part.names],
    )


# One entry per address: the best name's size and flags, and every name once.
def _fold(rows: _Rows, frames: FrameBounds, code: CodeRanges) -> FunctionTable:
    if not len(rows.address):
        return FunctionTable.empty()
    order = np.lexsort((rows.rank, rows.address))
    sorted_address = rows.address[order]
    is_first = np.concatenate([[True], sorted_address[1:] != sorted_address[:-1]])
    firsts = np.flatnonzero(is_first)
    group = np.cumsum(is_first) - 1
    names = rows.names
    unique = list(
        dict.fromkeys(zip(group.tolist(), [names[row] for row in order.tolist()], strict=True))
    )
    names_per_group = np.bincount(np.array([owner for owner, _ in unique]))

    address = sorted_address[firsts]
    size = rows.size[order][firsts]
    size = np.where(size > 0, size, np.maximum.reduceat(rows.size[order], firsts))
    frame_row, has_frame = frames.of_starts(address)
    frame_size = np.zeros(len(address), np.uint64)
    frame_size[has_frame] = frames.size[frame_row[has_frame]]
    size = np.minimum(np.where(size > 0, size, frame_size), code.room_at(address))

    kind = np.maximum.reduceat(rows.kind[order], firsts)
    flags = rows.flags[order][firsts]
    fragment = np.zeros(len(address), np.bool_)
    fragment[has_frame] = ~frames.is_entry[frame_row[has_frame]]
    cold = [owner for owner, name in unique if b".cold" in name]
    fragment[np.array(cold, np.intp)] = True
    flags = flags | np.where(fragment, np.uint8(FLAG_FRAGMENT), np.uint8(0))
    return FunctionTable(
        address,
        size,
        kind,
        flags,
        b"\n".join([name for _, name in unique]) + b"\n",
        np.concatenate([np.zeros(1, np.int64), np.cumsum(names_per_group)]),
    )
