"""XRay's sleds: words that the compiler reserved at entries and exits.

Each is `b #32` and seven nops (LLVM, AArch64AsmPrinter.cpp, emitSled). The branch becomes
another branch, which may be written while it is executed; the nops are never reached. A
return or tail call follows its sled and stays. (LLVM's own patching, compiler-rt's
lib/xray/xray_AArch64.cpp, writes eight words.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from uftrace_agent.engine.aarch64 import stub as stubs
from uftrace_agent.engine.aarch64.encoding import NOP, WORD, branch, pack
from uftrace_agent.engine.aarch64.instruction import decode
from uftrace_agent.engine.architecture import SiteRequest
from uftrace_agent.engine.layout import CodeLayout, CodeRegion
from uftrace_agent.engine.model import Form, SiteKind, Writer
from uftrace_agent.engine.moved import OutOfReachError
from uftrace_agent.engine.site import (
    CodeWrite,
    FunctionCode,
    LiveSled,
    Patch,
    ProbeKind,
    Role,
    SitePlan,
)
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_ENTRY_ONLY, KIND_EXIT, id_word
from uftrace_agent.symbols.xray_sleds import SledKind

_SLED_BYTES: Final = 32
_HEAD: Final = pack(0x1400_0008)
_SLED: Final = _HEAD + NOP * 7
_ENTRIES: Final = (SledKind.ENTRY, SledKind.ARGUMENTS)
_NAMES: Final = {
    SledKind.ENTRY: "entry",
    SledKind.ARGUMENTS: "entry",
    SledKind.EXIT: "exit",
    SledKind.TAIL: "tail",
}


def plan_sleds(request: SiteRequest, layout: CodeLayout, region: CodeRegion) -> SitePlan | None:
    """Plan a function by its sleds; None where they are not what they should be, and
    the function is to be treated as any other."""
    sleds = request.function.sleds
    entries = [sled for sled in sleds if sled.kind in _ENTRIES]
    if len(entries) != 1 or not all(_is_regular(sled) for sled in sleds):
        return None
    has_exit = not request.entry_only
    if has_exit and not _covers_exits(request.function):
        return None
    others = [sled for sled in sleds if sled.kind not in _ENTRIES] if has_exit else []
    spans = [range(sled.address, sled.address + WORD) for sled in (entries[0], *others)]
    if not layout.claim([address for span in spans for address in span], ()):
        return None
    try:
        plans = [_plan(request, layout, region, sled) for sled in (entries[0], *others)]
    except OutOfReachError:
        layout.release([Patch(span.start, _HEAD, _HEAD) for span in spans])
        return None
    kinds = [_NAMES[sled.kind] for sled in sleds]
    detail = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return replace(plans[0], others=tuple(plans[1:]), detail=detail)


# Nothing but what LLVM writes: a hand-made or changed sled is left alone.
def _is_regular(sled: LiveSled) -> bool:
    if sled.kind not in _NAMES or not sled.code.startswith(_SLED):
        return False
    if sled.kind not in (SledKind.EXIT, SledKind.TAIL):
        return True
    following = decode(sled.code[_SLED_BYTES:], sled.address + _SLED_BYTES)
    return following is not None and following.ends_flow()


# Not every way out has a sled where only entries were asked for
# (-fxray-instrumentation-bundle). Then a return thunk sees more.
def _covers_exits(function: FunctionCode) -> bool:
    body = function.body()
    end = function.address + len(body)
    covered = {sled.address + _SLED_BYTES for sled in function.sleds if sled.kind not in _ENTRIES}
    if not body or not covered:
        return False
    for offset in range(0, len(body) - WORD + 1, WORD):
        instruction = decode(body[offset:], function.address + offset)
        if instruction is None or instruction.is_call():
            continue
        target = instruction.branch_target()
        leaves = target is not None and not function.address <= target < end
        if (leaves or instruction.is_return()) and instruction.address not in covered:
            return False
    return True


def _plan(request: SiteRequest, layout: CodeLayout, region: CodeRegion, sled: LiveSled) -> SitePlan:
    stub = layout.take_stub(region)
    has_exit = not request.entry_only
    role, kind = Role.EXIT, KIND_EXIT
    if sled.kind in _ENTRIES:
        role, kind = Role.ENTRY, KIND_ENTRY if has_exit else KIND_ENTRY_ONLY
    probe = region.base + load_blob("aarch64").symbols["uf_entry_only"]
    word = id_word(request.function_id, kind)
    try:
        code = stubs.entry_stub(stub, probe, word, None, sled.address + _SLED_BYTES)
        head = Patch(sled.address, _HEAD, branch(sled.address, stub))
    except OutOfReachError:
        layout.give_back_stub(region, stub)
        raise
    return SitePlan(
        function=request.function.address,
        form=Form.SLED,
        writer=Writer.STOP if request.writer is Writer.STOP else Writer.BYTE,
        head=head,
        tail=None,
        stub=stub,
        writes=(CodeWrite(stub, code),),
        probe=ProbeKind.ENTRY,
        has_exit=has_exit,
        kind=SiteKind.SLEDS,
        role=role,
        record_id=request.function_id,
        label=_NAMES[sled.kind],
    )
