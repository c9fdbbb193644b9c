"""Decoding one x86-64 instruction and moving it elsewhere (OLX)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

import capstone
from capstone import x86_const as x86

from uftrace_agent.engine.moved import Moved as Moved
from uftrace_agent.engine.moved import OutOfReachError as OutOfReachError
from uftrace_agent.engine.moved import UnmovableError as UnmovableError

# Conditional jumps, by capstone id, with their condition code (Intel SDM
# volume 2, appendix B.1.4.7).
_CONDITIONS: Final = {
    x86.X86_INS_JO: 0x0,
    x86.X86_INS_JNO: 0x1,
    x86.X86_INS_JB: 0x2,
    x86.X86_INS_JAE: 0x3,
    x86.X86_INS_JE: 0x4,
    x86.X86_INS_JNE: 0x5,
    x86.X86_INS_JBE: 0x6,
    x86.X86_INS_JA: 0x7,
    x86.X86_INS_JS: 0x8,
    x86.X86_INS_JNS: 0x9,
    x86.X86_INS_JP: 0xA,
    x86.X86_INS_JNP: 0xB,
    x86.X86_INS_JL: 0xC,
    x86.X86_INS_JGE: 0xD,
    x86.X86_INS_JLE: 0xE,
    x86.X86_INS_JG: 0xF,
}
# Short-only branches on rcx.
_COUNTED: Final = frozenset(
    {
        x86.X86_INS_JRCXZ,
        x86.X86_INS_JECXZ,
        x86.X86_INS_LOOP,
        x86.X86_INS_LOOPE,
        x86.X86_INS_LOOPNE,
    }
)
_BRANCHES: Final = frozenset({x86.X86_INS_CALL, x86.X86_INS_JMP, *_CONDITIONS, *_COUNTED})
# Cannot run elsewhere: they enter the kernel, which may rewind them (H6), trap,
# or save their own address (H18).
_UNMOVABLE: Final = frozenset(
    {
        x86.X86_INS_SYSCALL,
        x86.X86_INS_SYSENTER,
        x86.X86_INS_INT,
        x86.X86_INS_INT1,
        x86.X86_INS_INT3,
        x86.X86_INS_INTO,
        x86.X86_INS_UD0,
        x86.X86_INS_UD1,
        x86.X86_INS_HLT,
        x86.X86_INS_XBEGIN,
        x86.X86_INS_XABORT,
        x86.X86_INS_LCALL,
        x86.X86_INS_LJMP,
        x86.X86_INS_RETF,
        x86.X86_INS_RETFQ,
        x86.X86_INS_IRET,
        x86.X86_INS_IRETD,
        x86.X86_INS_IRETQ,
    }
)
_UD2: Final = b"\x0f\x0b"
_OPERAND_SIZE: Final = 0x66
_LOCK: Final = 0xF0
_LEGACY_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_INDIRECT: Final = 0xFF
_REX_B: Final = 0x41
_PUSH_REGISTER: Final = 0x50
_STACK_POINTER: Final = frozenset({x86.X86_REG_RSP, x86.X86_REG_ESP, x86.X86_REG_SP})
ENDBR64: Final = b"\xf3\x0f\x1e\xfa"
# The one 5-byte nop of the manual, and clang's (-fpatchable-function-entry).
NOP5: Final = (b"\x0f\x1f\x44\x00\x00", b"\x0f\x1f\x44\x00\x08")
LONGEST: Final = 15
# Opcode, ModRM, disp32.
_SHORTEST_RIP_RELATIVE: Final = 6


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction at its original address."""

    address: int
    code: bytes
    raw: capstone.CsInsn

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.code)

    @property
    def text(self) -> str:
        """Intel syntax, for people."""
        return f"{self.raw.mnemonic} {self.raw.op_str}".strip()

    def branch_target(self) -> int | None:
        """Where a direct call or jump goes; None for anything else."""
        if self.raw.id in _BRANCHES and self.raw.operands[0].type == x86.X86_OP_IMM:
            return int(self.raw.operands[0].imm) & (1 << 64) - 1
        return None

    def is_call(self) -> bool:
        """Whether it pushes a return address."""
        return bool(self.raw.id == x86.X86_INS_CALL)

    def ends_flow(self) -> bool:
        """Whether control never goes on behind it."""
        return self.raw.id in (
            x86.X86_INS_JMP,
            x86.X86_INS_RET,
            x86.X86_INS_UD2,
            x86.X86_INS_HLT,
        )

    def pushes_register(self) -> bool:
        """Whether it is `push` of a 64-bit register, and so moves the stack by 8 bytes."""
        opcode = self.code[1:] if self.code[0] == _REX_B else self.code
        return len(opcode) == 1 and opcode[0] & 0xF8 == _PUSH_REGISTER

    def goes_straight_on(self) -> bool:
        """Whether control always goes on behind it, with the stack where it was."""
        if self.raw.id in _UNMOVABLE or self.is_call() or self.ends_flow():
            return False
        if self.raw.id in _CONDITIONS or self.raw.id in _COUNTED:
            return False
        _, written = self.raw.regs_access()
        return not _STACK_POINTER & set(written)

    def indirect_slot(self) -> int | None:
        """The address that `call/jmp *disp(%rip)` reads; None for anything else."""
        if self.raw.id not in (x86.X86_INS_CALL, x86.X86_INS_JMP):
            return None
        operand = self.raw.operands[0]
        if operand.type != x86.X86_OP_MEM or operand.mem.base != x86.X86_REG_RIP:
            return None
        return self.address + self.size + int(operand.mem.disp)

    def moved_to(self, destination: int) -> Moved:
        """Rewrite for `destination`.

        Raises:
            UnmovableError: It cannot run elsewhere.
            OutOfReachError: It refers to something too far from `destination`.
        """
        return _move(self, destination)


