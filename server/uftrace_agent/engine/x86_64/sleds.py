"""XRay's sleds: bytes that the compiler reserved at entries, exits and events.

Each is patched as the trap-free minimum: the bytes that nothing executes first
(they become a jump's displacement), then one byte, the opcode.

    entry, tail   eb 09 + 9-byte nop    ->  e9 09 xx xx xx
    exit          c3 + 10-byte nop      ->  e9 xx xx xx xx
    events        eb 0f / eb 14 + call  ->  e9 0f xx xx xx / e9 14 xx xx xx

The second byte of the short jumps stays, so the code they lead to must lie where
that is the displacement's low byte. (LLVM compiler-rt, lib/xray/xray_x86_64.cpp,
has the layout; its own patching writes two bytes at once.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from uftrace_agent.engine.architecture import SiteRequest
from uftrace_agent.engine.layout import CodeLayout, CodeRegion
from uftrace_agent.engine.model import Form, SiteKind, Writer
from uftrace_agent.engine.site import (
    CodeWrite,
    FunctionCode,
    LiveSled,
    Patch,
    ProbeKind,
    Role,
    SitePlan,
)
from uftrace_agent.engine.x86_64 import stub as stubs
from uftrace_agent.engine.x86_64.instruction import OutOfReachError, decode, jump, outline
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_ENTRY_ONLY, KIND_EXIT, id_word
from uftrace_agent.symbols.xray_sleds import SledKind

_JUMP: Final = 5
_SHORT_JUMP: Final = 0xEB
_NEAR_JUMP: Final = b"\xe9"
_RET: Final = b"\xc3"
_SLED_BYTES: Final = 11
# The distances over which the short jumps lead, by the kind of sled.
_DISTANCES: Final = {
    SledKind.ENTRY: (9,),
    SledKind.ARGUMENTS: (9,),
    SledKind.TAIL: (9,),
    SledKind.CUSTOM_EVENT: (0x0F, 0x14),
    SledKind.TYPED_EVENT: (0x14,),
}
_ENTRIES: Final = (SledKind.ENTRY, SledKind.ARGUMENTS)
_EXITS: Final = (SledKind.EXIT, SledKind.TAIL)
_NAMES: Final = {
    SledKind.ENTRY: "entry",
    SledKind.ARGUMENTS: "entry",
    SledKind.EXIT: "exit",
    SledKind.TAIL: "tail",
    SledKind.CUSTOM_EVENT: "custom event",
    SledKind.TYPED_EVENT: "typed event",
}


@dataclass(frozen=True, slots=True)
class _SledCode:
    """What one sled becomes: where the bytes lead, and what runs there."""

    head: Patch
    tail: Patch
    writes: tuple[CodeWrite, ...]
    stub: int


def describe(sleds: tuple[LiveSled, ...]) -> str:
    """How many of which: "1 entry, 2 exit"."""
    names = [_NAMES[sled.kind] for sled in sleds]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def plan_sleds(request: SiteRequest, layout: CodeLayout) -> SitePlan | None:
    """Plan a function by its sleds; None where they are not what they should be, and
    the function is to be treated as any other."""
    sleds = request.function.sleds
    entries = [sled for sled in sleds if sled.kind in _ENTRIES]
    if len(entries) != 1 or not all(_is_regular(sled) for sled in sleds):
        return None
    if not request.entry_only and not _covers_exits(request.function):
        return None
    wanted = [sled for sled in sleds if sled.kind not in _ENTRIES]
    if request.entry_only:
        wanted = [sled for sled in wanted if sled.kind not in _EXITS]
    has_exit = not request.entry_only
    entry = _plan(request, layout, entries[0], has_exit)
    others = [_plan(request, layout, sled, has_exit) for sled in wanted]
    plans = [plan for plan in (entry, *others) if plan is not None]
    spans = [span for plan in plans for span in plan.patches()]
    changed = [address for span in spans for address in range(span.address, span.end)]
    if entry is None or len(plans) != 1 + len(others) or not layout.claim(changed, ()):
        for plan in plans:
            region = layout.region_of(plan.stub)
            layout.give_back_stub(region, plan.stub)
        return None
    return replace(entry, others=tuple(plans[1:]), detail=describe(sleds))


# Nothing but what LLVM writes: a hand-made or changed sled is left alone.
def _is_regular(sled: LiveSled) -> bool:
    code = sled.code
    if len(code) <= _SLED_BYTES:
        return False
    if sled.kind is SledKind.EXIT:
        return code.startswith(_RET) and _is_nops(code[1:_SLED_BYTES])
    if code[0] != _SHORT_JUMP or code[1] not in _DISTANCES[sled.kind]:
        return False
    if sled.kind in (SledKind.CUSTOM_EVENT, SledKind.TYPED_EVENT):
        return len(code) >= 2 + code[1]
    if not _is_nops(code[2:_SLED_BYTES]):
        return False
    if sled.kind is SledKind.TAIL:
        # clang -Os also puts one before a conditional jump, where the function
        # may go on.
        following = decode(code[_SLED_BYTES:], sled.address + _SLED_BYTES)
        return following is not None and following.ends_flow()
    return True


# Not every way out has a sled: `ret imm16` has none, nor has anything where only
# entries were asked for (-fxray-instrumentation-bundle). Then a return thunk sees more.
def _covers_exits(function: FunctionCode) -> bool:
    body = function.body()
    end = function.address + len(body)
    exits = {sled.address for sled in function.sleds if sled.kind is SledKind.EXIT}
    tails = {sled.address for sled in function.sleds if sled.kind is SledKind.TAIL}
    if not body or not exits | tails:
        return False
    for line in outline(body, function.address):
        if line.mnemonic.startswith(("ret", "iret")) and line.address not in exits:
            return False
        target = line.branch_target()
        leaves = target is not None and not function.address <= target < end
        if line.mnemonic == "jmp" and leaves and line.address - _SLED_BYTES not in tails:
            return False
    return True


def _is_nops(code: bytes) -> bool:
    at = 0
    while at < len(code):
        instruction = decode(code[at:], at)
        if instruction is None or instruction.raw.mnemonic != "nop":
            return False
        at += instruction.size
    return at == len(code)


def _plan(
    request: SiteRequest, layout: CodeLayout, sled: LiveSled, has_exit: bool
) -> SitePlan | None:
    region = layout.region_near(request.module.start, request.module.end)
    stub = layout.take_stub(region)
    role, record_id, kind = _record(request, sled, has_exit)
    try:
        code = _make(request, layout, region, stub, sled, id_word(record_id, kind))
    except OutOfReachError:
        layout.give_back_stub(region, stub)
        return None
    return SitePlan(
        function=request.function.address,
        form=Form.SLED,
        writer=Writer.STOP if request.writer is Writer.STOP else Writer.BYTE,
        head=code.head,
        tail=code.tail,
        stub=stub,
        writes=code.writes,
        probe=ProbeKind.ENTRY,
        has_exit=has_exit,
        kind=SiteKind.SLEDS,
        role=role,
        record_id=record_id,
        label=_NAMES[sled.kind],
    )


def _record(request: SiteRequest, sled: LiveSled, has_exit: bool) -> tuple[Role, int, int]:
    if sled.kind in _ENTRIES:
        return Role.ENTRY, request.function_id, KIND_ENTRY if has_exit else KIND_ENTRY_ONLY
    if sled.kind in _EXITS:
        return Role.EXIT, request.function_id, KIND_EXIT
    ids = event_ids(request.function.sleds, request.function_id)
    return Role.EVENT, ids[sled.kind], KIND_ENTRY_ONLY


def event_ids(sleds: tuple[LiveSled, ...], function_id: int) -> dict[SledKind, int]:
    """The ids behind a function's own that its events are recorded by."""
    kinds = sorted({s.kind for s in sleds} & {SledKind.CUSTOM_EVENT, SledKind.TYPED_EVENT})
    return {kind: function_id + 1 + index for index, kind in enumerate(kinds)}


