"""Encodings for relocation tests: tables of what compilers use, and anything at random."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PREFIXES: Final = (b"", b"\x66", b"\x48", b"\x44", b"\x4c", b"\x66\x44", b"\xf0", b"\xf2", b"\xf3")
# Opcodes with ModRM and no immediate, of the one-byte map and behind 0F.
_ONE_BYTE: Final = bytes.fromhex(
    "00 01 02 03 0b 23 2b 33 38 39 3a 3b 63 84 85 86 87 88 89 8a 8b 8d"
)
_TWO_BYTE: Final = bytes.fromhex(
    "0d 10 11 12 14 16 18 1f 28 29 2a 2d 2e 40 44 4f 51 54 57 58 59 5c 5e 6e 6f 7e 7f 90"
    "a3 ab af b0 b1 b6 b7 b8 be bf c0 c1 d6 ef"
)
# With an extension of the opcode in ModRM: (opcode, extensions, immediate bytes).
_GROUPS: Final = (
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
# With a rip-relative operand, but for its four bytes: without and with an immediate.
_VECTOR: Final = _words(
    "660f3800 660f3817 0f38f0 f20f38f1 c5f828 c5f829 c5f96f c5fe7f c5fb10 c4e27918 c4e27d5a"
    " 62f1fd486f 62f17c4810 62f1fd08ef 62e1fd487f d8 d9 db dc dd df"
)
_VECTOR_IMMEDIATE: Final = _words(
    "660f3a0f 660f3a16 660f3a63 660f70 c4e37904 c4e37d06 c5f970 c5fac2"
)
_STACK: Final = _words(
    "90 6690 0f1f00 0f1f4000 0f1f440000 660f1f440000 0f1f8000000000 0f1f840000000000"
    " 660f1f840000000000 662e0f1f840000000000 f30f1efa f390 c3 f3c3 f2c3 c20800 c2f000 c9"
    " c8200000 c8200002 9c 9d fc fd 4883ec28 488d6424f8 4889e5 f3a4 f348ab 0fa2 0f31"
    " f3480faec1 488b042510000000 64488b042528000000 ff742408 ff642408 ff14c8"
)
_NEAR: Final = (-0x80, -0x40, 0, 1, 0x10, 0x7F)
_FAR: Final = (-0x8000, -0x100, 0, 0x33, 0x7000)


def systematic(rng: random.Random) -> Iterator[bytes]:
    """One instruction each; some prefixes make none of them."""
    yield from _rip_relative(rng)
    yield from _short_branches()
    yield from _long_branches()
    yield from _indirect(rng)
    for register in range(8):
        for prefix in (b"", b"\x41", b"\x66"):
            yield prefix + bytes((0x50 | register,))
            yield prefix + bytes((0x58 | register,))
    yield b"\x6a" + rng.randbytes(1)
    yield b"\x68" + rng.randbytes(4)
    yield b"\x66\x68" + rng.randbytes(2)
    yield from (bytes.fromhex(code) for code in _STACK)


def _rip_relative(rng: random.Random) -> Iterator[bytes]:
    def operand() -> bytes:
        return _distance(rng, 0x8000)

    for prefix in _PREFIXES:
        rex = prefix[-1:] if prefix[-1:] in (b"\x44", b"\x48", b"\x4c") else b""
        legacy = prefix.removesuffix(rex) if rex else prefix
        for register in range(8):
            modrm = bytes((register << 3 | 5,))
            for opcode in _ONE_BYTE:
                yield prefix + bytes((opcode,)) + modrm + operand()
            for opcode in _TWO_BYTE:
                yield legacy + rex + bytes((0x0F, opcode)) + modrm + operand()
        for opcode, extensions, immediate in _GROUPS:
            # 66 makes an immediate of four bytes one of two.
            size = 2 if immediate == 4 and prefix[:1] == b"\x66" else immediate
            for extension in extensions:
                head = prefix + bytes((opcode, extension << 3 | 5))
                yield head + operand() + rng.randbytes(size)
        yield prefix + b"\x69\x0d" + operand() + rng.randbytes(2 if b"\x66" in prefix else 4)
        yield prefix + b"\x6b\x0d" + operand() + rng.randbytes(1)
        yield prefix + b"\x0f\xa4\x05" + operand() + b"\x03"
        yield prefix + b"\x0f\xba\x25" + operand() + b"\x07"
    yield from (bytes.fromhex(code) + b"\x05" + operand() for code in _VECTOR)
    yield from (bytes.fromhex(code) + b"\x0d" + operand() + b"\x5a" for code in _VECTOR_IMMEDIATE)


def _short_branches() -> Iterator[bytes]:
    for near in _NEAR:
        distance = near.to_bytes(1, "little", signed=True)
        for condition in range(16):
            for hint in (b"", b"\x2e", b"\x3e", b"\xf2"):
                yield hint + bytes((0x70 | condition,)) + distance
        for opcode in (0xE0, 0xE1, 0xE2, 0xE3):
            for size in (b"", b"\x67"):
                yield size + bytes((opcode,)) + distance
        for prefix in (b"", b"\xf2", b"\x66"):
            yield prefix + b"\xeb" + distance


def _long_branches() -> Iterator[bytes]:
    for far in _FAR:
        distance = far.to_bytes(4, "little", signed=True)
        for condition in range(16):
            for hint in (b"", b"\x2e", b"\x3e", b"\xf2"):
                yield hint + bytes((0x0F, 0x80 | condition)) + distance
        for prefix in (b"", b"\xf2", b"\x26", b"\x67", b"\x48", b"\x66"):
            yield prefix + b"\xe8" + distance
            yield prefix + b"\xe9" + distance
        for prefix in (b"", b"\xf2", b"\x3e", b"\x3e\xf2", b"\x48", b"\x64", b"\x66"):
            yield prefix + b"\xff\x15" + distance
            yield prefix + b"\xff\x25" + distance


def _indirect(rng: random.Random) -> Iterator[bytes]:
    for prefix in (b"", b"\x41", b"\x3e", b"\x3e\x41", b"\xf2", b"\x66", b"\x67", b"\x65"):
        for register in range(8):
            for extension in (0xD0, 0xE0):
                yield prefix + bytes((0xFF, extension | register))
            if register != 4:  # which means a SIB byte
                yield prefix + bytes((0xFF, 0x60 | register, 0x08))
                yield prefix + bytes((0xFF, 0x50 | register, 0x08))
        yield prefix + b"\xff\x54\x24\x08"
        yield prefix + b"\xff\x24\xc5" + rng.randrange(0x200000, 0x210000).to_bytes(4, "little")


# -- anything ---------------------------------------------------------------

_LEGACY_PREFIXES: Final = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"


def random_window(rng: random.Random, count: int) -> bytes:
    """Bytes that are some instructions, or become none at some place."""
    return b"".join(random_instruction(rng) for _ in range(rng.randrange(1, count + 1)))


def random_instruction(rng: random.Random) -> bytes:
    """Bytes that are likely one instruction: any opcode, prefixes and operands."""
    kind = rng.random()
    if kind < 0.4:
        return _legacy(rng)
    if kind < 0.55:
        return _vex(rng)
    if kind < 0.65:
        return _evex(rng)
    if kind < 0.85:
        return _branch(rng)
    if kind < 0.95:
        return _prefixes(rng) + b"\xff" + _operand(rng, rng.choice((2, 2, 4, 4, 6, 3, 5)))
    code = rng.choice(("68", "6a", "50", "58", "c3", "c2", "c8", "c9", "a0", "a1", "a3", "b8"))
    size = {"68": 4, "6a": 1, "c2": 2, "c8": 3, "a0": 8, "a1": 8, "a3": 8, "b8": 4}.get(code, 0)
    return _prefixes(rng) + bytes.fromhex(code) + rng.randbytes(size)


def _distance(rng: random.Random, reach: int) -> bytes:
    return rng.randrange(-reach, reach).to_bytes(4, "little", signed=True)


def _prefixes(rng: random.Random) -> bytes:
    count = rng.choice((0, 0, 0, 0, 0, 1, 1, 2, 3))
    legacy = bytes(rng.choice(_LEGACY_PREFIXES) for _ in range(count))
    return legacy + (bytes((0x40 | rng.randrange(16),)) if rng.random() < 0.4 else b"")


# ModRM and what follows, mostly relative to the instruction.
def _operand(rng: random.Random, register: int) -> bytes:
    kind = rng.random()
    if kind < 0.65:
        reach = rng.choice((0x40, 0x8000, 0x8000, 0x80000, 1 << 31))
        return bytes((register << 3 | 5,)) + _distance(rng, reach)
    if kind < 0.75:
        return bytes((0xC0 | register << 3 | rng.randrange(8),))
    mode, base = rng.randrange(3), rng.randrange(8)
    sib = rng.randbytes(1) if base == 4 else b""
    has_base = not (mode == 0 and (base == 5 or (sib and sib[0] & 7 == 5)))
    size = (0, 1, 4)[mode] if has_base else 4
    return bytes((mode << 6 | register << 3 | base,)) + sib + _distance(rng, 0x400)[:size]


def _immediate(rng: random.Random) -> bytes:
    # What is too much of it becomes the next instruction.
    return rng.randbytes(rng.choice((0, 0, 1, 1, 2, 4)))


def _legacy(rng: random.Random) -> bytes:
    escape = rng.choice((b"", b"", b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a"))
    opcode = rng.randrange(256)
    if not escape and opcode in b"\xcc\x0f\xc4\xc5\x62":
        opcode = 0x8B
    operand = _operand(rng, rng.randrange(8))
    return _prefixes(rng) + escape + bytes((opcode,)) + operand + _immediate(rng)


def _vex(rng: random.Random) -> bytes:
    low = rng.randrange(4) | rng.choice((0, 4)) | rng.choice((0x78, rng.randrange(16) << 3))
    if rng.random() < 0.4:
        head = bytes((0xC5, low | rng.choice((0, 0x80))))
    else:
        high = rng.choice((1, 1, 2, 2, 3)) | rng.choice((0xE0, rng.randrange(8) << 5))
        head = bytes((0xC4, high, low | rng.choice((0, 0x80))))
    segment = rng.choice((b"", b"", b"", b"\x64", b"\x3e"))
    opcode = bytes((rng.randrange(256),))
    return segment + head + opcode + _operand(rng, rng.randrange(8)) + _immediate(rng)


def _evex(rng: random.Random) -> bytes:
    first = rng.choice((1, 1, 2, 2, 3, 5, 6)) | rng.choice((0xF0, rng.randrange(16) << 4))
    second = 4 | rng.randrange(4) | rng.choice((0x78, rng.randrange(16) << 3))
    second |= rng.choice((0, 0x80))
    third = rng.choice((0x08, 0x28, 0x48, 0x18, rng.randrange(256)))
    head = bytes((0x62, first, second, third, rng.randrange(256)))
    return head + _operand(rng, rng.randrange(8)) + _immediate(rng)


def _branch(rng: random.Random) -> bytes:
    prefixes = _prefixes(rng)
    if rng.random() < 0.5:
        opcode = rng.choice((0x70 | rng.randrange(16), 0xE0 | rng.randrange(4), 0xEB))
        return prefixes + bytes((opcode,)) + rng.randbytes(1)
    distance = _distance(rng, rng.choice((0x40, 0x8000, 0x80000, 1 << 31)))
    opcodes = (b"\xe8", b"\xe9", bytes((0x0F, 0x80 | rng.randrange(16))))
    return prefixes + rng.choice(opcodes) + distance
