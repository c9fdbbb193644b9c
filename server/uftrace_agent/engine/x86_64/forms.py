"""Choosing the form of one x86-64 site, cheapest first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.architecture import ModuleSpan, SiteRequest
from uftrace_agent.engine.layout import CodeLayout, CodeRegion
from uftrace_agent.engine.model import Form, Refusal, RefusedError, SiteKind, Writer
from uftrace_agent.engine.site import CodeWrite, FunctionCode, Gap, Patch, ProbeKind, SitePlan
from uftrace_agent.engine.x86_64 import stub as stubs
from uftrace_agent.engine.x86_64.entry_sites import EntrySite, entry_sites, profiling_call
from uftrace_agent.engine.x86_64.go_plan import plan_go
from uftrace_agent.engine.x86_64.instruction import (
    ENDBR64,
    NOP5,
    Instruction,
    OutOfReachError,
    UnmovableError,
    call,
    decode,
    jump,
)
from uftrace_agent.engine.x86_64.jump_targets import JumpTargetsCache
from uftrace_agent.engine.x86_64.multi import plan_multi
from uftrace_agent.engine.x86_64.profile_calls import plan_profile_calls
from uftrace_agent.engine.x86_64.sleds import event_ids, plan_sleds
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_ENTRY_ONLY, id_word

_JUMP: Final = 5
_LANDING: Final = 5
_FAR_LANDING: Final = 14
_JUMP_OPCODE: Final = b"\xe9"
# A segment override, which 64-bit mode ignores (Intel SDM volume 2, 2.1.1).
_PREFIX: Final = b"\x26"
# How a C library ends signal handlers: unwinders know the bytes by heart, and
# so does the engine (process/remote_calls.py).
_SIGNAL_RESTORER: Final = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"
_INT3: Final = 0xCC
# mov $id,%r10d, as XRay begins its patched sleds.
_XRAY_ENTRY: Final = b"\x41\xba"
_PROBES: Final = {
    (ProbeKind.ENTRY, True): "uf_entry",
    (ProbeKind.FENTRY, True): "uf_entry_fentry",
    (ProbeKind.MCOUNT, True): "uf_entry_mcount",
    (ProbeKind.ENTRY, False): "uf_entry_only",
    (ProbeKind.FENTRY, False): "uf_entry_only_fentry",
    (ProbeKind.MCOUNT, False): "uf_entry_only_mcount",
}


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A way to change a site: the bytes, and where they lead."""

    form: Form
    head: Patch
    tail: Patch | None
    landing: int | None
    landing_size: int


