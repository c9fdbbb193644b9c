"""Decoding one AArch64 instruction and moving it elsewhere (OLX).

By bit patterns (ARM ARM DDI 0487, C4.1), since functions are planned by the ten
thousand. What names its own address is rewritten; what belongs to a class in which
new instructions may do so, and is not known here, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import capstone
import numpy as np
from numpy.typing import NDArray

from uftrace_agent.engine.aarch64.encoding import (
    ADDRESS_MASK,
    LINK_REGISTER,
    NOP,
    WORD,
    WORD_MASK,
    ZERO_REGISTER,
    address_in,
    branch,
    fits,
    pack,
    signed,
)
from uftrace_agent.engine.moved import Moved, UnmovableError

_NOP: Final = 0xD503_201F
_ISB: Final = (0xFFFF_F0FF, 0xD503_30DF)
# bti, bti c, bti j, bti jc.
_BTI: Final = (0xFFFF_FF3F, 0xD503_241F)
_LANDS_CALLS: Final = frozenset({0xD503_245F, 0xD503_24DF, 0xD503_233F, 0xD503_237F})
_SIGNS: Final[dict[int, Literal["a", "b"]]] = {0xD503_233F: "a", 0xD503_237F: "b"}

# (mask, value): a word of this kind has these bits.
_B_OR_BL: Final = (0x7C00_0000, 0x1400_0000)
_B: Final = (0xFC00_0000, 0x1400_0000)
_BL: Final = (0xFC00_0000, 0x9400_0000)
_B_COND: Final = (0xFF00_0000, 0x5400_0000)  # and bc.cond
_CBZ: Final = (0x7E00_0000, 0x3400_0000)  # and cbnz
_TBZ: Final = (0x7E00_0000, 0x3600_0000)  # and tbnz
# cb<cc>, cbb<cc>, cbh<cc> (FEAT_CMPBR).
_CB: Final = (0x7E00_0000, 0x7400_0000)
_BRANCH_REGISTER: Final = (0xFE00_0000, 0xD600_0000)
_BRANCHES_BY_REGISTER: Final = (
    (0xFFDF_FC1F, 0xD61F_0000),  # br, blr
    (0xFFDF_F81F, 0xD61F_081F),  # braaz, brabz, blraaz, blrabz
    (0xFFDF_F800, 0xD71F_0800),  # braa, brab, blraa, blrab
    (0xFFFF_FC1F, 0xD65F_0000),  # ret
    (0xFFFF_FBE0, 0xD65F_0BE0),  # retaa, retab; retaasppcr, retabsppcr
)
_ERET_OR_DRPS: Final = (0xFFC0_0000, 0xD680_0000)
_EXCEPTION: Final = (0xFF00_0000, 0xD400_0000)
_BRK: Final = (0xFFE0_001F, 0xD420_0000)
_SVC_HVC_SMC: Final = (0xFFE0_001C, 0xD400_0000)
_HLT: Final = (0xFFE0_001F, 0xD440_0000)
# Hints, barriers, PSTATE, system instructions and registers, single and in pairs.
_SYSTEM: Final = (0xFF80_0000, 0xD500_0000)
_CLASS_BRANCHES: Final = (0x1C00_0000, 0x1400_0000)
_ADR: Final = (0x9F00_0000, 0x1000_0000)
_ADRP: Final = (0x9F00_0000, 0x9000_0000)
_LITERAL: Final = (0x3B00_0000, 0x1800_0000)
# Exclusive loads and stores, of pairs too; of these, but for casp. And ldtxr, sttxr.
_EXCLUSIVE: Final = (0x3F80_0000, 0x0800_0000)
_CASP: Final = (0xBFA0_0000, 0x0820_0000)
_EXCLUSIVE_UNPRIVILEGED: Final = (0xBFA0_0000, 0x8900_0000)
_MOPS: Final = (0x3B20_0C00, 0x1900_0400)
_MOVPRFX: Final = ((0xFFFF_FC00, 0x0420_BC00), (0xFF3E_E000, 0x0410_2000))
_PACM: Final = 0xD503_24FF
_TSTART: Final = (0xFFFF_FFE0, 0xD523_3060)
# paciasppc, pacibsppc, pacnbiasppc, pacnbibsppc; auti?sppc; reta?sppc (FEAT_PAuth_LR).
_PAC_BY_ADDRESS: Final = (
    (0xFFFF_FBFF, 0xDAC1_A3FE),
    (0xFFFF_FBFF, 0xDAC1_83FE),
    (0xFF80_0000, 0xF380_0000),
    (0xFF00_0000, 0x5500_0000),
)
# The encodings of C4.1 that are reserved or unallocated as a whole: op0 is 0 without
# bit 31 (which is SME), 1 or 3. Nearly all others have one of these bits.
_MOST: Final = 0x1800_0000
_UNALLOCATED: Final = ((0x9E00_0000, 0), (0x1E00_0000, 0x0200_0000), (0x1E00_0000, 0x0600_0000))

# Conditions 14 and 15 both mean always.
_ALWAYS: Final = 14
_CONDITION_INVERTED: Final = 1
_TEST_INVERTED: Final = 1 << 24
_LINKS: Final = 1 << 21

# A register that is none of the instruction's own, kept on the stack: nothing below
# the stack pointer is anybody's (AAPCS64).
_SCRATCH: Final = 16
_PUSH_SCRATCH: Final = pack(0xF81F_0FF0)  # str x16, [sp, #-16]!
_POP_SCRATCH: Final = pack(0xF841_07F0)  # ldr x16, [sp], #16
# By (vector, opc) of a literal load: the load from a register's address.
_LOADS: Final = {
    (0, 0): 0xB940_0000,  # ldr w
    (0, 1): 0xF940_0000,  # ldr x
    (0, 2): 0xB980_0000,  # ldrsw
    (1, 0): 0xBD40_0000,  # ldr s
    (1, 1): 0xFD40_0000,  # ldr d
    (1, 2): 0x3DC0_0000,  # ldr q
}
_PREFETCH: Final = (0, 3)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction at its original address.

    Attributes:
        address: Where it lies.
        word: Its encoding.
    """

    address: int
    word: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return WORD

    @property
    def code(self) -> bytes:
        """As it lies in memory."""
        return self.word.to_bytes(WORD, "little")

    @property
    def text(self) -> str:
        """Assembly, for people."""
        for raw in _disassembler().disasm_lite(self.code, self.address, 1):
            return f"{raw[2]} {raw[3]}".strip()
        return f".inst {self.word:#010x}"

    def is_a(self, pattern: tuple[int, int]) -> bool:
        """Whether the bits of a mask have this value."""
        return self.word & pattern[0] == pattern[1]

    def branch_target(self) -> int | None:
        """Where a direct branch or call goes; None for anything else."""
        field = _branch_field(self.word)
        if field is None:
            return None
        bits, shift = field
        return self.address + (signed(self.word >> shift, bits) << 2) & ADDRESS_MASK

    def is_call(self) -> bool:
        """Whether it sets the link register: `bl`, `blr`, `blraa` and the like."""
        if self.is_a(_BL):
            return True
        return self.is_a(_BRANCH_REGISTER) and self.word >> 21 & 7 == 1

    def ends_flow(self) -> bool:
        """Whether control never goes on behind it."""
        if self.is_a(_B) or self.is_a(_BRK) or self.is_a(_HLT) or not self.word >> 16:
            return True
        if self.is_a(_B_COND):
            return self.word & 15 >= _ALWAYS
        if self.is_a(_BRANCH_REGISTER):
            return not self.is_call()
        return self.is_a((0xFF00_0000, 0x5500_0000))

    def is_return(self) -> bool:
        """Whether it is `ret`, `retaa` or `retab`, by whichever register."""
        return self.is_a(_BRANCH_REGISTER) and self.word >> 21 & 15 == 2

    def is_landing_pad(self) -> bool:
        """Whether an indirect call may land on it in a page that is guarded (PROT_BTI)."""
        return self.word in _LANDS_CALLS

    def is_bti(self) -> bool:
        """Whether it is `bti`, for calls or jumps or both."""
        return self.is_a(_BTI)

    def signs_return(self) -> Literal["a", "b"] | None:
        """The key by which it signs the link register with the stack pointer; None if not."""
        return _SIGNS.get(self.word)

    def is_nop(self) -> bool:
        """Whether it is `nop` itself, and no other hint."""
        return self.word == _NOP

    def binds_next(self) -> bool:
        """Whether the next word must run right behind it.

        `movprfx` is a part of the next instruction, `pacm` says how it signs, and
        of the parts of a memory copy the kernel may run the first one again.
        """
        return (
            self.word == _PACM
            or self.is_a(_MOPS)
            or self.is_a(_MOVPRFX[0])
            or self.is_a(_MOVPRFX[1])
        )

    def may_change_live(self) -> bool:
        """Whether it may become another such instruction while it is executed.

        ARM ARM B2.2.5, "Concurrent modification and execution of instructions": the
        list that all issues have.
        """
        return (
            self.is_a(_B_OR_BL)
            or self.word == _NOP
            or self.is_a(_BRK)
            or self.is_a(_ISB)
            or (self.is_a(_SVC_HVC_SMC) and self.word & 3 != 0)
        )

    def moved_to(self, destination: int) -> Moved:
        """Rewrite for `destination`: 7 words at most.

        It leaves no register, flag or memory other than the original would, but
        for what is below the stack pointer.

        Raises:
            UnmovableError: It cannot run elsewhere.
            OutOfReachError: It refers to something too far from `destination`.
        """
        return _move(self, destination)