@cache
def _decoder() -> capstone.Cs:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    return decoder


def decode(code: bytes, address: int) -> Instruction | None:
    """The first instruction of `code`, which lies at `address`; None if it is none."""
    for raw in _decoder().disasm(code[:LONGEST], address, 1):
        return Instruction(address, code[: raw.size], raw)
    return None


@cache
def _quick_decoder() -> capstone.Cs:
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


class Line(NamedTuple):
    """One instruction of a function, as text."""

    address: int
    size: int
    mnemonic: str
    operands: str

    def branch_target(self) -> int | None:
        """Where a direct call or jump goes; None for anything else."""
        if self.mnemonic[0] in "jcl" and self.operands.startswith("0x"):
            return int(self.operands, 16)
        return None


def outline(code: bytes, address: int) -> list[Line]:
    """The instructions of a function, as far as they can be decoded one after the other."""
    return [Line(*fields) for fields in _quick_decoder().disasm_lite(code, address)]


def relative32(source_end: int, target: int) -> bytes:
    """The rel32 from the end of an instruction to `target`.

    Raises:
        OutOfReachError: It is further than 2 GiB.
    """
    distance = target - source_end
    if not -(1 << 31) <= distance < 1 << 31:
        raise OutOfReachError(f"{target:#x} is out of reach of {source_end:#x}")
    return struct.pack("<i", distance)


def jump(source: int, target: int) -> bytes:
    """`jmp rel32` at `source`."""
    return b"\xe9" + relative32(source + 5, target)


def call(source: int, target: int) -> bytes:
    """`call rel32` at `source`."""
    return b"\xe8" + relative32(source + 5, target)


def far_jump(target: int) -> bytes:
    """`jmp *0(%rip)` and the address: 14 bytes that reach anywhere."""
    return b"\xff\x25\x00\x00\x00\x00" + struct.pack("<Q", target)


def _push_constant(value: int) -> bytes:
    # lea -8(%rsp),%rsp; movl $low,(%rsp); movl $high,4(%rsp): a push of 64 bits
    # that changes no register and no flag.
    return (
        b"\x48\x8d\x64\x24\xf8"
        + b"\xc7\x04\x24"
        + struct.pack("<I", value & 0xFFFF_FFFF)
        + b"\xc7\x44\x24\x04"
        + struct.pack("<I", value >> 32)
    )


