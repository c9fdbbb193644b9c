"""Patched functions, run as a whole: site, landing, stub, probe, instruction, thunk."""

from __future__ import annotations

import pytest

from tests.engine.annex_model import (
    CODE,
    PROGRAM,
    RETURN,
    STUBS,
    AnnexModel,
    key_of,
    stack_pointer,
    with_register,
)
from tests.engine.planning import FOLLOWING, SITE, TEXT, Case, Text
from uftrace_agent.engine.layout import CodeRegion
from uftrace_agent.engine.model import Form, Writer
from uftrace_agent.engine.site import Gap, ProbeKind, SitePlan
from uftrace_agent.engine.x86_64.instruction import decode
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_EXIT

# lea 3(%rdi),%eax; ret, behind whatever comes first.
TAIL = bytes.fromhex("8d4703c3")
GAP = Gap(SITE + 0x60, b"\x90" * 8, b"\xc3")
# (first instructions, what undoes their pushes, expected form, probe)
FUNCTIONS = {
    "nop": ("0f1f440000", "", Form.NOP, ProbeKind.ENTRY),
    "near": ("b801000000", "", Form.NEAR, ProbeKind.ENTRY),
    "near, relative": ("488b0d10000000", "", Form.NEAR, ProbeKind.ENTRY),
    "near, landing pad": ("f30f1efab801000000", "", Form.NEAR, ProbeKind.ENTRY),
    "pun of one byte": ("554889e5", "5d", Form.PUN, ProbeKind.ENTRY),
    "pun of two bytes": ("415731c0", "415f", Form.PUN, ProbeKind.ENTRY),
    "pun of three bytes": ("4889f9134f20", "", Form.PUN, ProbeKind.ENTRY),
    "pun of four bytes": ("488d4f0113c9", "", Form.PUN, ProbeKind.ENTRY),
    "pun of the landing pad": ("f30f1efa5513c913c9", "5d", Form.PUN, ProbeKind.ENTRY),
    "hop": ("31c0ba01000000", "", Form.HOP, ProbeKind.ENTRY),
    "behind a push": ("55bf15000000", "5d", Form.NEAR, ProbeKind.FENTRY),
    "behind a push and more": ("559998bf00000100", "5d", Form.NEAR, ProbeKind.FENTRY),
    "behind a clearing": ("31c9ba15000000", "", Form.NEAR, ProbeKind.ENTRY),
}


def planned(annex: AnnexModel, code: bytes, *, gaps: list[Gap], writer: Writer) -> SitePlan:
    assert TEXT == PROGRAM
    region = CodeRegion(CODE, 0x10000, STUBS)
    return Case(region=region).plan(code, writer=writer, gaps=gaps, text=Text(code), size=len(code))


def install(annex: AnnexModel, plan: SitePlan) -> None:
    for write in plan.writes:
        if not CODE <= write.address < CODE + 0x10000 and not annex.machine.has(write.address):
            annex.machine.map(write.address, len(write.code))
        annex.machine.write(write.address, write.code)
    for patch in plan.patches():
        assert annex.machine.read(patch.address, len(patch.expected)) == patch.expected
        annex.machine.write(patch.address, patch.wanted)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_a_patched_function_does_what_it_did(name: str) -> None:
    # GIVEN a function, and what it does unpatched
    first, undo, form, probe = FUNCTIONS[name]
    code = bytes.fromhex(first + undo) + TAIL + FOLLOWING
    annex = AnnexModel()
    annex.machine.write(SITE, code.ljust(0x60, b"\x90") + GAP.code)
    state = with_register(annex.state(1), "rdi", 40)
    untouched = annex.machine.run(SITE, state, [])
    assert untouched.pc == RETURN and not untouched.error
    # WHEN it is patched, and called twice
    plan = planned(annex, code, gaps=[GAP] if form is Form.HOP else [], writer=Writer.STOP)
    assert (plan.form, plan.probe) == (form, probe)
    install(annex, plan)
    for _ in range(2):
        annex.write_word(stack_pointer(state), RETURN)
        outcome = annex.run(SITE, state)
        # THEN it returns with the same results to the same place
        assert not outcome.error
        assert outcome.pc == RETURN
        assert outcome.state.differences(untouched.state) == []
    # AND each call is recorded, entry and exit with one key
    assert [(r.kind, r.function_id, r.key) for r in annex.records(1)[1:]] == [
        (kind, 7, key_of(stack_pointer(state))) for kind in (KIND_ENTRY, KIND_EXIT)
    ] * 2
    # WHEN the patch is taken back
    for patch in plan.patches():
        annex.machine.write(patch.address, patch.reversed().wanted)
    # THEN the function is what it was
    assert annex.machine.read(SITE, len(code)) == code
    annex.write_word(stack_pointer(state), RETURN)
    again = annex.run(SITE, state)
    assert again.pc == RETURN and again.state.differences(untouched.state) == []
    assert len(annex.records(1)) == 5


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_h1_a_thread_that_was_inside_goes_on(name: str) -> None:
    # A thread that was interrupted behind any instruction of the entry, and
    # goes on after the patch, does what it would have done.
    first, undo, form, _ = FUNCTIONS[name]
    code = bytes.fromhex(first + undo) + TAIL + FOLLOWING
    annex = AnnexModel()
    annex.machine.write(SITE, code.ljust(0x60, b"\x90") + GAP.code)
    state = with_register(annex.state(2), "rdi", 40)
    plan = planned(annex, code, gaps=[GAP] if form is Form.HOP else [], writer=Writer.STOP)
    for stop in inside(code):
        before = annex.machine.run(SITE, state, [stop], keep=True)
        assert before.pc == stop
        straight = annex.machine.run(stop, before.state, [])
        install(annex, plan)
        resumed = annex.machine.run(stop, before.state, [])
        assert resumed.pc == straight.pc == RETURN
        assert resumed.state.differences(straight.state) == []
        for patch in plan.patches():
            annex.machine.write(patch.address, patch.expected)


def inside(code: bytes) -> list[int]:
    """Addresses of all instructions but the first, up to the return."""
    found = []
    at = 0
    while code[at] != TAIL[-1]:
        instruction = decode(code[at:], SITE + at)
        assert instruction is not None
        at += instruction.size
        found.append(SITE + at)
    return found