class X86Architecture:
    """The x86-64 engine."""

    name = "x86_64"
    stub_bytes = stubs.STUB_BYTES
    # 2 GiB, less the size of the largest jump and a page of rounding.
    reach = (1 << 31) - 8192
    has_trap_writer = True

    def __init__(self) -> None:
        self._targets = JumpTargetsCache()

    def thunk_array(self, at: int, exit_probe: int, slots: int) -> bytes:
        """See `Architecture`."""
        return stubs.thunk_array(at, exit_probe, slots)

    def unwind_entry(self, thunks: int, slots: int) -> tuple[bytes, int]:
        """See `Architecture`."""
        return stubs.unwind_entry(thunks, slots)

    def plan_site(self, request: SiteRequest, layout: CodeLayout) -> SitePlan:
        """See `Architecture`."""
        function = request.function
        if function.code.startswith(_SIGNAL_RESTORER):
            raise RefusedError(
                Refusal.RESERVED, "the return from signal handlers: unwinders know its bytes"
            )
        if function.sleds:
            plan = plan_sleds(request, layout)
            if plan is not None:
                return plan
        if function.profiled:
            plan = self._plan_profiling_call(request, layout)
            if plan is None and request.writer is not Writer.BYTE:
                plan = plan_profile_calls(request, layout)
            if plan is not None:
                return plan
        reasons: list[str] = []
        if function.is_go:
            plan = plan_go(request, layout, self._place, reasons)
            if plan is not None:
                return plan
        refusal: Refusal | None = None
        for site in entry_sites(function, self._targets):
            try:
                return self._plan_entry(request, layout, site, reasons)
            except RefusedError as error:
                refusal = refusal or error.refusal
                reasons.append(error.detail)
        if refusal is None:
            raise RefusedError(Refusal.UNDECODABLE, "the first bytes are no instruction")
        if request.allow_multi:
            try:
                return plan_multi(request, layout, self._targets)
            except RefusedError as error:
                reasons.append(error.detail)
        raise RefusedError(refusal, "; ".join(reasons))

    def extra_ids(self, function: FunctionCode) -> int:
        """See `Architecture`."""
        return len(event_ids(function.sleds, 0)) if function.sleds else 0

    def name_foreign_patch(self, expected: bytes, live: bytes) -> str:
        """See `Architecture`."""
        if not live:
            return "its code is not mapped any more"
        if _INT3 in live:
            return "a breakpoint is there (0xcc): a debugger's, or a uprobe of perf or bpftrace"
        if live.startswith(_XRAY_ENTRY):
            return "XRay's own runtime has patched it"
        return "its bytes are not those of the file: another tracer or the program changed them"

    def plan_unwinder_hook(
        self, function: FunctionCode, module: ModuleSpan, layout: CodeLayout
    ) -> SitePlan:
        """See `Architecture`."""
        request = SiteRequest(function, module, 0, Writer.AUTO, False, None, False)
        refusal = RefusedError(Refusal.UNDECODABLE, "the first bytes are no instruction")
        for site in entry_sites(function, self._targets):
            if site.skipped:
                break
            try:
                return self._plan_entry(request, layout, site, [], hook=True)
            except RefusedError as error:
                refusal = error
        raise refusal

    # -- the call of -pg and -mfentry -------------------------------------

    def _plan_profiling_call(self, request: SiteRequest, layout: CodeLayout) -> SitePlan | None:
        found = profiling_call(request.function)
        if found is None or request.writer is Writer.BYTE:
            return None
        instruction, probe = found
        region = layout.region_near(request.module.start, request.module.end)
        stub = layout.take_stub(region)
        try:
            code = stubs.call_stub(
                stub, _probe(region, probe, request.has_exit), _word(request), instruction
            )
            wanted = call(instruction.address, stub)
            if instruction.size == 6:
                # addr32 call: one instruction of the old one's six bytes.
                wanted = b"\x67" + call(instruction.address + 1, stub)
        except OutOfReachError:
            layout.give_back_stub(region, stub)
            return None
        head = Patch(instruction.address, instruction.code, wanted)
        if not layout.claim(range(head.address, head.end), ()):
            layout.give_back_stub(region, stub)
            return None
        return SitePlan(
            function=request.function.address,
            form=Form.CALL,
            writer=Writer.STOP,
            head=head,
            tail=None,
            stub=stub,
            writes=(CodeWrite(stub, code),),
            probe=probe,
            has_exit=request.has_exit,
            exit_refusal=request.exit_refusal,
            kind=SiteKind.FENTRY_CALL if probe is ProbeKind.FENTRY else SiteKind.MCOUNT_CALL,
            record_id=request.function_id,
            is_call=True,
        )

    # -- any function -----------------------------------------------------

    def _plan_entry(
        self,
        request: SiteRequest,
        layout: CodeLayout,
        site: EntrySite,
        reasons: list[str],
        *,
        hook: bool = False,
    ) -> SitePlan:
        request.check_calls(site.instruction.is_call())
        return self._place(
            request,
            layout,
            site,
            reasons,
            lambda region, stub: _stub_code(request, region, stub, site, hook),
        )

    def _place(
        self,
        request: SiteRequest,
        layout: CodeLayout,
        site: EntrySite,
        reasons: list[str],
        make_stub: Callable[[CodeRegion, int], bytes],
    ) -> SitePlan:
        region = layout.region_near(request.module.start, request.module.end)
        stub = layout.take_stub(region)
        try:
            code = make_stub(region, stub)
            candidate = self._first_candidate(request, layout, site, stub, reasons)
        except UnmovableError as error:
            layout.give_back_stub(region, stub)
            raise RefusedError(Refusal.UNMOVABLE_INSTRUCTION, str(error)) from error
        except OutOfReachError as error:
            layout.give_back_stub(region, stub)
            raise RefusedError(Refusal.NO_TRAMPOLINE_SPACE, str(error)) from error
        except RefusedError:
            layout.give_back_stub(region, stub)
            raise
        writes = [CodeWrite(stub, code)]
        if candidate.landing is not None:
            writes.append(CodeWrite(candidate.landing, stubs.landing(candidate.landing, stub)))
        one_byte = len(candidate.head.changed()) == 1
        return SitePlan(
            function=request.function.address,
            form=candidate.form,
            writer=Writer.BYTE if one_byte and request.writer is not Writer.STOP else Writer.STOP,
            head=candidate.head,
            tail=candidate.tail,
            stub=stub,
            writes=tuple(writes),
            probe=site.probe,
            has_exit=request.has_exit,
            exit_refusal=request.exit_refusal,
            detail="; ".join(reasons),
            kind=request.function.kind,
            record_id=request.function_id,
        )

    def _first_candidate(
        self,
        request: SiteRequest,
        layout: CodeLayout,
        site: EntrySite,
        stub: int,
        reasons: list[str],
    ) -> _Candidate:
        refusal = Refusal.WRITER_UNSUITABLE
        for make in _order(request):
            try:
                candidate = make(layout, site, stub, request.function)
            except RefusedError as error:
                refusal = error.refusal
                reasons.append(error.detail)
                continue
            if candidate.tail is not None and self._is_jumped_into(candidate.tail, site, request):
                refusal = Refusal.OVERLAPS_NEIGHBOUR
                reasons.append("hop: some jump may lead into the padding")
                continue
            if _claim(layout, candidate):
                return candidate
            if candidate.landing is not None:
                layout.give_back_landing(candidate.landing, candidate.landing_size)
            refusal = Refusal.OVERLAPS_NEIGHBOUR
            form = candidate.form.name.lower()
            reasons.append(f"{form}: a neighbour's tracepoint needs its bytes")
        raise RefusedError(refusal, "no form fits `" + site.instruction.text + "`")

    # Padding is no more than that only if nothing jumps there.
    def _is_jumped_into(self, tail: Patch, site: EntrySite, request: SiteRequest) -> bool:
        addresses = range(tail.address, tail.end)
        text = request.function.text
        if text is None:
            return site.instruction.branch_target() in addresses
        targets = self._targets.of(text)
        return any(address in targets for address in addresses)


