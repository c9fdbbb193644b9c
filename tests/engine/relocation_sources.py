"""Where windows come from: the functions of a binary, or a generator of encodings."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

import capstone

from tests.engine.machine import PAGE
from tests.engine.relocation import LONGEST_WINDOW, instructions_at
from tests.engine.relocation_generated import random_window, systematic
from tests.engine.relocation_runner import World, random_states
from uftrace_agent.engine.x86_64.instruction import Instruction, decode
from uftrace_agent.symbols import FunctionKind
from uftrace_agent.symbols.module_image import ModuleImage

BASE: Final = 0x2000_0000_0000
STATES: Final = 64
AREA: Final = 1 << 16
GIB: Final = 1 << 30
# From one end of a jump's reach to the other; what code refers to may lie on
# the far side.
DISTANCES: Final = tuple(int(gib * GIB) & ~0xFFFFF for gib in (-1.9, -1.2, -0.3, 0.3, 0.9, 1.9))
# Nothing that is named in four bytes lies further away.
_MARGIN: Final = 9 * GIB // 2
# Bytes that are copied unchanged and name nothing relative to themselves are run
# so often, in different states; the engine's answer depends on nothing but them.
_REPEATS: Final = 4
# What no function of a compiler's making exceeds.
_LARGEST_FUNCTION: Final = 1 << 20


@dataclass
class Share:
    """A part of a source: whose windows, and what was left out.

    Attributes:
        windows: Instructions of which the first one, first two, ... are to be
            compared; or single ones.
        repeated: Instructions whose bytes were compared before.
        functions: How many functions were looked at.
        undecodable: How many of them have bytes that are no instruction.
    """

    windows: Iterator[Sequence[Instruction]] = field(default_factory=lambda: iter(()))
    repeated: int = 0
    functions: int = 0
    undecodable: int = 0


class Source(Protocol):
    """Windows, in shares that can be made in any order."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def shares(self) -> int:
        """How many there are."""

    def world(self, seed: int) -> World:
        """Where its windows lie."""

    def areas(self) -> Sequence[tuple[int, int]]:
        """Where their copies may lie: (address, size)."""

    def share(self, number: int, seed: int) -> Share:
        """One of them; its windows may be iterated once."""


def _world(text: Sequence[tuple[int, int]], size: int, seed: int) -> World:
    ranges = sorted([*text, *_areas()])
    states = random_states(random.Random(seed), STATES, text)
    return World(ranges, BASE - _MARGIN, BASE + -(-size // PAGE) * PAGE + _MARGIN, states)


def _areas() -> list[tuple[int, int]]:
    return [(BASE + distance, AREA) for distance in DISTANCES]


class Binary:
    """All functions of an ELF file, in an order that the seed decides.

    Args:
        path: The file.
        functions_per_share: How many.
        single: Also every single instruction of the functions.
    """

    def __init__(self, path: Path, functions_per_share: int = 512, *, single: bool = True) -> None:
        self.name = path.name
        self._path = path
        self._per_share = functions_per_share
        self._single = single

    @property
    def shares(self) -> int:
        """See `Source`."""
        return -(-len(_functions(self._path)) // self._per_share)

    def world(self, seed: int) -> World:
        """See `Source`."""
        segments = _image(self._path).segments
        text = []
        for segment in segments:
            if segment.executable:
                start = segment.vaddr // PAGE * PAGE
                end = -(-(segment.vaddr + segment.memsz) // PAGE) * PAGE
                text.append((BASE + start, end - start))
        return _world(text, max(one.vaddr + one.memsz for one in segments), seed)

    def areas(self) -> Sequence[tuple[int, int]]:
        """See `Source`."""
        return _areas()

    def share(self, number: int, seed: int) -> Share:
        """See `Source`."""
        order = list(_functions(self._path))
        random.Random(seed).shuffle(order)
        share = Share()
        chosen = order[number * self._per_share :][: self._per_share]
        share.windows = self._windows(chosen, share)
        return share

    def _windows(
        self, functions: Sequence[tuple[int, int]], share: Share
    ) -> Iterator[Sequence[Instruction]]:
        image = _image(self._path)
        seen: Counter[bytes] = Counter()
        for address, size in functions:
            share.functions += 1
            code = image.text_bytes(address, min(max(size, 64), _LARGEST_FUNCTION))
            yield list(instructions_at(code, BASE + address, LONGEST_WINDOW))
            if self._single:
                yield from _single(code[: size or None], BASE + address, seen, share)


def _single(
    code: bytes, address: int, seen: Counter[bytes], share: Share
) -> Iterator[Sequence[Instruction]]:
    end = 0
    for at, size, mnemonic, operands in _reader().disasm_lite(code, address):
        start, end = at - address, at - address + size
        if "rip" not in operands and not _may_be_relative(mnemonic, operands):
            key = code[start:end]
            seen[key] += 1
            if seen[key] > _REPEATS:
                share.repeated += 1
                continue
        instruction = decode(code[start:end], at)
        assert instruction is not None and instruction.size == size
        yield [instruction]
    share.undecodable += end < len(code)


def _may_be_relative(mnemonic: str, operands: str) -> bool:
    # A call saves its address whatever its operand is.
    return "call" in mnemonic or operands.startswith("0x")


@lru_cache
def _reader() -> capstone.Cs:
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


@lru_cache(maxsize=4)
def _image(path: Path) -> ModuleImage:
    return ModuleImage.open(str(path))


@lru_cache(maxsize=4)
def _functions(path: Path) -> tuple[tuple[int, int], ...]:
    table = _image(path).functions
    return tuple(
        (int(table.address[row]), int(table.size[row]))
        for row in range(len(table))
        if table.kind[row] == FunctionKind.FUNCTION
    )


class Generated:
    """Windows that no compiler makes: any opcode, prefixes and operands.

    Args:
        shares: How many.
        per_share: Windows in each but the first, which goes through tables.
    """

    name = "generated"
    # Islands of code, so that most of what is near by can be written.
    _ISLANDS: Final = tuple((BASE + 0x10000 * index, 0x4000) for index in range(16))

    def __init__(self, shares: int = 1, per_share: int = 20_000) -> None:
        self.shares = shares
        self._per_share = per_share

    def world(self, seed: int) -> World:
        """See `Source`."""
        return _world(self._ISLANDS, 2 << 20, seed)

    def areas(self) -> Sequence[tuple[int, int]]:
        """See `Source`."""
        return _areas()

    def share(self, number: int, seed: int) -> Share:
        """See `Source`."""
        rng = random.Random(seed * 1_000_003 + number)
        return Share(self._tables(rng) if number == 0 else self._random(rng))

    def _tables(self, rng: random.Random) -> Iterator[Sequence[Instruction]]:
        for code in systematic(rng):
            instruction = decode(code, self._address(rng))
            if instruction is not None and instruction.size == len(code):
                yield [instruction]

    def _random(self, rng: random.Random) -> Iterator[Sequence[Instruction]]:
        for _ in range(self._per_share):
            code = random_window(rng, LONGEST_WINDOW)
            window = list(instructions_at(code, self._address(rng), LONGEST_WINDOW))
            if window:
                yield window

    def _address(self, rng: random.Random) -> int:
        start, size = rng.choice(self._ISLANDS)
        return start + rng.randrange(size - 64)
