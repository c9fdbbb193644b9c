"""Where AArch64 instructions come from: Debian's binaries, or a generator of all forms.

What is relative to its address is told here by masks of its own, coarser than the engine's.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import capstone
import numpy as np
from numpy.typing import NDArray

from tests.arm.packages import CACHE, download, unpack
from tests.engine.aarch64_machine import BASE, MIB, Machine, traps
from uftrace_agent.engine.aarch64.instruction import Instruction, decode
from uftrace_agent.symbols import FunctionKind
from uftrace_agent.symbols.module_image import ModuleImage

PACKAGES: Final = (
    *("libc6", "libssl3", "libstdc++6", "libpython3.11", "python3.11-minimal"),
    *("nginx", "redis-tools"),
)
_LIBRARIES: Final = "usr/lib/aarch64-linux-gnu"
BINARIES: Final = (
    f"{_LIBRARIES}/libc.so.6",
    f"{_LIBRARIES}/libcrypto.so.3",
    f"{_LIBRARIES}/libstdc++.so.6",
    f"{_LIBRARIES}/libpython3.11.so.1.0",
    "usr/bin/python3.11",
    "usr/sbin/nginx",
    # redis-server is the same program by another name.
    "usr/bin/redis-check-rdb",
)
# A function's entry, where one of the first words is displaced.
_ENTRY_WORDS: Final = 4
_GIB: Final = 1 << 30
_BATCH: Final = 500


def fetch_binaries() -> Path:
    """Where Debian's packages for arm64 are unpacked, now or before."""
    debs = download(PACKAGES)
    names = " ".join(sorted(deb.name for deb in debs))
    root = CACHE / f"relocation-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    if not root.exists():
        # Another run may do the same at the same time.
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unpack(debs, Path(folder) / "root")
            with contextlib.suppress(OSError):
                (Path(folder) / "root").rename(root)
    return root