def _word(request: SiteRequest) -> int:
    return id_word(request.function_id, KIND_ENTRY if request.has_exit else KIND_ENTRY_ONLY)


def _probe(region: CodeRegion, kind: ProbeKind, has_exit: bool) -> int:
    return region.base + load_blob("x86_64").symbols[_PROBES[kind, has_exit]]


def _stub_code(
    request: SiteRequest, region: CodeRegion, stub: int, site: EntrySite, hook: bool
) -> bytes:
    resume = site.address + site.size
    if hook:
        find_fde = region.base + load_blob("x86_64").symbols["uf_find_fde"]
        return stubs.unwinder_stub(stub, find_fde, site.instruction, resume)
    displaced = None if _is_nop(site.instruction) else site.instruction
    word = _word(request)
    if request.has_exit and site.probe is ProbeKind.ENTRY:
        paired = region.base + load_blob("x86_64").symbols["uf_entry_paired"]
        with contextlib.suppress(OutOfReachError):
            return stubs.paired_stub(stub, paired, word, displaced, resume)
    probe = _probe(region, site.probe, request.has_exit)
    return stubs.entry_stub(stub, probe, word, displaced, resume)


def _is_nop(instruction: Instruction) -> bool:
    return instruction.code == ENDBR64 or instruction.raw.mnemonic in ("nop", "endbr64")


def _claim(layout: CodeLayout, candidate: _Candidate) -> bool:
    changed = candidate.head.changed()
    if candidate.tail is not None:
        changed = changed + list(range(candidate.tail.address, candidate.tail.end))
    span = range(candidate.head.address, candidate.head.end)
    return layout.claim(changed, [address for address in span if address not in changed])


# -- the forms ------------------------------------------------------------


def _near(layout: CodeLayout, site: EntrySite, stub: int, function: FunctionCode) -> _Candidate:
    form = Form.NOP if site.instruction.code in NOP5 else Form.NEAR
    if site.size < _JUMP:
        raise RefusedError(
            Refusal.TOO_SHORT, f"near: the first instruction has {site.size} of 5 bytes"
        )
    wanted = jump(site.address, stub) + site.instruction.code[_JUMP:]
    return _Candidate(form, Patch(site.address, site.instruction.code, wanted), None, None, 0)


# A jump whose last bytes are bytes that follow the instruction, unchanged.
# Prefixes that mean nothing on it move it within the instruction, and with it
# which bytes are left to choose: E9Patch's tactics B2 and T1.
def _pun(layout: CodeLayout, site: EntrySite, stub: int, function: FunctionCode) -> _Candidate:
    if site.size >= _JUMP:
        raise RefusedError(Refusal.NO_TRAMPOLINE_SPACE, "pun: nothing nearer than `near`")
    refusal: RefusedError | None = None
    for prefixes in range(site.size):
        try:
            return _punned(layout, site, stub, prefixes, site.size - 1 - prefixes)
        except RefusedError as error:
            refusal = refusal or error
    assert refusal is not None, "an instruction has at least one byte"
    raise refusal


