"""Which word of an AArch64 function is changed, how, and how many functions have one."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.engine.aarch64_sources import fetch_binaries
from tests.engine.planning import TEXT, TEXT_BYTES, mapped
from uftrace_agent.engine.aarch64.encoding import (
    AUTIASP,
    BRK,
    NOP,
    PACIASP,
    RET,
    WORD,
    branch,
    branch_link,
    pack,
)
from uftrace_agent.engine.aarch64.forms import AArch64Architecture
from uftrace_agent.engine.aarch64.instruction import decode
from uftrace_agent.engine.architecture import ModuleSpan, SiteRequest
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import Form, Refusal, RefusedError, Writer
from uftrace_agent.engine.site import FunctionCode, LiveSled, ProbeKind, Role, SitePlan
from uftrace_agent.symbols import FunctionKind
from uftrace_agent.symbols.module_image import ModuleImage
from uftrace_agent.symbols.xray_sleds import SledKind

pytestmark = pytest.mark.arm

SITE = TEXT + 0x1000
BTI_C = pack(0xD503_245F)
ADD = pack(0x9100_0400)  # add x0, x0, #1
PUSH_FRAME = pack(0xA9BE_7BFD)  # stp x29, x30, [sp, #-32]!
MOV_FRAME = pack(0x9100_03FD)  # mov x29, sp
SLED = pack(0x1400_0008) + NOP * 7
MCOUNT = TEXT + 0x8000


def new_layout(module_bytes: int = TEXT_BYTES) -> CodeLayout:
    architecture = AArch64Architecture()
    mappings = [mapped(TEXT, module_bytes)]
    return CodeLayout(mappings, 16384, architecture.stub_bytes, architecture.reach)


def plan(
    code: bytes,
    *,
    writer: Writer = Writer.AUTO,
    has_exit: bool = True,
    exit_refusal: Refusal | None = None,
    sleds: tuple[LiveSled, ...] = (),
    is_go: bool = False,
    layout: CodeLayout | None = None,
    address: int = SITE,
    module_bytes: int = TEXT_BYTES,
) -> SitePlan:
    function = FunctionCode(
        address,
        len(code),
        code.ljust(64, b"\0"),
        {MCOUNT: "mcount"},
        sleds=sleds,
        body=lambda: code,
        is_go=is_go,
    )
    request = SiteRequest(
        function,
        ModuleSpan(TEXT, TEXT + module_bytes),
        7,
        writer,
        has_exit,
        exit_refusal,
        frugal=False,
        entry_only=not has_exit,
    )
    made = AArch64Architecture().plan_site(request, layout or new_layout(module_bytes))
    for site in made.sites():
        offset = site.head.address - address
        assert code[offset:].startswith(site.head.expected)
        assert len(site.head.expected) == WORD and site.head.address % WORD == 0
        leads = decode(site.head.wanted, site.head.address)
        assert leads is not None and leads.branch_target() == site.stub
        assert leads.may_change_live()
    return made


def refusal_of(code: bytes, **options: object) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        plan(code, **options)  # type: ignore[arg-type]
    return refused.value


def test_h16_any_function_changes_its_first_word_in_a_stop() -> None:
    made = plan(ADD + RET)
    assert (made.form, made.writer, made.head.address) == (Form.WORD, Writer.STOP, SITE)


@pytest.mark.parametrize("writer", [Writer.AUTO, Writer.BYTE])
@pytest.mark.parametrize("first", [branch(SITE, SITE + 64), branch_link(SITE, SITE + 64)])
def test_h16_what_may_change_while_it_runs_needs_no_stop(first: bytes, writer: Writer) -> None:
    made = plan(first + RET, writer=writer)
    assert (made.form, made.writer) == (Form.WORD, Writer.BYTE)
    assert plan(first + RET, writer=Writer.STOP).writer is Writer.STOP


def test_h16_what_may_not_is_refused_to_the_writer_of_single_changes() -> None:
    refused = refusal_of(ADD + RET, writer=Writer.BYTE)
    assert refused.refusal is Refusal.WRITER_UNSUITABLE
    assert "use auto or stop" in refused.detail


@pytest.mark.parametrize("before", [b"", BTI_C])
def test_patchable_nops_need_no_stop(before: bytes) -> None:
    made = plan(before + NOP * 2 + PACIASP + ADD + AUTIASP + RET)
    assert (made.form, made.writer) == (Form.NOP, Writer.BYTE)
    assert made.head.address == SITE + len(before)


def test_h12_a_landing_pad_stays() -> None:
    assert plan(BTI_C + ADD + RET).head.address == SITE + WORD
    # Behind bti the return address is not signed yet.
    made = plan(BTI_C + PACIASP + ADD + RET)
    assert made.head.address == SITE + WORD
    assert not made.writes[0].code.startswith(AUTIASP)


def test_h12_where_paciasp_is_the_landing_pad_the_stub_signs_anew() -> None:
    made = plan(PACIASP + PUSH_FRAME + RET)
    assert made.head.address == SITE + WORD
    code = made.writes[0].code
    assert code.startswith(AUTIASP)
    assert PACIASP + PUSH_FRAME in code


def test_a_landing_pad_and_nothing_else_is_too_short() -> None:
    assert refusal_of(BTI_C).refusal is Refusal.TOO_SHORT


@pytest.mark.parametrize("first", [BRK, pack(0xD400_0001)])
def test_what_cannot_run_elsewhere_is_refused(first: bytes) -> None:
    assert refusal_of(first + RET).refusal is Refusal.UNMOVABLE_INSTRUCTION


@pytest.mark.parametrize("first", [0xC85F_7C20, 0xC87F_8861, 0x885F_FC20])
def test_h19_a_probe_would_come_between_an_exclusive_load_and_its_store(first: int) -> None:
    refused = refusal_of(pack(first) + RET)
    assert refused.refusal is Refusal.UNMOVABLE_INSTRUCTION
    assert "exclusive" in refused.detail


def test_h43_a_call_stays_where_the_processor_keeps_return_addresses() -> None:
    call = branch_link(SITE, SITE + 64) + RET
    refused = refusal_of(call, has_exit=False, exit_refusal=Refusal.SHADOW_STACK)
    assert refused.refusal is Refusal.SHADOW_STACK
    assert plan(ADD + RET, has_exit=False, exit_refusal=Refusal.SHADOW_STACK)


def test_go_is_refused() -> None:
    assert refusal_of(ADD + RET, is_go=True).refusal is Refusal.MOVING_STACKS


def test_the_return_from_signal_handlers_is_left_alone() -> None:
    restorer = bytes.fromhex("681180d2010000d4")
    assert refusal_of(restorer).refusal is Refusal.RESERVED


def test_a_call_of_mcount_changes_while_it_runs() -> None:
    prologue = PUSH_FRAME + MOV_FRAME + pack(0xAA1E_03E0)  # mov x0, x30
    call = SITE + len(prologue)
    made = plan(prologue + branch_link(call, MCOUNT) + RET)
    assert (made.form, made.writer, made.head.address) == (Form.CALL, Writer.BYTE, call)
    assert made.probe is ProbeKind.MCOUNT and made.is_call


def test_a_signed_frame_is_left_to_the_first_words() -> None:
    prologue = PACIASP + PUSH_FRAME + MOV_FRAME
    made = plan(prologue + branch_link(SITE + len(prologue), MCOUNT) + RET)
    assert (made.form, made.head.address) == (Form.WORD, SITE + WORD)


def sled(offset: int, kind: SledKind, code: bytes) -> LiveSled:
    return LiveSled(SITE + offset, kind, code[offset : offset + 40])


def test_sleds_change_while_they_run() -> None:
    code = SLED + ADD + SLED + RET + SLED + branch(SITE + 104, SITE + 0x400)
    sleds = (
        sled(0, SledKind.ENTRY, code),
        sled(36, SledKind.EXIT, code),
        sled(72, SledKind.TAIL, code),
    )
    made = plan(code, sleds=sleds)
    assert {site.form for site in made.sites()} == {Form.SLED}
    assert {site.writer for site in made.sites()} == {Writer.BYTE}
    assert [site.role for site in made.sites()] == [Role.EXIT, Role.EXIT, Role.ENTRY]
    assert made.detail == "1 entry, 1 exit, 1 tail"
    assert len(plan(code, sleds=sleds, has_exit=False).sites()) == 1


def test_a_way_out_without_a_sled_leaves_the_function_to_its_first_word() -> None:
    code = SLED + ADD + SLED + RET + RET
    sleds = (sled(0, SledKind.ENTRY, code), sled(36, SledKind.EXIT, code))
    # Which is the sled's own branch.
    made = plan(code, sleds=sleds)
    assert (made.form, made.writer, made.others) == (Form.WORD, Writer.BYTE, ())


def test_modules_that_are_longer_than_a_branch_have_stubs_near_each_function() -> None:
    module_bytes = 400 << 20
    layout = new_layout(module_bytes)
    near = plan(ADD + RET, layout=layout, module_bytes=module_bytes)
    end = TEXT + module_bytes - 0x1000
    far = plan(ADD + RET, layout=layout, module_bytes=module_bytes, address=end)
    assert abs(near.stub - far.stub) > 1 << 27
    # In the middle nothing free is in reach.
    middle = TEXT + module_bytes // 2
    refused = refusal_of(ADD + RET, layout=layout, module_bytes=module_bytes, address=middle)
    assert refused.refusal is Refusal.NO_TRAMPOLINE_SPACE


@pytest.mark.parametrize(
    "name", ["libc.so.6", "libcrypto.so.3", "libpython3.11.so.1.0", "libstdc++.so.6"]
)
def test_nearly_all_functions_of_libraries_have_a_site(name: str) -> None:
    # The figure of docs/architectures.md: 99 of 100.
    path = fetch_binaries() / "usr/lib/aarch64-linux-gnu" / name
    refused = refusals_in(path)
    total = sum(refused.values())
    assert total > 2000
    assert refused[""] >= 0.99 * total, refused


def refusals_in(path: Path) -> Counter[str]:
    layout = new_layout()
    found: Counter[str] = Counter()
    with ModuleImage.open(str(path)) as image:
        table = image.functions
        for index in range(len(table)):
            if table.kind[index] != FunctionKind.FUNCTION:
                continue
            address, size = int(table.address[index]), int(table.size[index])
            function = FunctionCode(TEXT + address, size, image.text_bytes(address, 64))
            request = SiteRequest(
                function,
                ModuleSpan(TEXT, TEXT + TEXT_BYTES),
                index + 1,
                Writer.AUTO,
                has_exit=True,
                exit_refusal=None,
                frugal=True,
            )
            try:
                AArch64Architecture().plan_site(request, layout)
                found[""] += 1
            except RefusedError as error:
                found[f"{error.refusal.name}: {error.detail}"] += 1
    return found


def test_a_compiler_made_these_prologues(tmp_path: Path) -> None:
    # GIVEN what gcc makes of -pg
    source = tmp_path / "profiled.c"
    source.write_text(
        "int helper(int); int called(int x) { return helper(x) + helper(x + 1); }"
        "long leaf(long x) { volatile char room[200]; room[x] = 1; return room[0]; }"
    )
    for options in (["-O0"], ["-O2"], ["-O2", "-fstack-protector-all"]):
        out = tmp_path / "profiled.o"
        command = ["aarch64-linux-gnu-gcc", *options, "-pg", "-c", str(source), "-o", str(out)]
        subprocess.run(command, check=True)
        dump = subprocess.run(
            ["aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", str(out), f"{out}.bin"],
            check=True,
        )
        assert dump.returncode == 0
        code = Path(f"{out}.bin").read_bytes()
        # The calls are not linked yet: `bl .`. Each is made one of mcount.
        unlinked = pack(0x9400_0000)
        calls = [at for at in range(0, len(code), WORD) if code.startswith(unlinked, at)]
        made = [plan_linked(code, at) for at in calls]
        assert [each.form for each in made].count(Form.CALL) >= 2, options


# The function that `at` is a call of, which begins with its frame record, with that call
# bound to mcount.
def plan_linked(code: bytes, at: int) -> SitePlan:
    words = [int.from_bytes(code[k : k + WORD], "little") for k in range(0, at, WORD)]
    start = WORD * max(k for k, word in enumerate(words) if word & 0xFFC0_7FFF == 0xA980_7BFD)
    body = bytearray(code[start:])
    body[at - start : at - start + WORD] = branch_link(SITE + at - start, MCOUNT)
    return plan(bytes(body))
