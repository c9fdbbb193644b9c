"""The form `multi`: several instructions make room for a jump.

It is for functions in which no single instruction can hold one, and only if asked
for: all threads are stopped, who is among the instructions is moved along, in
handlers' saved program counters too, and nothing may lead between them: no branch of
the whole module, no jump table of the function (H2, H3, H4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.architecture import SiteRequest
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import Form, Refusal, RefusedError, Writer
from uftrace_agent.engine.site import CodeWrite, FunctionCode, Patch, ProbeKind, SitePlan
from uftrace_agent.engine.x86_64 import stub as stubs
from uftrace_agent.engine.x86_64.instruction import (
    ENDBR64,
    Instruction,
    OutOfReachError,
    UnmovableError,
    decode,
    jump,
    outline,
)
from uftrace_agent.engine.x86_64.jump_targets import JumpTargetsCache
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_ENTRY_ONLY, id_word

_JUMP: Final = 5


@dataclass(frozen=True, slots=True)
class _Window:
    """Instructions that make room, in a row."""

    instructions: tuple[Instruction, ...]

    @property
    def start(self) -> int:
        return self.instructions[0].address

    @property
    def end(self) -> int:
        return self.instructions[-1].address + self.instructions[-1].size


def plan_multi(request: SiteRequest, layout: CodeLayout, targets: JumpTargetsCache) -> SitePlan:
    """Plan a function by moving several instructions.

    Raises:
        RefusedError: Something may lead between them, or they cannot be moved.
    """
    function = request.function
    if request.writer not in (Writer.AUTO, Writer.STOP):
        raise RefusedError(Refusal.WRITER_UNSUITABLE, "multi: only while all threads are stopped")
    if request.exit_refusal is Refusal.IRREGULAR_FRAME:
        raise RefusedError(Refusal.IRREGULAR_FRAME, "multi: exceptions may land at its beginning")
    window = _window(function)
    request.check_calls(any(each.is_call() for each in window.instructions))
    _check_entries(function, window, targets)
    region = layout.region_near(request.module.start, request.module.end)
    stub = layout.take_stub(region)
    kind = KIND_ENTRY if request.has_exit else KIND_ENTRY_ONLY
    probe = "uf_entry" if request.has_exit else "uf_entry_only"
    try:
        code, places = stubs.multi_stub(
            stub,
            region.base + load_blob("x86_64").symbols[probe],
            id_word(request.function_id, kind),
            window.instructions,
            window.end,
        )
        wanted = jump(window.start, stub)
    except UnmovableError as error:
        layout.give_back_stub(region, stub)
        raise RefusedError(Refusal.UNMOVABLE_INSTRUCTION, f"multi: {error}") from error
    except OutOfReachError as error:
        layout.give_back_stub(region, stub)
        raise RefusedError(Refusal.NO_TRAMPOLINE_SPACE, f"multi: {error}") from error
    offset = window.start - function.address
    head = Patch(window.start, function.code[offset : offset + _JUMP], wanted)
    if not layout.claim(range(head.address, head.end), ()):
        layout.give_back_stub(region, stub)
        raise RefusedError(
            Refusal.OVERLAPS_NEIGHBOUR, "multi: a neighbour's tracepoint needs its bytes"
        )
    return SitePlan(
        function=function.address,
        form=Form.MULTI,
        writer=Writer.STOP,
        head=head,
        tail=None,
        stub=stub,
        writes=(CodeWrite(stub, code),),
        probe=ProbeKind.ENTRY,
        has_exit=request.has_exit,
        exit_refusal=request.exit_refusal,
        kind=function.kind,
        record_id=request.function_id,
        moves=tuple(
            (instruction.address, place)
            for instruction, place in zip(window.instructions, places, strict=True)
        ),
    )


def _window(function: FunctionCode) -> _Window:
    start = len(ENDBR64) if function.code.startswith(ENDBR64) else 0
    instructions: list[Instruction] = []
    size = 0
    while size < _JUMP:
        instruction = decode(function.code[start + size :], function.address + start + size)
        if instruction is None:
            raise RefusedError(Refusal.UNDECODABLE, "multi: its first bytes are no instructions")
        instructions.append(instruction)
        size += instruction.size
        if size < _JUMP and instruction.is_call():
            raise RefusedError(
                Refusal.UNMOVABLE_INSTRUCTION, "multi: a call would return between them"
            )
        if size < _JUMP and instruction.ends_flow():
            raise RefusedError(Refusal.TOO_SHORT, "multi: it ends before there is room")
    end = function.address + start + size
    if function.next_entry and end > function.next_entry:
        raise RefusedError(Refusal.TOO_SHORT, "multi: the next function begins too soon")
    if function.size and start + size > function.size:
        raise RefusedError(Refusal.TOO_SHORT, "multi: it ends before there is room")
    return _Window(tuple(instructions))


def _check_entries(function: FunctionCode, window: _Window, targets: JumpTargetsCache) -> None:
    body = function.body()
    if function.text is None or not body:
        raise RefusedError(
            Refusal.OVERLAPS_NEIGHBOUR, "multi: it is not known what may lead into it"
        )
    known = targets.of(function.text)
    for address in range(window.start + 1, window.start + _JUMP):
        if address in known:
            raise RefusedError(
                Refusal.OVERLAPS_NEIGHBOUR,
                f"multi: some jump of the module may lead to {address:#x}, between them",
            )
    lines = outline(body, function.address)
    if not lines or lines[-1].address + lines[-1].size != function.address + len(body):
        raise RefusedError(Refusal.UNDECODABLE, "multi: not all of it can be decoded")
    for line in lines:
        if line.mnemonic.endswith("jmp") and line.branch_target() is None:
            raise RefusedError(
                Refusal.OVERLAPS_NEIGHBOUR, "multi: it has a jump table or a computed jump"
            )
