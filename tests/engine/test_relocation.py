"""Differential tests of out-of-line execution: moved instructions do what they did."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.machine import Machine
from tests.engine.relocation import AREA, DISTANCES, Comparer
from uftrace_agent.engine.x86_64.instruction import (
    Instruction,
    OutOfReachError,
    UnmovableError,
    decode,
)
from uftrace_agent.symbols import FunctionKind
from uftrace_agent.symbols.module_image import ModuleImage

BASE = 0x7F00_0000_0000
PER_BINARY = 3000
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
BINARIES = (
    LIBRARIES / "libc.so.6",
    LIBRARIES / "libcrypto.so.3",
    LIBRARIES / "libstdc++.so.6",
    LIBRARIES / "libpython3.11.so.1.0",
    Path("/usr/lib/postgresql/15/bin/postgres"),
)
# First instructions that really cannot run elsewhere.
UNMOVABLE = {"syscall", "ud2", "int3", "hlt", "xbegin", "xabort"}


def comparer(seed: int, original: int, size: int) -> Comparer:
    machine = Machine(seed)
    machine.map(original, size)
    areas = [original + distance for distance in DISTANCES]
    for area in areas:
        machine.map(area, AREA)
    return Comparer(machine, areas, random.Random(seed))


@pytest.mark.parametrize("path", BINARIES, ids=lambda path: path.name)
def test_first_instructions_of_real_functions_run_elsewhere(path: Path) -> None:
    # GIVEN a file, mapped as the loader maps it
    with ModuleImage.open(str(path)) as image:
        end = max(segment.vaddr + segment.memsz for segment in image.segments)
        both = comparer(1, BASE, end)
        for segment in image.segments:
            both.machine.write(
                BASE + segment.vaddr, image.text_bytes(segment.vaddr, segment.filesz)
            )
        # WHEN the first instruction, and the second, of its functions are moved
        refused: Counter[str] = Counter()
        table = image.functions
        indices = [i for i in range(len(table)) if table.kind[i] == FunctionKind.FUNCTION]
        for index in random.Random(2).sample(indices, min(PER_BINARY, len(indices))):
            code = image.text_bytes(int(table.address[index]), 32)
            for instruction in first_instructions(code, BASE + int(table.address[index])):
                try:
                    both.compare(instruction)
                except UnmovableError:
                    refused[instruction.raw.mnemonic] += 1
    # THEN they do the same there
    assert not both.failures, "\n".join(both.failures[:20])
    assert both.executed > 0.98 * both.compared > 3000
    assert set(refused) <= UNMOVABLE, refused


def first_instructions(code: bytes, address: int) -> Iterator[Instruction]:
    first = decode(code, address)
    if first is None:
        return
    yield first
    second = decode(code[first.size :], address + first.size)
    if second is not None and first.goes_straight_on():
        yield second


# -- generated encodings ----------------------------------------------------

PREFIXES = (b"", b"\x66", b"\x48", b"\x44", b"\x4c", b"\x66\x44", b"\xf0", b"\xf2", b"\xf3")
ONE_BYTE: tuple[int, ...] = (
    0x00,
    0x01,
    0x02,
    0x03,
    0x0B,
    0x23,
    0x2B,
    0x33,
    0x38,
    0x39,
    0x3A,
    0x3B,
    0x63,
)
ONE_BYTE += (0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B, 0x8D)
# With an extension of the opcode in ModRM: (opcode, extensions, immediate bytes).
GROUPS = (
    (0x80, range(8), 1),
    (0x81, range(8), 4),
    (0x83, range(8), 1),
    (0xC0, (0, 1, 4, 5, 7), 1),
    (0xC1, (0, 1, 4, 5, 7), 1),
    (0xC6, (0,), 1),
    (0xC7, (0,), 4),
    (0xD1, (0, 1, 2, 3, 4, 5, 7), 0),
    (0xD3, (0, 4, 5, 7), 0),
    (0xF6, (0, 2, 3, 4, 5), 0),
    (0xF7, (2, 3, 4, 5), 0),
    (0xFE, (0, 1), 0),
    (0xFF, (0, 1, 2, 4, 6), 0),
    (0x8F, (0,), 0),
)
TWO_BYTE: tuple[int, ...] = (
    0x0D,
    0x10,
    0x11,
    0x12,
    0x14,
    0x16,
    0x18,
    0x1F,
    0x28,
    0x29,
    0x2A,
    0x2D,
    0x2E,
    0x40,
)
TWO_BYTE += (0x44, 0x4F, 0x51, 0x54, 0x57, 0x58, 0x59, 0x5C, 0x5E, 0x6E, 0x6F, 0x7E, 0x7F, 0x90)
TWO_BYTE += (0xA3, 0xAB, 0xAF, 0xB0, 0xB1, 0xB6, 0xB7, 0xB8, 0xBE, 0xBF, 0xC0, 0xC1, 0xD6, 0xEF)
NOPS: tuple[str, ...] = (
    "90",
    "6690",
    "0f1f00",
    "0f1f4000",
    "0f1f440000",
    "660f1f440000",
    "0f1f8000000000",
)
NOPS += ("0f1f840000000000", "660f1f840000000000", "662e0f1f840000000000", "f30f1efa", "f390")

RETURNS = ("c3", "f3c3", "f2c3", "c20800", "c2f000", "c9", "c8200000", "c8200002", "9c", "9d")
OTHERS: tuple[str, ...] = (
    "fc",
    "fd",
    "4883ec28",
    "488d6424f8",
    "4889e5",
    "f3a4",
    "f348ab",
    "0fa2",
    "0f31",
)
OTHERS += ("f3480faec1", "488b042510000000", "64488b042528000000", "ff742408")


def rip_relative(rng: random.Random) -> Iterator[bytes]:
    def operand() -> bytes:
        return rng.randrange(-0x8000, 0x8000).to_bytes(4, "little", signed=True)

    for prefix in PREFIXES:
        for opcode in ONE_BYTE:
            for register in range(8):
                yield prefix + bytes((opcode, register << 3 | 5)) + operand()
        for opcode, extensions, immediate in GROUPS:
            # 66 makes an immediate of four bytes one of two.
            size = 2 if immediate == 4 and prefix[:1] == b"\x66" else immediate
            for extension in extensions:
                head = prefix + bytes((opcode, extension << 3 | 5))
                yield head + operand() + rng.randbytes(size)
        for opcode in TWO_BYTE:
            for register in range(0, 8, 3):
                rex = prefix[-1:] if prefix[-1:] in (b"\x44", b"\x48", b"\x4c") else b""
                legacy = prefix.removesuffix(rex) if rex else prefix
                yield legacy + rex + bytes((0x0F, opcode, register << 3 | 5)) + operand()
        yield prefix + b"\x69\x0d" + operand() + rng.randbytes(2 if b"\x66" in prefix else 4)
        yield prefix + b"\x6b\x0d" + operand() + rng.randbytes(1)
        yield prefix + b"\x0f\xa4\x05" + operand() + b"\x03"
        yield prefix + b"\x0f\xba\x25" + operand() + b"\x07"
    for three in (b"\x66\x0f\x38\x00", b"\x66\x0f\x38\x17", b"\x0f\x38\xf0", b"\xf2\x0f\x38\xf1"):
        yield three + b"\x05" + operand()
    for three in (b"\x66\x0f\x3a\x0f", b"\x66\x0f\x3a\x16", b"\x66\x0f\x3a\x63", b"\x66\x0f\x70"):
        yield three + b"\x05" + operand() + b"\x5a"
    for vector in ("c5f828", "c5f829", "c5f96f", "c5fe7f", "c5fb10", "c4e27918", "c4e27d5a"):
        yield bytes.fromhex(vector) + b"\x05" + operand()
    for vector in ("c4e37904", "c4e37d06", "c5f970", "c5fac2"):
        yield bytes.fromhex(vector) + b"\x0d" + operand() + b"\x01"
    for vector in ("62f1fd486f", "62f17c4810", "62f1fd08ef", "62e1fd487f"):
        yield bytes.fromhex(vector) + b"\x05" + operand()
    for x87 in (0xD8, 0xD9, 0xDB, 0xDC, 0xDD, 0xDF):
        yield bytes((x87, 0x05)) + operand()


def branches(rng: random.Random) -> Iterator[bytes]:
    for near in (-0x80, -0x40, 0, 1, 0x10, 0x7F):
        rel8 = near.to_bytes(1, "little", signed=True)
        for condition in range(16):
            for hint in (b"", b"\x2e", b"\x3e", b"\xf2"):
                yield hint + bytes((0x70 | condition,)) + rel8
        for opcode in (0xE0, 0xE1, 0xE2, 0xE3):
            for size in (b"", b"\x67"):
                yield size + bytes((opcode,)) + rel8
        yield b"\xeb" + rel8
        yield b"\xf2\xeb" + rel8
    for far in (-0x8000, -0x100, 0, 0x33, 0x7000):
        rel32 = far.to_bytes(4, "little", signed=True)
        for condition in range(16):
            for hint in (b"", b"\x2e", b"\x3e", b"\xf2"):
                yield hint + bytes((0x0F, 0x80 | condition)) + rel32
        for prefix in (b"", b"\xf2", b"\x26", b"\x67", b"\x48"):
            yield prefix + b"\xe8" + rel32
            yield prefix + b"\xe9" + rel32
        for prefix in (b"", b"\xf2", b"\x3e", b"\x3e\xf2", b"\x48"):
            yield prefix + b"\xff\x15" + rel32
            yield prefix + b"\xff\x25" + rel32
    for prefix in (b"", b"\x41", b"\x3e", b"\x3e\x41", b"\xf2"):
        for register in range(8):
            for extension in (0xD0, 0xE0):
                if not (extension == 0xD0 and register == 4 and b"\x41" not in prefix):
                    yield prefix + bytes((0xFF, extension | register))
            if register != 4:  # which means the stack pointer, or a SIB byte
                yield prefix + bytes((0xFF, 0x60 | register, 0x08))
                yield prefix + bytes((0xFF, 0x50 | register, 0x08))
    yield b"\xff\x64\x24\x08"
    yield b"\xff\x24\xc5" + rng.randrange(0x1000, 0x2000).to_bytes(4, "little")
    yield b"\xff\x14\xc8"


def stack(rng: random.Random) -> Iterator[bytes]:
    for register in range(8):
        for prefix in (b"", b"\x41", b"\x66"):
            yield prefix + bytes((0x50 | register,))
            yield prefix + bytes((0x58 | register,))
    yield b"\x6a" + rng.randbytes(1)
    yield b"\x68" + rng.randbytes(4)
    yield b"\x66\x68" + rng.randbytes(2)
    yield from (bytes.fromhex(code) for code in (*NOPS, *RETURNS, *OTHERS))


ORIGINAL = 0x5555_5000_0000
SIZE = 1 << 17


@pytest.mark.parametrize("make", [rip_relative, branches, stack], ids=lambda make: make.__name__)
def test_h13_h14_generated_encodings_run_elsewhere(make: object) -> None:
    assert callable(make)
    rng = random.Random(4)
    both = comparer(5, ORIGINAL, SIZE)
    both.machine.write(ORIGINAL, rng.randbytes(SIZE))
    cursor = SIZE // 2
    for _ in range(3):
        for code in make(rng):
            cursor += 17
            if cursor > SIZE // 2 + 0x7000:
                cursor = SIZE // 2
            address = ORIGINAL + cursor
            both.machine.write(address, code)
            instruction = decode(code, address)
            if instruction is None or instruction.size != len(code):
                continue  # no such instruction with that prefix
            if is_ambiguous(instruction):
                with pytest.raises(UnmovableError, match="other processors"):
                    both.compare(instruction)
                continue
            both.compare(instruction)
    assert not both.failures, "\n".join(both.failures[:20])
    assert both.executed > 0.9 * both.compared > 200


def is_ambiguous(instruction: Instruction) -> bool:
    branches = instruction.is_call() or instruction.raw.mnemonic == "jmp"
    return branches and instruction.code.startswith(b"\x66")


@pytest.mark.parametrize(
    "code",
    [
        *("0f05", "0f34", "cd80", "cc", "f1", "0f0b", "0fb9c0", "0fffc0", "f4"),
        *("c7f810000000", "c6f801", "ff1d00100000", "ff2d00100000", "cb", "ca0800", "cf", "48cf"),
        *("ff1424", "ff542408", "ffd4", "678b0500000000", "67ff2500000000"),
        *("66e800000000", "66e900000000", "667410", "66eb10", "660f8400000000"),
        *("66ff1500100000", "66ff2500100000", "66ffd0"),
    ],
)
def test_h6_what_cannot_run_elsewhere_says_so(code: str) -> None:
    instruction = decode(bytes.fromhex(code), 0x401000)
    assert instruction is not None
    with pytest.raises(UnmovableError, match=instruction.raw.mnemonic.split()[-1]):
        instruction.moved_to(0x501000)


@pytest.mark.parametrize("code", ["8b0500000000", "e900000000", "7400", "ff1500000000", "e3fe"])
@pytest.mark.parametrize("distance", [-(1 << 31) - 4096, (1 << 31) + 4096])
def test_h13_what_refers_too_far_says_so(code: str, distance: int) -> None:
    instruction = decode(bytes.fromhex(code), 1 << 40)
    assert instruction is not None
    with pytest.raises(OutOfReachError):
        instruction.moved_to((1 << 40) + distance)


@pytest.mark.parametrize("code", ["", "06", "c50578", "ffff", "0f", "48"])
def test_h20_what_is_no_instruction_is_none(code: str) -> None:
    assert decode(bytes.fromhex(code), 0x401000) is None
