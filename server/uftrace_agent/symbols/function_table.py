"""The functions of one file as columns, sorted by address.

A file may have hundreds of thousands of functions, so there is no object per
function: `by_index` makes one when somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.symbols.demangle import SourceNames, source_names

# Functions without a size are short pieces of assembly.
_REACH_OF_UNKNOWN_SIZE: Final = 4096


class FunctionKind(IntEnum):
    """What an entry is. Resolvers and stubs are listed, and never patched."""

    FUNCTION = 0
    IFUNC_RESOLVER = 1
    PLT_STUB = 2


FLAG_LOCAL: Final = 1
FLAG_SYNTHETIC: Final = 2
FLAG_FRAGMENT: Final = 4


@dataclass(frozen=True, slots=True)
class FunctionSymbol:
    """One function.

    Attributes:
        name: Demangled name.
        linkage_name: The name in the file, or `module+0xVADDR` where the file
            has none.
        address: Link-time address.
        size: Bytes; 0 where nothing tells.
        kind: Function, IFUNC resolver or PLT stub.
        aliases: Other linkage names of the same address.
        is_local: Not visible outside of its object file.
        is_synthetic: Known from unwind data only, the name is made up.
        is_fragment: Part of a function (`.cold`) that is jumped to: at its
            start the return address is not where a call would put it.
    """

    name: str
    linkage_name: str
    address: int
    size: int
    kind: FunctionKind
    aliases: tuple[str, ...]
    is_local: bool
    is_synthetic: bool
    is_fragment: bool


class FunctionTable:
    """All functions of a file.

    Attributes:
        address: Link-time address of each function, ascending, no two equal.
        size: Bytes of each function, 0 where unknown.
        kind: `FunctionKind` of each function.
        flags: FLAG_ bits of each function.
        names: All linkage names, each ended by a newline, grouped by
            function, the best name of a function first.
        first_name: n + 1 numbers: function i has the names
            `first_name[i]` to `first_name[i + 1] - 1`.
    """

    def __init__(
        self,
        address: NDArray[np.uint64],
        size: NDArray[np.uint64],
        kind: NDArray[np.uint8],
        flags: NDArray[np.uint8],
        names: bytes,
        first_name: NDArray[np.int64],
    ) -> None:
        self.address = address
        self.size = size
        self.kind = kind
        self.flags = flags
        self.names = names
        self.first_name = first_name
        self._source_names: dict[int, SourceNames] = {}

    @classmethod
    def empty(cls) -> FunctionTable:
        """A table without functions."""
        return cls.from_columns({name: np.empty(0, dtype) for name, dtype in COLUMNS.items()})

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[np.generic]]) -> FunctionTable:
        """The inverse of `columns`.

        Raises:
            ValueError: The columns do not fit together.
        """
        table = cls(
            columns["address"].astype(np.uint64),
            columns["size"].astype(np.uint64),
            columns["kind"].astype(np.uint8),
            columns["flags"].astype(np.uint8),
            columns["names"].astype(np.uint8).tobytes(),
            columns["first_name"].astype(np.int64),
        )
        if not len(table.first_name):
            table.first_name = np.zeros(1, np.int64)
        count = len(table.address)
        if (
            any(len(column) != count for column in (table.size, table.kind, table.flags))
            or len(table.first_name) != count + 1
            or table.first_name[0] != 0
            or (np.diff(table.first_name) < 1).any()
            or table.names.count(b"\n") != table.first_name[-1]
            or (table.address[1:] <= table.address[:-1]).any()
            or (count and table.kind.max() > max(FunctionKind))
        ):
            raise ValueError("the columns of a function table do not fit together")
        return table

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """The table as arrays by name, to store it."""
        return {
            "address": self.address,
            "size": self.size,
            "kind": self.kind,
            "flags": self.flags,
            "names": np.frombuffer(self.names, np.uint8),
            "first_name": self.first_name,
        }

    def __len__(self) -> int:
        return len(self.address)

    def __iter__(self) -> Iterator[FunctionSymbol]:
        return (self.by_index(index) for index in range(len(self)))

    def by_index(self, index: int) -> FunctionSymbol:
        """The function at an index of the columns.

        Raises:
            IndexError: There is no such index.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, end = int(self.first_name[index]), int(self.first_name[index + 1])
        flags = int(self.flags[index])
        return FunctionSymbol(
            name=self.demangled_name(first),
            linkage_name=self.linkage_name(first),
            address=int(self.address[index]),
            size=int(self.size[index]),
            kind=FunctionKind(int(self.kind[index])),
            aliases=tuple(self.linkage_name(line) for line in range(first + 1, end)),
            is_local=bool(flags & FLAG_LOCAL),
            is_synthetic=bool(flags & FLAG_SYNTHETIC),
            is_fragment=bool(flags & FLAG_FRAGMENT),
        )

    def at_address(self, vaddr: int) -> int | None:
        """Index of the function that contains a link-time address; None if none does.

        Of functions inside each other the one that starts last is taken. A
        function of unknown size reaches to the next one, or 4 KiB.
        """
        if not 0 <= vaddr < 1 << 64:
            return None
        index = int(np.searchsorted(self.address, np.uint64(vaddr), side="right")) - 1
        if index >= 0 and not self.size[index]:
            return index if vaddr - int(self.address[index]) < _REACH_OF_UNKNOWN_SIZE else None
        while index >= 0 and int(self._reach[index]) > vaddr:
            if int(self.address[index]) + int(self.size[index]) > vaddr:
                return index
            index -= 1
        return None

    # The furthest end of any function up to each index.
    @cached_property
    def _reach(self) -> NDArray[np.uint64]:
        return np.maximum.accumulate(self.address + self.size)

    def index_of_address(self, vaddr: int) -> int | None:
        """Index of the function that starts exactly at a link-time address."""
        index = self.at_address(vaddr)
        return index if index is not None and int(self.address[index]) == vaddr else None

    def indices_of_name(self, linkage_name: str) -> list[int]:
        """Indices of the functions with exactly that linkage name, global ones first."""
        if not linkage_name or "\n" in linkage_name:
            return []
        line = linkage_name.encode("utf-8", "surrogateescape") + b"\n"
        indices = []
        for position in self._positions_of_line(line):
            line_number = self.line_at(position)
            indices.append(int(np.searchsorted(self.first_name, line_number, side="right")) - 1)
        return sorted(indices, key=lambda index: (int(self.flags[index]) & FLAG_LOCAL, index))

    def _positions_of_line(self, line: bytes) -> Iterator[int]:
        if self.names.startswith(line):
            yield 0
        position = self.names.find(b"\n" + line)
        while position >= 0:
            yield position + 1
            position = self.names.find(b"\n" + line, position + 1)

    def address_of(self, linkage_name: str) -> int | None:
        """Link-time address of the function of that linkage name."""
        indices = self.indices_of_name(linkage_name)
        return int(self.address[indices[0]]) if indices else None

    @cached_property
    def name_starts(self) -> NDArray[np.int64]:
        """Where in `names` each of the names starts, and the end of the last."""
        newlines = np.flatnonzero(np.frombuffer(self.names, np.uint8) == ord("\n"))
        return np.concatenate([np.zeros(1, np.int64), newlines + 1])

    def line_at(self, position: int) -> int:
        """Which of `linkage_names` the byte of `names` at a position belongs to."""
        return int(np.searchsorted(self.name_starts, position, side="right")) - 1

    @property
    def name_count(self) -> int:
        """How many linkage names there are in all, aliases included."""
        return int(self.first_name[-1])

    def linkage_names(self) -> list[str]:
        """All linkage names in the order of `names`."""
        return self.names.decode("utf-8", "backslashreplace").split("\n")[:-1]

    def owners_of_names(self, lines: NDArray[np.int64]) -> NDArray[np.int64]:
        """Function indices, ascending and each once, for indices into `linkage_names`."""
        return np.unique(np.searchsorted(self.first_name, lines, side="right") - 1)

    def linkage_name(self, line: int) -> str:
        """One of `linkage_names`."""
        start, end = int(self.name_starts[line]), int(self.name_starts[line + 1]) - 1
        return self.names[start:end].decode("utf-8", "backslashreplace")

    def demangled_name(self, line: int) -> str:
        """One of `linkage_names`, demangled."""
        return self.source_names(line).demangled

    def source_names(self, line: int) -> SourceNames:
        """What one of `linkage_names` is called in the source.

        Remembered: the next pattern will ask again.
        """
        names = self._source_names.get(line)
        if names is None:
            names = self._source_names[line] = source_names(self.linkage_name(line))
        return names


COLUMNS: Final[Mapping[str, type[np.generic]]] = {
    "address": np.uint64,
    "size": np.uint64,
    "kind": np.uint8,
    "flags": np.uint8,
    "names": np.uint8,
    "first_name": np.int64,
}
