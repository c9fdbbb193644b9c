"""The form that moves several instructions: what is proved, what is planned, what runs."""

from __future__ import annotations

import pytest

from tests.engine.annex_model import (
    CODE,
    RETURN,
    STUBS,
    AnnexModel,
    key_of,
    stack_pointer,
    with_register,
)
from tests.engine.planning import ENDBR64, FOLLOWING, SITE, Case, Text
from uftrace_agent.engine.layout import CodeRegion
from uftrace_agent.engine.model import Form, Refusal, RefusedError, Writer
from uftrace_agent.engine.site import SitePlan
from uftrace_agent.engine.x86_64.instruction import decode
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_EXIT

# push rbx; push rcx, so that no later site helps, and as displacements all of these
# lead below the program: only `multi` is left.
PUSHES = "5351"
POPS = "595b"
RET = "c3"


def code_of(inside: str, after: str = "8d4703") -> bytes:
    """push rbx; push rcx; `inside`; `after`; pop rcx; pop rbx; ret."""
    return bytes.fromhex(PUSHES + inside + after + POPS + RET)


# What lies between the pushes and the rest: 3 bytes at least.
WINDOWS = {
    "nops": "909090",
    "conversions": "989999",
    "flags": "f9f5fc",
    "an address": "488d0d00f0ffff",
    "a long tail": "90" + "b801000080",
    "a load": "90488b0d00010080".replace("00010080", "00040000"),
}


def planned(code: bytes, **options: object) -> SitePlan:
    case = Case(region=CodeRegion(CODE, 0x10000, STUBS), blocked=everything_else())
    options = {
        "writer": Writer.AUTO,
        "size": len(code),
        "allow_multi": True,
        "body": code,
        "text": Text(code),
    } | options
    return case.plan(code + FOLLOWING, **options)  # type: ignore[arg-type]


def everything_else() -> list[tuple[int, int]]:
    """All that a punned jump from the site could reach is taken."""
    reach = (1 << 31) + (1 << 20)
    ours = (CODE - (1 << 20), CODE + (1 << 20))
    return [
        (SITE - reach, reach - 0x1000),
        (SITE - 0x1000 + (32 << 20), ours[0] - SITE + 0x1000 - (32 << 20)),
        (ours[1], SITE + reach - ours[1]),
    ]


def refusal(code: bytes, **options: object) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        planned(code, **options)
    return caught.value


# -- what is planned -------------------------------------------------------------------


@pytest.mark.parametrize("pad", [b"", ENDBR64], ids=["", "endbr64"])
@pytest.mark.parametrize("name", list(WINDOWS))
def test_several_instructions_move_where_nothing_else_fits(name: str, pad: bytes) -> None:
    plan = planned(pad + code_of(WINDOWS[name]))
    assert (plan.form, plan.writer) == (Form.MULTI, Writer.STOP)
    assert plan.head.address == SITE + len(pad)
    assert plan.moves[0][0] == plan.head.address
    assert len(plan.moves) >= 3


def test_it_is_only_done_when_asked_for() -> None:
    assert refusal(code_of("909090"), allow_multi=False).refusal is not None
    assert "multi" not in refusal(code_of("909090"), allow_multi=False).detail


@pytest.mark.parametrize("writer", [Writer.TRAP, Writer.BYTE])
def test_it_needs_a_stop(writer: Writer) -> None:
    assert (
        "multi: only while all threads are stopped"
        in refusal(code_of("909090"), writer=writer).detail
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        # Hazard 2, 3: a jump of this function, or of another, to between them.
        (code_of("909090", "ebfa"), "between them"),
        (code_of("909090", "e2fb"), "between them"),
        (code_of("909090", "0f84f8ffffff"), "between them"),
        # Hazard 5: a call returns between them.
        (bytes.fromhex("ffd3" + "5990905b595bc3"), "a call would return between them"),
        # Hazard 7: it ends too soon.
        (bytes.fromhex("5351595bc3") + b"", ""),
        (bytes.fromhex("5390c3"), "ends before there is room"),
        # Hazard 4: a computed jump.
        (code_of("909090", "ffe0"), "computed jump"),
        # Hazard 6: a system call restarts at its own instruction.
        (bytes.fromhex("53510f0590595bc3"), "multi:"),
        # Hazard 20: not all of it is code.
        (code_of("909090", "06"), "multi:"),
    ],
)  # fmt: skip
def test_h2_h7_what_may_lead_between_them_stands_against_it(code: bytes, words: str) -> None:
    if not words:
        assert planned(code).form is Form.MULTI  # five bytes are just enough
        return
    assert words in refusal(code).detail