# One byte changes: the rest of the jump is what is there already.
def _exact_pun(
    layout: CodeLayout, site: EntrySite, stub: int, function: FunctionCode
) -> _Candidate:
    return _punned(layout, site, stub, 0, 0)


# The displacement's first `chosen` bytes are ours to choose: what the jump
# reaches is a window of 256 ** chosen addresses.
def _punned(
    layout: CodeLayout, site: EntrySite, stub: int, prefixes: int, chosen: int
) -> _Candidate:
    end = prefixes + _JUMP
    if len(site.bytes) < end:
        raise RefusedError(Refusal.TOO_SHORT, "pun: the text ends within the jump")
    if site.bytes[0] == _JUMP_OPCODE[0]:
        raise RefusedError(Refusal.TOO_SHORT, "pun: the function begins with such a jump already")
    fixed = int.from_bytes(site.bytes[prefixes + 1 + chosen : end], "little") << (8 * chosen)
    if fixed >= 1 << 31:
        fixed -= 1 << 32
    low = site.address + end + fixed
    if low < 0:
        raise RefusedError(Refusal.NO_TRAMPOLINE_SPACE, "pun: its bytes lead below address 0")
    size = _LANDING
    landing = layout.place_landing(low, 1 << (8 * chosen), size)
    if landing is not None and abs(landing - stub) >= X86Architecture.reach:
        layout.give_back_landing(landing, size)
        size = _FAR_LANDING
        landing = layout.place_landing(low, 1 << (8 * chosen), size)
    if landing is None:
        raise RefusedError(
            Refusal.NO_TRAMPOLINE_SPACE, f"pun: its bytes lead to {low:#x}, which is not free"
        )
    span = max(end, site.size)
    wanted = _PREFIX * prefixes + jump(site.address + prefixes, landing) + site.bytes[end:span]
    return _Candidate(Form.PUN, Patch(site.address, site.bytes[:span], wanted), None, landing, size)


# A 2-byte jump to five bytes of padding between functions, which hold the near
# jump.
def _hop(layout: CodeLayout, site: EntrySite, stub: int, function: FunctionCode) -> _Candidate:
    if site.size < 2:
        raise RefusedError(Refusal.TOO_SHORT, "hop: the first instruction has one byte")
    for gap in function.gaps():
        low = max(gap.start, site.address + 2 - 128)
        high = min(gap.start + len(gap.code) - _JUMP, site.address + 2 + 127)
        if low > high or not _is_padding(gap):
            continue
        offset = low - gap.start
        tail = Patch(low, gap.code[offset : offset + _JUMP], jump(low, stub))
        distance = (low - site.address - 2).to_bytes(1, "little", signed=True)
        wanted = b"\xeb" + distance + site.instruction.code[2:]
        head = Patch(site.address, site.instruction.code, wanted)
        if layout.can_claim(range(tail.address, tail.end), ()):
            return _Candidate(Form.HOP, head, tail, None, 0)
    raise RefusedError(Refusal.TOO_SHORT, "hop: no padding within 128 bytes")


# Nothing but nops and breakpoints, and nothing can run into it: the function
# before it must end in a jump, a return or a trap. (Hand-written functions may
# fall through their padding into the next one.)
def _is_padding(gap: Gap) -> bool:
    at = 0
    while at < len(gap.code):
        instruction = decode(gap.code[at:], gap.start + at)
        if instruction is None or instruction.raw.mnemonic not in ("nop", "int3"):
            return False
        at += instruction.size
    last: Instruction | None = None
    at = 0
    while at < len(gap.before):
        last = decode(gap.before[at:], gap.start - len(gap.before) + at)
        if last is None:
            return False
        at += last.size
    return last is not None and at == len(gap.before) and last.ends_flow()


_Form = Callable[[CodeLayout, EntrySite, int, FunctionCode], _Candidate]


def _order(request: SiteRequest) -> tuple[_Form, ...]:
    if request.writer is Writer.BYTE:
        return (_exact_pun,)
    if request.writer is Writer.STOP or request.frugal:
        return (_near, _pun, _exact_pun, _hop)
    return (_exact_pun, _near, _pun, _hop)
