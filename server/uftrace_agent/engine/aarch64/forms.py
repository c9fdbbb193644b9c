"""Choosing the form of one AArch64 site: what the compiler left first, else one word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uftrace_agent.engine.aarch64 import stub as stubs
from uftrace_agent.engine.aarch64.encoding import branch, branch_link
from uftrace_agent.engine.aarch64.entry_sites import EntrySite, entry_site, profiling_call
from uftrace_agent.engine.aarch64.instruction import Instruction, decode
from uftrace_agent.engine.aarch64.sleds import plan_sleds
from uftrace_agent.engine.architecture import ModuleSpan, SiteRequest
from uftrace_agent.engine.layout import CodeLayout, CodeRegion
from uftrace_agent.engine.model import Form, Refusal, RefusedError, SiteKind, Writer
from uftrace_agent.engine.moved import OutOfReachError, UnmovableError
from uftrace_agent.engine.site import CodeWrite, FunctionCode, Patch, ProbeKind, SitePlan
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_ENTRY_ONLY, id_word

# mov x8, #139; svc #0
_SIGNAL_RESTORER: Final = b"\x68\x11\x80\xd2\x01\x00\x00\xd4"
_BRK: Final = (0xFFE0_001F, 0xD420_0000)
# stp x0, x30, [sp, #-16]!, as XRay begins its patched sleds.
_XRAY_SLED: Final = b"\xe0\x7b\xbf\xa9"


class AArch64Architecture:
    """The AArch64 engine."""

    name = "aarch64"
    stub_bytes = stubs.STUB_BYTES
    # 128 MiB, less a page of rounding.
    reach = (1 << 27) - 8192
    has_trap_writer = False

    def thunk_array(self, at: int, exit_probe: int, slots: int) -> bytes:
        """See `Architecture`."""
        return stubs.thunk_array(at, exit_probe)

    def unwind_entry(self, thunks: int, slots: int) -> tuple[bytes, int]:
        """See `Architecture`."""
        return stubs.unwind_entry(thunks)

    def extra_ids(self, function: FunctionCode) -> int:
        """See `Architecture`."""
        return 0

    def name_foreign_patch(self, expected: bytes, live: bytes) -> str:
        """See `Architecture`."""
        if not live:
            return "its code is not mapped any more"
        there = decode(live, 0)
        if there is not None and there.is_a(_BRK):
            return "a breakpoint is there (brk): a debugger's, or a uprobe of perf or bpftrace"
        if live.startswith(_XRAY_SLED):
            return "XRay's own runtime has patched it"
        return "its bytes are not those of the file: another tracer or the program changed them"

    def plan_site(self, request: SiteRequest, layout: CodeLayout) -> SitePlan:
        """See `Architecture`."""
        function = request.function
        if function.code.startswith(_SIGNAL_RESTORER):
            raise RefusedError(
                Refusal.RESERVED, "the return from signal handlers: unwinders know its bytes"
            )
        if function.is_go:
            raise RefusedError(
                Refusal.MOVING_STACKS, "functions of Go are not traced on this machine yet"
            )
        region = _region(function, request.module, layout)
        if function.sleds and (plan := plan_sleds(request, layout, region)) is not None:
            return plan
        if function.profiled and (plan := _plan_profiling_call(request, layout, region)):
            return plan
        return _plan_word(request, layout, region, _make_entry_stub(request, region))

    def plan_unwinder_hook(
        self, function: FunctionCode, module: ModuleSpan, layout: CodeLayout
    ) -> SitePlan:
        """See `Architecture`."""
        request = SiteRequest(function, module, 0, Writer.AUTO, False, None, False)
        region = _region(function, module, layout)
        find_fde = _symbol(region, "uf_find_fde")

        def make_stub(stub: int, site: EntrySite) -> bytes:
            resume = site.address + site.instruction.size
            return stubs.unwinder_stub(stub, find_fde, site.instruction, resume, site.signature)

        return _plan_word(request, layout, region, make_stub)


_MakeStub = Callable[[int, EntrySite], bytes]


# One region serves a whole module where branches reach from end to end, else what is near.
def _region(function: FunctionCode, module: ModuleSpan, layout: CodeLayout) -> CodeRegion:
    try:
        return layout.region_near(module.start, module.end)
    except RefusedError:
        end = function.address + max(function.size, len(function.code))
        return layout.region_near(function.address, end)


def _symbol(region: CodeRegion, name: str) -> int:
    return region.base + load_blob("aarch64").symbols[name]


def _word(request: SiteRequest) -> int:
    return id_word(request.function_id, KIND_ENTRY if request.has_exit else KIND_ENTRY_ONLY)


def _make_entry_stub(request: SiteRequest, region: CodeRegion) -> _MakeStub:
    probe = _symbol(region, "uf_entry_paired" if request.has_exit else "uf_entry_only")
    make = stubs.paired_stub if request.has_exit else stubs.entry_stub

    def make_stub(stub: int, site: EntrySite) -> bytes:
        displaced = None if site.instruction.is_nop() else site.instruction
        resume = site.address + site.instruction.size
        return make(stub, probe, _word(request), displaced, resume, site.signature)

    return make_stub


def _plan_word(
    request: SiteRequest, layout: CodeLayout, region: CodeRegion, make_stub: _MakeStub
) -> SitePlan:
    site = entry_site(request.function)
    request.check_calls(site.instruction.is_call())
    writer = _writer(request, site.instruction)
    stub = layout.take_stub(region)
    try:
        code = make_stub(stub, site)
        wanted = branch(site.address, stub)
    except UnmovableError as error:
        layout.give_back_stub(region, stub)
        raise RefusedError(Refusal.UNMOVABLE_INSTRUCTION, str(error)) from error
    except OutOfReachError as error:
        layout.give_back_stub(region, stub)
        raise RefusedError(Refusal.NO_TRAMPOLINE_SPACE, str(error)) from error
    head = Patch(site.address, site.instruction.code, wanted)
    if not layout.claim(range(head.address, head.end), ()):
        layout.give_back_stub(region, stub)
        raise RefusedError(Refusal.OVERLAPS_NEIGHBOUR, "a neighbour's tracepoint needs its bytes")
    return SitePlan(
        function=request.function.address,
        form=Form.NOP if site.instruction.is_nop() else Form.WORD,
        writer=writer,
        head=head,
        tail=None,
        stub=stub,
        writes=(CodeWrite(stub, code),),
        probe=ProbeKind.ENTRY,
        has_exit=request.has_exit,
        exit_refusal=request.exit_refusal,
        kind=request.function.kind,
        record_id=request.function_id,
    )


# Only few instructions may become a branch while they are executed (ARM ARM, B2.2.5).
def _writer(request: SiteRequest, instruction: Instruction) -> Writer:
    if instruction.may_change_live() and request.writer is not Writer.STOP:
        return Writer.BYTE
    if request.writer is Writer.BYTE:
        raise RefusedError(
            Refusal.WRITER_UNSUITABLE,
            f"byte: `{instruction.text}` may not change while it is executed; use auto or stop",
        )
    return Writer.STOP


def _plan_profiling_call(
    request: SiteRequest, layout: CodeLayout, region: CodeRegion
) -> SitePlan | None:
    found = profiling_call(request.function)
    if found is None:
        return None
    at = found.instruction.address
    stub = layout.take_stub(region)
    probe = _symbol(region, "uf_entry_mcount" if request.has_exit else "uf_point")
    try:
        code = stubs.call_stub(stub, probe, _word(request), found.frame, found.callee)
        head = Patch(at, found.instruction.code, branch_link(at, stub))
    except OutOfReachError:
        layout.give_back_stub(region, stub)
        return None
    if not layout.claim(range(head.address, head.end), ()):
        layout.give_back_stub(region, stub)
        return None
    return SitePlan(
        function=request.function.address,
        form=Form.CALL,
        writer=Writer.STOP if request.writer is Writer.STOP else Writer.BYTE,
        head=head,
        tail=None,
        stub=stub,
        writes=(CodeWrite(stub, code),),
        probe=ProbeKind.MCOUNT,
        has_exit=request.has_exit,
        exit_refusal=request.exit_refusal,
        kind=SiteKind.MCOUNT_CALL,
        record_id=request.function_id,
        is_call=True,
    )
