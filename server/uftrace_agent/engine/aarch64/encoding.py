"""Assembling AArch64 instructions, one word each (ARM ARM DDI 0487, C4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from uftrace_agent.engine.moved import OutOfReachError

WORD: Final = 4
WORD_MASK: Final = 0xFFFF_FFFF
ADDRESS_MASK: Final = (1 << 64) - 1
LINK_REGISTER: Final = 30
ZERO_REGISTER: Final = 31


def pack(*words: int) -> bytes:
    """Words as they lie in memory: instructions are little-endian on every machine."""
    return b"".join(word.to_bytes(WORD, "little") for word in words)


NOP: Final = pack(0xD503_201F)
RET: Final = pack(0xD65F_03C0)
BRK: Final = pack(0xD420_0000)
PACIASP: Final = pack(0xD503_233F)
AUTIASP: Final = pack(0xD503_23BF)
PACIBSP: Final = pack(0xD503_237F)
AUTIBSP: Final = pack(0xD503_23FF)

_PAGE_BITS: Final = 12
_ADR_BITS: Final = 21
_HALF_BITS: Final = 16
_HALF_MASK: Final = 0xFFFF


def signed(value: int, bits: int) -> int:
    """The two's complement number in the lowest `bits` of `value`."""
    sign = 1 << bits - 1
    return ((value & (sign << 1) - 1) ^ sign) - sign


def fits(value: int, bits: int) -> bool:
    """Whether `bits` hold this as a two's complement number."""
    return -(1 << bits - 1) <= value < 1 << bits - 1


def branch(source: int, target: int) -> bytes:
    """`b target` at `source`.

    Raises:
        OutOfReachError: It is further than 128 MiB.
    """
    return pack(0x1400_0000 | _branch_field(source, target))


def branch_link(source: int, target: int) -> bytes:
    """`bl target` at `source`.

    Raises:
        OutOfReachError: It is further than 128 MiB.
    """
    return pack(0x9400_0000 | _branch_field(source, target))


def _branch_field(source: int, target: int) -> int:
    distance = target - source
    if not fits(distance, 28) or distance % WORD:
        raise OutOfReachError(f"{target:#x} is out of reach of {source:#x}")
    return distance >> 2 & 0x03FF_FFFF


def move_constant(register: int, value: int) -> bytes:
    """The fewest of `movz`, `movn` and `movk` that set a register, 1 to 4 of them."""
    halves = [value >> shift & _HALF_MASK for shift in range(0, 64, _HALF_BITS)]
    inverted = halves.count(_HALF_MASK) > halves.count(0)
    filler = _HALF_MASK if inverted else 0
    return pack(*_moves(register, halves, filler))


def _moves(register: int, halves: list[int], filler: int) -> Iterator[int]:
    rest = [index for index, half in enumerate(halves) if half != filler] or [0]
    for index in rest:
        half = halves[index]
        if index != rest[0]:
            opcode = 0xF280_0000  # movk
        elif filler:
            opcode, half = 0x9280_0000, half ^ _HALF_MASK  # movn
        else:
            opcode = 0xD280_0000  # movz
        yield opcode | index << 21 | half << 5 | register


def address_in(register: int, at: int, target: int) -> bytes:
    """Set a register to an address, at `at`: `adr`, `adrp` and `add`, or a constant.

    Args:
        register: 0 to 30; 31 would be the stack pointer for one of them.
        at: Where the first word lies.
        target: The address.
    """
    if fits(target - at, _ADR_BITS):
        return pack(_adr(0x1000_0000, register, target - at))
    pages = (target >> _PAGE_BITS) - (at >> _PAGE_BITS)
    if not fits(pages, _ADR_BITS):
        return move_constant(register, target)
    rest = target & (1 << _PAGE_BITS) - 1
    page = _adr(0x9000_0000, register, pages)
    if not rest:
        return pack(page)
    return pack(page, 0x9100_0000 | rest << 10 | register << 5 | register)


def _adr(opcode: int, register: int, value: int) -> int:
    return opcode | (value & 3) << 29 | (value >> 2 & 0x7FFFF) << 5 | register