def _make(
    request: SiteRequest,
    layout: CodeLayout,
    region: CodeRegion,
    stub: int,
    sled: LiveSled,
    word: int,
) -> _SledCode:
    probe = region.base + load_blob("x86_64").symbols["uf_entry_only"]
    at = sled.address
    if sled.kind is SledKind.EXIT:
        ret = decode(_RET, at)
        assert ret is not None
        code = stubs.entry_stub(stub, probe, word, ret, at + 1)
        wanted = jump(at, stub)
        return _SledCode(
            Patch(at, _RET, wanted[:1]),
            Patch(at + 1, sled.code[1:_JUMP], wanted[1:]),
            (CodeWrite(stub, code),),
            stub,
        )
    distance = sled.code[1]
    code = stubs.entry_stub(stub, probe, word, None, at + 2 + distance)
    low_byte = (at + _JUMP + distance) & 0xFF
    landing = layout.place_by_low_byte(request.module.start, request.module.end, low_byte, _JUMP)
    wanted = jump(at, landing)
    assert wanted[1] == distance, "that is what its place was chosen for"
    return _SledCode(
        Patch(at, sled.code[:2], wanted[:2]),
        Patch(at + 2, sled.code[2:_JUMP], wanted[2:]),
        (CodeWrite(stub, code), CodeWrite(landing, stubs.landing(landing, stub))),
        stub,
    )