def test_h3_a_jump_of_another_function_stands_against_it() -> None:
    code = code_of("909090")
    # jmp SITE+3, from elsewhere in the module
    elsewhere = b"\xe9" + (3 - len(code) - 3 - 5).to_bytes(4, "little", signed=True)
    text = Text(code + b"\xcc" * 3 + elsewhere)
    assert planned(code, text=Text(code + b"\xcc" * 8)).form is Form.MULTI
    error = refusal(code, text=text)
    assert error.refusal is not None and "between them" in error.detail


def test_h8_the_next_functions_entry_stands_against_it() -> None:
    error = refusal(code_of("909090"), next_entry=SITE + 4)
    assert "multi: the next function begins too soon" in error.detail


def test_h39_landings_of_exceptions_stand_against_it() -> None:
    error = refusal(code_of("909090"), exit_refusal=Refusal.IRREGULAR_FRAME, has_exit=False)
    assert "multi: exceptions may land" in error.detail


def test_without_the_modules_text_nothing_is_known() -> None:
    assert "not known" in refusal(code_of("909090"), text=None).detail
    assert "not known" in refusal(code_of("909090"), body=b"").detail


# -- what runs ----------------------------------------------------------------------------


def loaded(code: bytes) -> AnnexModel:
    annex = AnnexModel()
    annex.machine.write(SITE, code + FOLLOWING)
    return annex


def install(annex: AnnexModel, plan: SitePlan) -> None:
    for write in plan.writes:
        annex.machine.write(write.address, write.code)
    annex.machine.write(plan.head.address, plan.head.wanted)


@pytest.mark.parametrize("pad", [b"", ENDBR64], ids=["", "endbr64"])
@pytest.mark.parametrize("name", list(WINDOWS))
def test_a_function_with_moved_instructions_does_what_it_did(name: str, pad: bytes) -> None:
    code = pad + code_of(WINDOWS[name])
    annex = loaded(code)
    state = with_register(annex.state(1), "rdi", 40)
    untouched = annex.machine.run(SITE, state, [])
    assert (untouched.pc, untouched.error) == (RETURN, "")
    install(annex, planned(code))
    for _ in range(2):
        annex.write_word(stack_pointer(state), RETURN)
        outcome = annex.run(SITE, state)
        assert (outcome.pc, outcome.error) == (RETURN, "")
        assert outcome.state.differences(untouched.state) == []
    key = key_of(stack_pointer(state))
    kinds = [(r.kind, r.key) for r in annex.records(1)[1:]]
    assert kinds == [(KIND_ENTRY, key), (KIND_EXIT, key)] * 2


@pytest.mark.parametrize("name", list(WINDOWS))
def test_h1_whoever_is_among_them_goes_on_at_the_moved_ones(name: str) -> None:
    """At each boundary: forth when the site is patched, back when it is set back."""
    code = code_of(WINDOWS[name])
    annex = loaded(code)
    plan = planned(code)
    state = with_register(annex.state(2), "rdi", 40)
    for origin, place in plan.moves[1:]:
        before = annex.machine.run(SITE, state, [origin], keep=True)
        assert before.pc == origin
        straight = annex.machine.run(origin, before.state, [])
        assert straight.pc == RETURN
        # Forth: a thread that is at `origin` is put at `place`.
        install(annex, plan)
        forth = annex.machine.run(place, before.state, [])
        assert (forth.pc, forth.error) == (RETURN, "")
        assert forth.state.differences(straight.state) == []
        # Back: one at `place` is put at `origin`.
        annex.machine.write(plan.head.address, plan.head.expected)
        back = annex.machine.run(origin, before.state, [])
        assert back.pc == RETURN
        assert back.state.differences(straight.state) == []


@pytest.mark.parametrize("name", list(WINDOWS))
def test_every_boundary_between_the_moved_ones_has_its_place(name: str) -> None:
    """No more and no fewer: a thread can only be at one of these."""
    code = code_of(WINDOWS[name])
    plan = planned(code)
    boundaries = []
    at = 0
    while at < len(plan.head.wanted):
        boundaries.append(SITE + at)
        instruction = decode(code[at:], SITE + at)
        assert instruction is not None
        at += instruction.size
    assert [origin for origin, _ in plan.moves] == boundaries
