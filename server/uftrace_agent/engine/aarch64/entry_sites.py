"""Which word of a function is changed: its first, but for landing pads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.aarch64.encoding import WORD
from uftrace_agent.engine.aarch64.instruction import Instruction, decode
from uftrace_agent.engine.aarch64.stub import SIGNATURES, UNSIGNED, Signature
from uftrace_agent.engine.model import Refusal, RefusedError
from uftrace_agent.engine.site import FunctionCode

# gcc -pg puts the call behind at most this many instructions of prologue.
_PROLOGUE: Final = 16
_MCOUNT: Final = "mcount"
# xpaclri, nop
_HARMLESS: Final = frozenset({0xD503_20FF, 0xD503_201F})
_MOV: Final = (0x7FE0_FFE0, 0x2A00_03E0)  # mov w, w and mov x, x
_FRAME_POINTER: Final = 29
_MOV_FRAME: Final = 0x9100_03FD  # mov x29, sp; as all of `add x29, sp, #imm`
_ADD_FRAME: Final = (0xFFC0_03FF, _MOV_FRAME)
_SUB_STACK: Final = (0xFFC0_03FF, 0xD100_03FF)
_PUSH_FRAME: Final = (0xFFC0_7FFF, 0xA980_7BFD)  # stp x29, x30, [sp, #imm]!
_STORE_FRAME: Final = (0xFFC0_7FFF, 0xA900_7BFD)  # stp x29, x30, [sp, #imm]
# str and stp of general and vector registers to [sp, #imm], which leave sp alone.
_STORES: Final = (
    (0xFFC0_03E0, 0xA900_03E0),
    (0xFFC0_03E0, 0x6D00_03E0),
    (0xFFC0_03E0, 0xF900_03E0),
    (0xFFC0_03E0, 0xFD00_03E0),
    (0xFFC0_03E0, 0xB900_03E0),
)


@dataclass(frozen=True, slots=True)
class EntrySite:
    """The word that is replaced.

    Attributes:
        instruction: What is there.
        signature: How the return address is signed when control gets there.
    """

    instruction: Instruction
    signature: Signature

    @property
    def address(self) -> int:
        """Where it lies."""
        return self.instruction.address


def entry_site(function: FunctionCode) -> EntrySite:
    """The site of any function.

    What an indirect call lands on stays in any case: whether a page is guarded may
    change while the program runs. `bti` comes before everything else, where there is
    one. `paciasp` is a landing pad too (ARM ARM, D8.4.5, "PACIASP and PACIBSP"), and is
    mostly the only one: the site is behind it then, where the return address is
    signed already, with the stack pointer as it still is; the stub takes the signature
    off, and signs what it leaves.

    Raises:
        RefusedError: There is none.
    """
    first = _at(function, 0)
    if first.is_bti():
        return EntrySite(_at(function, WORD), UNSIGNED)
    key = first.signs_return()
    if key is not None:
        return EntrySite(_at(function, WORD), SIGNATURES[key])
    return EntrySite(first, UNSIGNED)


def _at(function: FunctionCode, offset: int) -> Instruction:
    if function.size and offset >= function.size:
        raise RefusedError(Refusal.TOO_SHORT, "the function is a landing pad and nothing else")
    instruction = decode(function.code[offset:], function.address + offset)
    if instruction is None:
        raise RefusedError(Refusal.UNDECODABLE, "the first bytes are no instruction")
    return instruction


@dataclass(frozen=True, slots=True)
class ProfilingCall:
    """The call that -pg has made.

    Attributes:
        instruction: `bl _mcount`, direct or by a stub.
        callee: Where it goes.
        frame: The function's stack pointer at its entry, counted from x29 at the call.
    """

    instruction: Instruction
    callee: int
    frame: int


def profiling_call(function: FunctionCode) -> ProfilingCall | None:
    """The call of _mcount, if the function has one behind a prologue in which the frame
    record can be followed, and has not signed the return address in there."""
    below = 0  # how far sp has gone down
    frame: int | None = None  # where x29 is, below the entry's sp
    has_record = False
    offset = 0
    for offset in range(0, min(len(function.code), _PROLOGUE * WORD), WORD):
        instruction = decode(function.code[offset:], function.address + offset)
        if instruction is None:
            return None
        word = instruction.word
        if instruction.is_call():
            target = instruction.branch_target()
            if target is None or function.profiled.get(target) != _MCOUNT:
                return None
            if frame is None or not has_record:
                return None
            return ProfilingCall(instruction, target, frame)
        if instruction.is_a(_PUSH_FRAME) and not below:
            below += -_pair_offset(word)
            frame, has_record = None, True
            record = below
        elif instruction.is_a(_SUB_STACK) and not below:
            below += word >> 10 & 0xFFF
        elif instruction.is_a(_STORE_FRAME):
            record, has_record = below - _pair_offset(word), True
        elif instruction.is_a(_ADD_FRAME) and has_record:
            frame = below - (word >> 10 & 0xFFF)
            if frame != record:
                return None
        elif not (
            word in _HARMLESS
            or instruction.is_bti()
            or (instruction.is_a(_MOV) and word & 31 != _FRAME_POINTER)
            or any(instruction.is_a(store) for store in _STORES)
        ):
            return None
    return None


def _pair_offset(word: int) -> int:
    field = word >> 15 & 0x7F
    return ((field ^ 0x40) - 0x40) * 8
