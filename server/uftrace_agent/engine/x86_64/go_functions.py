"""Functions of the Go compiler: traced at their entry and before each of their returns.

Go moves stacks and walks them, so no return address is ever touched (H42): what is
patched is one instruction of the epilogue that runs exactly when the function returns.

    cmp 0x10(%r14),%rsp     the check for room on the stack; where there is none, the
    jbe ...                 stack is moved and the function begins anew
    push %rbp               <- entry: behind the check each call passes once
    ...
    add $40,%rsp            <- exit: nothing leads between here and the ret
    pop %rbp
    ret

The check, or Go's own table of functions, is also what tells compiled functions from
assembly: in those r14 holds the goroutine's g (Go's internal ABI), by which the probe
names the goroutine. Small leaves have no check, and often no epilogue: there any
instruction serves that runs exactly when the function begins, or returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import capstone
from capstone import x86_const as x86

from uftrace_agent.engine.site import FunctionCode
from uftrace_agent.engine.x86_64.entry_sites import EntrySite
from uftrace_agent.engine.x86_64.instruction import Instruction, Line, decode, outline

# How far from a return its site may lie, in instructions, and an entry's from the check.
_BEFORE_RETURN: Final = 6
_BEHIND_CHECK: Final = 4
_JUMP: Final = 5
# A jump's last bytes may be what follows its site.
_JUMP_MORE: Final = 4
# stackguard0 and, for code that runs on system stacks, stackguard1.
_GUARDS: Final = (0x10, 0x18)
# How the names of ret, iret, bnd, jumps and loops begin.
_WAYS_OUT: Final = "ribjl"
_BELOW_OR_EQUAL: Final = "jbe"
_BELOW: Final = "jb"
_DIVISIONS: Final = (x86.X86_INS_DIV, x86.X86_INS_IDIV)
# Memory that is there whatever the program did.
_SAFE_BASES: Final = (x86.X86_REG_RSP, x86.X86_REG_RBP, x86.X86_REG_RIP)


class NoExitsError(Exception):
    """The returns of a function cannot be traced; the message says why."""


@dataclass(frozen=True, slots=True)
class GoSite:
    """An instruction that may be patched.

    Attributes:
        site: The instruction.
        offset: Bytes from the stack pointer before it up to the return address.
    """

    site: EntrySite
    offset: int


@dataclass(frozen=True)
class GoFunction:
    """A compiled function, decoded as a whole."""

    code: FunctionCode
    body: bytes
    lines: Sequence[Line]
    checked: int  # the index of the first line behind the check; 0 where there is none

    @staticmethod
    def of(code: FunctionCode) -> GoFunction | None:
        """The function; None where nothing says that the Go compiler made it."""
        body = code.body()
        lines = outline(body, code.address)
        if not lines or sum(line.size for line in lines) != len(body):
            return None
        checked = _behind_check(lines)
        if checked is None:
            return GoFunction(code, body, lines, 0) if code.is_go_compiled else None
        return GoFunction(code, body, lines, checked)

    def entries(self) -> list[GoSite]:
        """Where its entry may be patched, best first: behind the check, each call passes
        once; the first instruction runs again after the stack was moved."""
        found: list[GoSite] = []
        offset = 0
        targets = self._targets
        for line in self.lines[self.checked : self.checked + _BEHIND_CHECK]:
            instruction = self._instruction(line)
            if line.address in targets:
                break
            found.append(GoSite(self._site(instruction), offset))
            change = _stack_change(instruction)
            if change is None:
                break
            offset -= change
        found = _longest_first(found)
        if self.checked:
            found.append(GoSite(self._site(self._instruction(self.lines[0])), 0))
        return found

    def exits(self, entry: int) -> list[list[GoSite]]:
        """For each way out, where it may be patched, best first. A call that never returns
        (a panic) is no way out.

        Args:
            entry: Where its entry is patched: what runs before is no exit.

        Raises:
            NoExitsError: Control may leave it unseen.
        """
        start, end = self.code.address, self.code.address + len(self.body)
        targets = self._targets
        has_table = any(_is_indirect_jump(line) for line in self.lines)
        found: list[list[GoSite]] = []
        for index, line in enumerate(self.lines):
            if line.mnemonic[0] not in _WAYS_OUT:
                continue
            target = line.branch_target()
            leaves = target is not None and not start <= target < end
            if line.mnemonic == "ret" and not line.operands:
                sites = [
                    one
                    for one in self._before_return(index, targets, has_table)
                    if one.site.address > entry
                ]
                if not sites:
                    raise NoExitsError(f"nothing belongs to the ret at +{line.address - start:#x}")
                found.append(_longest_first(sites))
            elif line.mnemonic == "jmp" and leaves:
                # The method of an embedded field, called through its outer type.
                found.append([GoSite(self._site(self._instruction(line)), 0)])
            elif line.mnemonic.startswith(("ret", "iret", "bnd")) or (
                leaves and line.mnemonic != "call"
            ):
                raise NoExitsError(f"`{line.mnemonic} {line.operands}` leaves it")
        return found

    def _before_return(
        self, index: int, targets: frozenset[int], has_table: bool
    ) -> Iterator[GoSite]:
        offset = 0
        behind = self.lines[index]
        for line in reversed(self.lines[max(index - _BEFORE_RETURN, self.checked) : index]):
            # A branch to what lies behind the site would leave unseen.
            if behind.address in targets:
                return
            instruction = self._instruction(line)
            change = _stack_change(instruction)
            # Jump tables lead to where the compiler's blocks begin: never into an epilogue.
            if change is None or (has_table and not _is_epilogue(instruction)):
                return
            if not _cannot_fault(instruction):
                return
            offset += change
            yield GoSite(self._site(instruction), offset)
            if instruction.size >= _JUMP:
                return  # nothing is better
            behind = line

    @cached_property
    def _targets(self) -> frozenset[int]:
        return frozenset(
            target
            for line in self.lines
            if line.mnemonic[0] in "jl" and (target := line.branch_target()) is not None
        )

    @cached_property
    def _behind(self) -> bytes:
        return self.code.behind()

    def _instruction(self, line: Line) -> Instruction:
        at = line.address - self.code.address
        instruction = decode(self.body[at : at + line.size], line.address)
        assert instruction is not None, "it was decoded before"
        return instruction

    def _site(self, instruction: Instruction) -> EntrySite:
        at = instruction.address - self.code.address
        more = (self.body + self._behind)[at : at + instruction.size + _JUMP_MORE]
        return EntrySite(instruction, more)


def _longest_first(sites: Sequence[GoSite]) -> list[GoSite]:
    # Five bytes hold any jump; shorter ones need memory at the right place.
    return sorted(sites, key=lambda one: one.site.size < _JUMP)


# cmp 0x10(%r14),%rsp; jbe   or, for large frames,   lea -N(%rsp),%r12; cmp; jbe   or, for
# the largest,   mov %rsp,%r12; sub $N,%r12; jb; cmp; jbe
def _behind_check(lines: Sequence[Line]) -> int | None:
    wanted = [f"qword ptr [r14 + {guard:#x}]" for guard in _GUARDS]
    for index, line in enumerate(lines[:6]):
        if line.mnemonic == "cmp":
            register, _, memory = line.operands.partition(", ")
            if register not in ("rsp", "r12") or memory not in wanted:
                return None
            is_checked = index + 1 < len(lines) and lines[index + 1].mnemonic == _BELOW_OR_EQUAL
            return index + 2 if is_checked else None
        if line.mnemonic not in ("lea", "mov", "sub", _BELOW):
            return None
        if line.mnemonic != _BELOW and not line.operands.startswith("r12,"):
            return None
    return None


# By how much the stack pointer moves; None where that is not known, or where control
# does not simply go on.
def _stack_change(instruction: Instruction) -> int | None:
    raw = instruction.raw
    if raw.id == x86.X86_INS_PUSH and instruction.pushes_register():
        return -8
    if raw.id == x86.X86_INS_POP and raw.operands[0].type == x86.X86_OP_REG:
        return None if raw.operands[0].reg == x86.X86_REG_RSP else 8
    if raw.id in (x86.X86_INS_ADD, x86.X86_INS_SUB) and _is_register(raw, 0, x86.X86_REG_RSP):
        if raw.operands[1].type != x86.X86_OP_IMM:
            return None
        amount = int(raw.operands[1].imm)
        return amount if raw.id == x86.X86_INS_ADD else -amount
    return 0 if instruction.goes_straight_on() else None


def _is_register(raw: capstone.CsInsn, place: int, register: int) -> bool:
    operand = raw.operands[place]
    return bool(operand.type == x86.X86_OP_REG and operand.reg == register)


# mov N(%rsp),%rbp; add $N,%rsp; pop %rbp, and nops by which the assembler keeps a ret from
# the end of 32 bytes (Intel's erratum of jumps, SKX102)
def _is_epilogue(instruction: Instruction) -> bool:
    raw = instruction.raw
    if raw.id in (x86.X86_INS_ADD, x86.X86_INS_SUB):
        return _is_register(raw, 0, x86.X86_REG_RSP)
    if raw.id in (x86.X86_INS_POP, x86.X86_INS_NOP):
        return True
    return (
        raw.id == x86.X86_INS_MOV
        and _is_register(raw, 0, x86.X86_REG_RBP)
        and raw.operands[1].type == x86.X86_OP_MEM
        and raw.operands[1].mem.base == x86.X86_REG_RSP
    )


# What faults panics: then the function does not return.
def _cannot_fault(instruction: Instruction) -> bool:
    raw = instruction.raw
    if raw.id in _DIVISIONS:
        return False
    if raw.id in (x86.X86_INS_LEA, x86.X86_INS_NOP):
        return True
    return all(
        operand.type != x86.X86_OP_MEM
        or (operand.mem.base in _SAFE_BASES and not operand.mem.index and not operand.mem.segment)
        for operand in raw.operands
    )


# Go's compiler makes them for the tables of `switch`.
def _is_indirect_jump(line: Line) -> bool:
    return line.mnemonic == "jmp" and line.branch_target() is None