class Binary:
    """An ELF file, mapped as the kernel maps it, without what is no instruction in its code.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with ModuleImage.open(str(path)) as module:
            segments = module.segments
            size = max(segment.vaddr + segment.memsz for segment in segments)
            image = bytearray(size)
            for segment in segments:
                end = segment.vaddr + segment.filesz
                image[segment.vaddr : end] = module.text_bytes(segment.vaddr, segment.filesz)
            self._ranges = module.executable_ranges
            table = module.functions
            chosen = table.kind == FunctionKind.FUNCTION
            self._entries = np.asarray(table.address[chosen], np.int64)
        for start, end in self._ranges:
            words = np.frombuffer(image, "<u4", (end - start) // 4, start)
            # Data between functions. At some of it the emulator aborts.
            words[~_are_known(words)] = 0
        self._image = bytes(image)

    def machine(self, seed: int) -> Machine:
        """With copies at both ends of a branch's reach, and near by."""
        size = -(-len(self._image) // MIB) * MIB
        areas = (size - 127 * MIB, -40 * MIB, -2 * MIB, size + MIB, 60 * MIB, 126 * MIB)
        return Machine(self._image, areas, seed=seed)

    def instructions(
        self, share: tuple[int, int] = (0, 1), *, everything: bool = False
    ) -> Iterator[Instruction]:
        """The first words of functions, and all that is relative to its address.

        Args:
            share: (which, of how many).
            everything: All other words too.
        """
        addresses = []
        for start, end in self._ranges:
            words = np.frombuffer(self._image, "<u4", (end - start) // 4, start)
            chosen = np.full(len(words), True) if everything else _is_relative(words)
            addresses.append(start + 4 * np.flatnonzero(chosen))
            entries = self._entries[(self._entries >= start) & (self._entries < end)]
            for index in range(_ENTRY_WORDS):
                addresses.append(entries[entries + 4 * index < end] + 4 * index)
        which, count = share
        # Neighbours are much alike: each share has some of all.
        for address in np.unique(np.concatenate(addresses))[which::count].tolist():
            instruction = decode(self._image[address : address + 4], BASE + address)
            if instruction is not None:
                yield instruction


def _are_known(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    disassembler.skipdata = True
    distinct, where = np.unique(words, return_inverse=True)
    lines = disassembler.disasm_lite(distinct.tobytes(), 0)
    known = np.fromiter((mnemonic != ".byte" for _, _, mnemonic, _ in lines), np.bool_)
    return known[where]


def _is_relative(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    adr = words & 0x1F00_0000 == 0x1000_0000
    literal = words & 0x3B00_0000 == 0x1800_0000
    # All branches and calls, without system instructions and exceptions.
    branch = (words & 0x1C00_0000 == 0x1400_0000) & (words & 0xFE00_0000 != 0xD400_0000)
    return np.asarray(adr | literal | branch)


class Generated:
    """All forms that are rewritten, with random operands, distances and copies.

    Its copies lie near, far, out of a branch's reach and out of adrp's.
    """

    name = "generated"
    _SIZE: Final = 8 * MIB
    _AREAS: Final = (
        *(-MIB, 8 * MIB, -100 * MIB, 120 * MIB),
        *(-140 * MIB, 200 * MIB, 3 * _GIB, -5 * _GIB, 20 * _GIB),
    )

    def machine(self, seed: int) -> Machine:
        """With an image of traps."""
        return Machine(traps(self._SIZE, seed), self._AREAS, seed=seed)

    def instructions(
        self, machine: Machine, rng: random.Random, count: int
    ) -> Iterator[Instruction]:
        """So many and some more, each in the image while it is handed out."""
        for _ in range(-(-count // _BATCH)):
            words: dict[int, int] = {}
            while len(words) < _BATCH:
                address = BASE + 8 * rng.randrange(self._SIZE // 8)
                words[address] = random_word(rng, address)
            machine.write(words)
            yield from (Instruction(address, word) for address, word in words.items())
            machine.restore_image()


def random_word(rng: random.Random, address: int) -> int:
    """An instruction that is rewritten when it moves, or must not be."""
    form = rng.choice(_FORMS)
    return form(rng, address)


def _register(rng: random.Random) -> int:
    return rng.choice((0, 15, 16, 17, 29, 30, 31, rng.randrange(32)))


# A distance in words that fits, often at an end of what does.
def _distance(rng: random.Random, bits: int) -> int:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    distance = rng.choice((low, high, 0, 1, -1, 2, rng.randrange(-16, 16), rng.randint(low, high)))
    return distance & (1 << bits) - 1


def _branch(rng: random.Random, address: int) -> int:
    return rng.choice((0x1400_0000, 0x9400_0000)) | _distance(rng, 26)


def _conditional(rng: random.Random, address: int) -> int:
    return 0x5400_0000 | _distance(rng, 19) << 5 | rng.randrange(16)


def _compare(rng: random.Random, address: int) -> int:
    opcode = rng.choice((0x3400_0000, 0x3500_0000, 0xB400_0000, 0xB500_0000))
    return opcode | _distance(rng, 19) << 5 | _register(rng)


def _test(rng: random.Random, address: int) -> int:
    bit = rng.randrange(64)
    opcode = rng.choice((0x3600_0000, 0x3700_0000)) | bit >> 5 << 31 | (bit & 31) << 19
    return opcode | _distance(rng, 14) << 5 | _register(rng)


def _address(rng: random.Random, address: int) -> int:
    opcode = rng.choice((0x1000_0000, 0x9000_0000)) | rng.randrange(4) << 29
    if opcode >> 31 != rng.randrange(2):
        opcode ^= 0x8000_0000
    return opcode | _distance(rng, 19) << 5 | _register(rng)


# Of what is in the image, so that the load does not fault.
def _literal(rng: random.Random, address: int) -> int:
    low = max(BASE - address, -MIB) // 4
    high = min(BASE + Generated._SIZE - 16 - address, MIB - 4) // 4
    distance = rng.randint(low, max(low, high)) & 0x7FFFF
    opcode = rng.choice(
        (0x1800_0000, 0x5800_0000, 0x9800_0000, 0xD800_0000, 0x1C00_0000, 0x5C00_0000, 0x9C00_0000)
    )
    return opcode | distance << 5 | _register(rng)


def _indirect(rng: random.Random, address: int) -> int:
    plain = rng.choice((0xD61F_0000, 0xD63F_0000, 0xD65F_0000)) | _register(rng) << 5
    signed = rng.choice((0xD61F_081F, 0xD63F_081F, 0xD61F_0C1F, 0xD63F_0C1F)) | _register(rng) << 5
    modified = rng.choice((0xD71F_0800, 0xD73F_0800, 0xD71F_0C00, 0xD73F_0C00))
    modified |= _register(rng) << 5 | _register(rng)
    return rng.choice((plain, signed, modified, 0xD65F_0BFF, 0xD65F_0FFF))


# Loads, stores, arithmetic, vectors; system instructions and what nobody knows.
def _anything(rng: random.Random, address: int) -> int:
    while True:
        word = rng.getrandbits(32)
        # What capstone does not know either may abort the emulator.
        if not Instruction(address, word).text.startswith(".inst"):
            return word


_FORMS: Final = (
    *(_branch, _conditional, _compare, _test, _address, _address, _literal, _literal),
    *(_indirect, _anything),
)
