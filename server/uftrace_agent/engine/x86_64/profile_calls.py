"""The calls of -finstrument-functions: __cyg_profile_func_enter(function, caller) and
__cyg_profile_func_exit at every way out.

Code that was inlined brings calls of its own, with another function's address; only
those that name the function itself are its sites. Both calls are told where the
return address lies, by what the compiler loads as `caller`: that place is what pairs
entry and exit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from capstone import x86_const as x86

from uftrace_agent.engine.architecture import SiteRequest
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import Form, SiteKind, Writer
from uftrace_agent.engine.site import CodeWrite, FunctionCode, Patch, ProbeKind, Role, SitePlan
from uftrace_agent.engine.x86_64 import stub as stubs
from uftrace_agent.engine.x86_64.instruction import (
    Instruction,
    Line,
    OutOfReachError,
    call,
    decode,
    jump,
    outline,
)
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_ENTRY_ONLY, KIND_EXIT, id_word

_ENTER: Final = "__cyg_profile_func_enter"
_EXIT: Final = "__cyg_profile_func_exit"
# How far before the call its arguments are looked for.
_WINDOW: Final = 16
_ADDRESS_PREFIX: Final = b"\x67"
# As capstone writes them: `lea rbx, [rip + 0x10]`, `mov ebx, 0x401000`.
_LOADS_ADDRESS: Final = re.compile(r"r\w+, \[rip ([+-]) (0x[0-9a-f]+|\d+)\]")
_LOADS_NUMBER: Final = re.compile(r"\w+, (0x[0-9a-f]+)")
_SUB_RSP: Final = re.compile(r"rsp, (0x[0-9a-f]+|\d+)")
_TOUCHES_RSP: Final = re.compile(r"rsp\b")
_FIRST_OPERAND: Final = re.compile(r"\w+")
_READ_ONLY: Final = ("push", "pop", "cmp", "test", "jmp", "call")
# Registers that survive calls, by the names of their 64 and 32 bits.
_KEPT: Final = {
    "rbx": x86.X86_REG_RBX,
    "ebx": x86.X86_REG_RBX,
    "rbp": x86.X86_REG_RBP,
    "ebp": x86.X86_REG_RBP,
    **{f"r{n}": getattr(x86, f"X86_REG_R{n}") for n in range(12, 16)},
    **{f"r{n}d": getattr(x86, f"X86_REG_R{n}") for n in range(12, 16)},
}
_RSP: Final = x86.X86_REG_RSP
_LOST_IN_CALLS: Final = (
    x86.X86_REG_RAX,
    x86.X86_REG_RCX,
    x86.X86_REG_RDX,
    x86.X86_REG_RSI,
    x86.X86_REG_RDI,
    *(getattr(x86, f"X86_REG_R{n}") for n in range(8, 12)),
)
# A write of 32 bits clears the other 32.
_WHOLE: Final = {
    **{
        getattr(x86, f"X86_REG_E{n}"): getattr(x86, f"X86_REG_R{n}")
        for n in ("AX", "BX", "CX", "DX", "SI", "DI", "BP", "SP")
    },
    **{getattr(x86, f"X86_REG_R{n}D"): getattr(x86, f"X86_REG_R{n}") for n in range(8, 16)},
}


@dataclass(frozen=True, slots=True)
class _Slot:
    """The stack word at `base` + `offset`."""

    base: int
    offset: int


@dataclass(frozen=True, slots=True)
class _HookCall:
    """A call (or final jump) of a hook, and where the return address lies then."""

    instruction: Instruction
    role: Role
    slot: _Slot


def plan_profile_calls(request: SiteRequest, layout: CodeLayout) -> SitePlan | None:
    """Plan a function by its calls of the hooks; None where not all of them could be
    understood, and the function is to be treated as any other."""
    hooks = _hook_calls(request.function)
    enters = [hook for hook in hooks if hook.role is Role.ENTRY]
    exits = [hook for hook in hooks if hook.role is Role.EXIT]
    if len(enters) != 1 or not (exits or request.entry_only):
        return None
    wanted = enters if request.entry_only else [*enters, *exits]
    plans = [_plan(request, layout, hook) for hook in wanted]
    made = [plan for plan in plans if plan is not None]
    changed = [a for plan in made for a in range(plan.head.address, plan.head.end)]
    if len(made) != len(wanted) or not layout.claim(changed, ()):
        for plan in made:
            layout.give_back_stub(layout.region_of(plan.stub), plan.stub)
        return None
    return replace(made[0], others=tuple(made[1:]))


def _plan(request: SiteRequest, layout: CodeLayout, hook: _HookCall) -> SitePlan | None:
    instruction = hook.instruction
    region = layout.region_near(request.module.start, request.module.end)
    stub = layout.take_stub(region)
    kind = KIND_EXIT
    if hook.role is Role.ENTRY:
        kind = KIND_ENTRY_ONLY if request.entry_only else KIND_ENTRY
    place = stubs.StackPlace(
        hook.slot.base == x86.X86_REG_RBP,
        hook.slot.offset
        + (8 if instruction.is_call() and hook.slot.base == x86.X86_REG_RSP else 0),
    )
    probe = region.base + load_blob("x86_64").symbols["uf_point"]
    transfer = call if instruction.is_call() else jump
    try:
        word = id_word(request.function_id, kind)
        code = stubs.point_stub(stub, probe, word, place, instruction)
        wanted = transfer(instruction.address, stub)
        if instruction.size == 6:
            # The 32-bit address prefix, which means nothing here: still one instruction.
            wanted = _ADDRESS_PREFIX + transfer(instruction.address + 1, stub)
    except OutOfReachError:
        layout.give_back_stub(region, stub)
        return None
    return SitePlan(
        function=request.function.address,
        form=Form.CALL,
        writer=Writer.STOP,
        head=Patch(instruction.address, instruction.code, wanted),
        tail=None,
        stub=stub,
        writes=(CodeWrite(stub, code),),
        probe=ProbeKind.ENTRY,
        has_exit=not request.entry_only,
        kind=SiteKind.PROFILE_CALLS,
        role=hook.role,
        record_id=request.function_id,
        is_call=instruction.is_call(),
    )


# -- reading the function ------------------------------------------------------


def _hook_calls(function: FunctionCode) -> list[_HookCall]:
    body = function.body()
    lines = outline(body, function.address)
    constants = _constants(lines)
    hooks: list[tuple[Instruction, Role, int | _Slot | None]] = []
    slot: _Slot | None = None
    for index, line in enumerate(lines):
        name = _hook_name(function, body, line)
        if name is None:
            continue
        values = dict(constants)
        for before in lines[max(index - _WINDOW, 0) : index]:
            _run(values, _at(function, body, before))
        if values.get(x86.X86_REG_RDI) != function.address:
            continue
        role = Role.ENTRY if name == _ENTER else Role.EXIT
        caller = values.get(x86.X86_REG_RSI)
        hooks.append((_at(function, body, line), role, caller))
        if role is Role.ENTRY:
            slot = _return_slot(caller, lines[:index])
    if slot is None:
        return []
    return [
        _HookCall(instruction, role, _slot_at(instruction, caller, slot))
        for instruction, role, caller in hooks
    ]


# A function's calls are made at one depth of its stack, but for arguments that gcc has
# not taken off yet: then what is loaded as `caller` lies further up. What lies further
# down is a copy of it (clang).
def _slot_at(instruction: Instruction, caller: int | _Slot | None, enter: _Slot) -> _Slot:
    if not instruction.is_call():
        return _Slot(_RSP, 0)  # the frame is gone
    if isinstance(caller, _Slot) and caller.base == enter.base and caller.offset > enter.offset:
        return caller
    return enter


def _return_slot(caller: int | _Slot | None, lines: Sequence[Line]) -> _Slot | None:
    if isinstance(caller, _Slot) and caller.base != _RSP:
        return caller
    return _slot_by_depth(lines) or (caller if isinstance(caller, _Slot) else None)


# Where the return address is after the function's first instructions, by how much they
# pushed; clang keeps `caller` in a register and may not load it again.
def _slot_by_depth(lines: Sequence[Line]) -> _Slot | None:
    depth = 0
    for line in lines:
        if line.mnemonic == "push":
            depth += 8
        elif line.mnemonic == "sub" and (match := _SUB_RSP.fullmatch(line.operands)):
            depth += int(match.group(1), 0)
        elif line.branch_target() is not None or _TOUCHES_RSP.match(line.operands):
            return None
    return _Slot(_RSP, depth)


def _at(function: FunctionCode, body: bytes, line: Line) -> Instruction:
    instruction = decode(body[line.address - function.address :], line.address)
    assert instruction is not None, "it was decoded before"
    return instruction


def _hook_name(function: FunctionCode, body: bytes, line: Line) -> str | None:
    if line.mnemonic not in ("call", "jmp") or line.size not in (5, 6):
        return None
    instruction = _at(function, body, line)
    reached = instruction.branch_target() or instruction.indirect_slot() or 0
    name = function.profiled.get(reached)
    return name if name in (_ENTER, _EXIT) else None


# Registers that are set to one address only, wherever they are set: gcc keeps the
# function's own in one.
def _constants(lines: Sequence[Line]) -> dict[int, int | _Slot]:
    values: dict[int, set[int | None]] = {}
    for line in lines:
        first = _FIRST_OPERAND.match(line.operands)
        register = _KEPT.get(first.group()) if first else None
        if register is None or line.mnemonic in _READ_ONLY:
            continue
        values.setdefault(register, set()).add(_loaded(line))
    return {
        register: value
        for register, found in values.items()
        for value in found
        if len(found) == 1 and value is not None
    }


def _loaded(line: Line) -> int | None:
    if line.mnemonic == "lea" and (match := _LOADS_ADDRESS.fullmatch(line.operands)):
        distance = int(match.group(2), 0)
        end = line.address + line.size
        return end + distance if match.group(1) == "+" else end - distance
    if line.mnemonic == "mov" and (match := _LOADS_NUMBER.fullmatch(line.operands)):
        return int(match.group(1), 16)
    return None


# One instruction's effect on what is known of the registers.
def _run(values: dict[int, int | _Slot], instruction: Instruction) -> None:
    raw = instruction.raw
    if instruction.is_call():
        for register in _LOST_IN_CALLS:
            values.pop(register, None)
        return
    _, written = raw.regs_access()
    value = _result(values, instruction)
    for register in written:
        values.pop(_WHOLE.get(register, register), None)
    if x86.X86_REG_RSP in written:
        for register, known in list(values.items()):
            if isinstance(known, _Slot) and known.base == x86.X86_REG_RSP:
                del values[register]
    if value is not None:
        destination = raw.operands[0].reg
        values[_WHOLE.get(destination, destination)] = value


def _result(values: dict[int, int | _Slot], instruction: Instruction) -> int | _Slot | None:
    raw = instruction.raw
    if len(raw.operands) != 2 or raw.operands[0].type != x86.X86_OP_REG:
        return None
    source = raw.operands[1]
    if raw.id == x86.X86_INS_LEA and source.mem.base == x86.X86_REG_RIP:
        return instruction.address + instruction.size + int(source.mem.disp)
    if raw.id not in (x86.X86_INS_MOV, x86.X86_INS_MOVABS):
        return None
    if source.type == x86.X86_OP_IMM:
        return int(source.imm) & (1 << 64) - 1
    if source.type == x86.X86_OP_REG:
        return values.get(_WHOLE.get(source.reg, source.reg))
    memory = source.mem
    if not memory.index and memory.base in (x86.X86_REG_RSP, x86.X86_REG_RBP):
        return _Slot(memory.base, int(memory.disp))
    return None