@cache
def _disassembler() -> capstone.Cs:
    return capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)


def decode(code: bytes, address: int) -> Instruction | None:
    """The first instruction of `code`, which lies at `address`; None if it is none."""
    if len(code) < WORD:
        return None
    word = int.from_bytes(code[:WORD], "little")
    if _is_unallocated(word):
        return None
    return Instruction(address, word)


def _is_unallocated(word: int) -> bool:
    return not word & _MOST and any(word & mask == value for mask, value in _UNALLOCATED)


def branch_targets(code: bytes, address: int) -> NDArray[np.int64]:
    """Where the direct branches and calls in a piece of code go, in no order."""
    words = np.frombuffer(code, "<u4", len(code) // WORD).astype(np.int64)
    addresses = np.arange(len(words), dtype=np.int64) * WORD + address
    targets = []
    for (mask, value), bits, shift in _BRANCHES:
        chosen = words & mask == value
        sign = 1 << bits - 1
        offsets = (words[chosen] >> shift & (sign << 1) - 1 ^ sign) - sign
        targets.append(addresses[chosen] + offsets * WORD)
    return np.concatenate(targets)


# Where each kind of direct branch has its distance, in words: pattern, bits, shift.
_BRANCHES: Final = (
    (_B_OR_BL, 26, 0),
    (_B_COND, 19, 5),
    (_CBZ, 19, 5),
    (_TBZ, 14, 5),
    (_CB, 9, 5),
)


def _branch_field(word: int) -> tuple[int, int] | None:
    for (mask, value), bits, shift in _BRANCHES:
        if word & mask == value:
            return bits, shift
    return None


def _move(instruction: Instruction, destination: int) -> Moved:
    reason = _why_unmovable(instruction)
    if reason:
        raise UnmovableError(f"`{instruction.text}` cannot run at another address: {reason}")
    target = instruction.branch_target()
    if target is not None:
        return _move_branch(instruction, destination, target)
    if instruction.is_a(_BRANCH_REGISTER):
        if not instruction.is_call():
            return Moved(instruction.code, falls_through=False)
        # br for blr, braa for blraa.
        link = address_in(LINK_REGISTER, destination, instruction.address + WORD)
        return Moved(link + pack(instruction.word & ~_LINKS), falls_through=False)
    if instruction.is_a(_ADR) or instruction.is_a(_ADRP):
        return Moved(_move_address(instruction, destination), falls_through=True)
    if instruction.is_a(_LITERAL):
        return Moved(_move_literal(instruction, destination), falls_through=True)
    return Moved(instruction.code, falls_through=True)


def _why_unmovable(instruction: Instruction) -> str:
    word = instruction.word
    if instruction.is_a(_EXCEPTION):
        return "what it calls or traps into goes by its address"
    if _is_unallocated(word):
        return "it is no instruction"
    if _is_exclusive(instruction):
        return "a probe between an exclusive load and its store would end the exclusive access"
    if instruction.is_a(_TSTART):
        return "a transaction that fails begins anew behind it"
    if any(instruction.is_a(pattern) for pattern in _PAC_BY_ADDRESS):
        return "it signs with its own address"
    if instruction.binds_next():
        return "the next instruction must follow at once"
    if instruction.is_a(_LITERAL) and word >> 26 & 1 and word >> 30 == _PREFETCH[1]:
        return "it is no instruction"
    if instruction.is_a(_CLASS_BRANCHES):
        return _why_unmovable_branch(instruction)
    return ""


def _is_exclusive(instruction: Instruction) -> bool:
    if instruction.is_a(_EXCLUSIVE):
        return not instruction.is_a(_CASP)
    return instruction.is_a(_EXCLUSIVE_UNPRIVILEGED)


def _why_unmovable_branch(instruction: Instruction) -> str:
    word = instruction.word
    if instruction.is_a(_CB):
        return "it is too new to have been tried"
    if _branch_field(word) is not None or instruction.is_a(_SYSTEM):
        return ""
    if instruction.is_a(_ERET_OR_DRPS):
        return "only the kernel may execute it"
    if not any(instruction.is_a(pattern) for pattern in _BRANCHES_BY_REGISTER):
        return "it is no branch that is known"
    # Without a modifier there are ones or zeros in its place.
    if instruction.is_call() and LINK_REGISTER in (word >> 5 & 31, word & 31):
        return "it reads the register that it sets"
    return ""


def _move_branch(instruction: Instruction, destination: int, target: int) -> Moved:
    word = instruction.word
    if instruction.is_a(_B):
        return Moved(branch(destination, target), falls_through=False)
    if instruction.is_a(_BL):
        # The callee must see the real return address: it may unwind, and a return
        # into the OLX buffer has no unwind entry.
        link = address_in(LINK_REGISTER, destination, instruction.address + WORD)
        return Moved(link + branch(destination + len(link), target), falls_through=False)
    field = _branch_field(word)
    assert field is not None
    if instruction.is_a(_B_COND) and word & 15 >= _ALWAYS:
        # Nothing is the opposite of always. An older processor must still refuse bc.al.
        itself = pack(_with_distance(word, field, WORD))
        return Moved(itself + branch(destination + WORD, target), falls_through=False)
    if fits(target - destination, field[0] + 2):
        return Moved(pack(_with_distance(word, field, target - destination)), falls_through=True)
    inverted = word ^ (_CONDITION_INVERTED if instruction.is_a(_B_COND) else _TEST_INVERTED)
    over = _with_distance(inverted, field, 2 * WORD)
    return Moved(pack(over) + branch(destination + WORD, target), falls_through=True)


def _with_distance(word: int, field: tuple[int, int], distance: int) -> int:
    bits, shift = field
    mask = (1 << bits) - 1
    return word & ~(mask << shift) & WORD_MASK | (distance >> 2 & mask) << shift


def _move_address(instruction: Instruction, destination: int) -> bytes:
    word = instruction.word
    register = word & 31
    if register == ZERO_REGISTER:
        return NOP
    distance = signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
    if instruction.is_a(_ADR):
        value = instruction.address + distance
    else:
        value = (instruction.address & ~0xFFF) + (distance << 12)
    return address_in(register, destination, value & ADDRESS_MASK)


def _move_literal(instruction: Instruction, destination: int) -> bytes:
    word = instruction.word
    field = (19, 5)
    target = instruction.address + (signed(word >> 5, 19) << 2) & ADDRESS_MASK
    if fits(target - destination, 21):
        return pack(_with_distance(word, field, target - destination))
    kind = (word >> 26 & 1, word >> 30)
    if kind == _PREFETCH:
        # It changes nothing that a program can see, but time.
        return NOP
    register = word & 31
    if kind[0] == 0 and register != ZERO_REGISTER:
        base, before, after = register, b"", b""
    else:
        base, before, after = _SCRATCH, _PUSH_SCRATCH, _POP_SCRATCH
    address = address_in(base, destination + len(before), target)
    return before + address + pack(_LOADS[kind] | base << 5 | register) + after