def _move(instruction: Instruction, destination: int) -> Moved:
    raw = instruction.raw
    end = instruction.address + instruction.size
    if raw.id in _UNMOVABLE or instruction.code == _UD2 or _is_far(raw):
        raise UnmovableError(f"`{instruction.text}` cannot run at another address")
    if raw.id in _BRANCHES and _OPERAND_SIZE in bytes(raw.prefix):
        # Intel's processors ignore the prefix, AMD's go to a 16-bit address
        # (AMD64 manual volume 3, JMP near).
        raise UnmovableError(f"`{instruction.text}` goes elsewhere on other processors")
    if raw.id in _BRANCHES and _LOCK in _prefixes(instruction.code):
        raise UnmovableError(f"`{instruction.text}` with a lock prefix is no instruction")
    target = instruction.branch_target()
    if target is not None:
        if raw.id == x86.X86_INS_JMP:
            return Moved(jump(destination, target), falls_through=False)
        if raw.id == x86.X86_INS_CALL:
            # The callee must see the real return address: it may unwind, and a
            # return into the OLX buffer has no unwind entry.
            push = _push_constant(end)
            return Moved(push + jump(destination + len(push), target), falls_through=False)
        if raw.id in _COUNTED:
            return Moved(_move_counted(instruction, destination, target), falls_through=True)
        opcode = bytes((0x0F, 0x80 | _CONDITIONS[raw.id]))
        return Moved(opcode + relative32(destination + 6, target), falls_through=True)
    if raw.id == x86.X86_INS_CALL:
        return _move_indirect_call(instruction, destination, end)
    code = _fix_rip_relative(instruction, destination)
    falls_through = raw.id not in (x86.X86_INS_JMP, x86.X86_INS_RET)
    return Moved(code, falls_through)


# Capstone keeps one of each group only, and a REX prefix may stand before others.
def _prefixes(code: bytes) -> bytes:
    at = 0
    while at < len(code) and (code[at] in _LEGACY_PREFIXES or code[at] & 0xF0 == 0x40):
        at += 1
    return code[:at]


# Capstone takes `lcall *disp(%rip)` (FF /3, FF /5) for a near one.
def _is_far(raw: capstone.CsInsn) -> bool:
    if raw.id not in (x86.X86_INS_CALL, x86.X86_INS_JMP):
        return False
    return raw.opcode[0] == _INDIRECT and raw.modrm >> 3 & 7 in (3, 5)


def _move_counted(instruction: Instruction, destination: int, target: int) -> bytes:
    # jrcxz +2; jmp over; jmp target
    head = instruction.code[:-1] + b"\x02" + b"\xeb\x05"
    return head + jump(destination + len(head), target)


def _move_indirect_call(instruction: Instruction, destination: int, end: int) -> Moved:
    operand = instruction.raw.operands[0]
    if operand.type == x86.X86_OP_MEM and _STACK_POINTER & {operand.mem.base, operand.mem.index}:
        raise UnmovableError(f"`{instruction.text}` reads its target relative to the stack")
    if operand.type == x86.X86_OP_REG and operand.reg == x86.X86_REG_RSP:
        raise UnmovableError(f"`{instruction.text}` calls the stack pointer")
    push = _push_constant(end)
    at = destination + len(push)
    # FF /2 (call) becomes FF /4 (jmp): the reg field of ModRM, +16.
    modrm = instruction.raw.encoding.modrm_offset
    code = bytearray(_fix_rip_relative(instruction, at))
    code[modrm] += 0x10
    return Moved(push + bytes(code), falls_through=False)


def _fix_rip_relative(instruction: Instruction, destination: int) -> bytes:
    if instruction.size < _SHORTEST_RIP_RELATIVE:
        return instruction.code
    raw = instruction.raw
    for operand in raw.operands:
        if operand.type == x86.X86_OP_MEM and operand.mem.base in (
            x86.X86_REG_RIP,
            x86.X86_REG_EIP,
        ):
            if operand.mem.base == x86.X86_REG_EIP:
                raise UnmovableError(f"`{instruction.text}` uses a 32-bit instruction pointer")
            referred = instruction.address + instruction.size + int(operand.mem.disp)
            offset = raw.encoding.disp_offset
            fixed = relative32(destination + instruction.size, referred)
            return instruction.code[:offset] + fixed + instruction.code[offset + 4 :]
    return instruction.code
