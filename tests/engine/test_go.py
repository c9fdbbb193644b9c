"""Go functions: where they are patched, and what runs there, with the real runtime."""

from __future__ import annotations

import pytest

from tests.engine.annex_model import CODE, RETURN, STUBS, AnnexModel, stack_pointer, with_register
from tests.engine.machine import FLAGS, State
from tests.engine.planning import SITE, Case
from uftrace_agent.engine.layout import CodeRegion
from uftrace_agent.engine.model import Refusal, Writer
from uftrace_agent.engine.site import FunctionCode, Role, SitePlan
from uftrace_agent.engine.x86_64.go_functions import GoFunction, NoExitsError
from uftrace_agent.runtime.layout import (
    KIND_ENTRY,
    KIND_ENTRY_ONLY,
    KIND_EXIT,
    RECORD_BYTES,
    define,
)

KIND_STRAND = define("KIND_STRAND")
ID = 7
CHECK = "493b6610"  # cmp 0x10(%r14),%rsp
LARGE = "4c8d6424a0 4d3b6610"  # lea -96(%rsp),%r12; cmp 0x10(%r14),%r12
# Go 1.19 and 1.21: sub $24,%rsp; mov %rbp,16(%rsp); lea 16(%rsp),%rbp  and its reverse;
# push %rbp; mov %rsp,%rbp; sub $16,%rsp  and its reverse.
FRAME_119 = "4883ec18 48896c2410 488d6c2410"
RETURN_119 = "488b6c2410 4883c418 c3"
FRAME_121 = "55 4889e5 4883ec10"
RETURN_121 = "4883c410 5d c3"
BODY = "488d4007"  # lea 7(%rax),%rax
PADDING = b"\xcc" * 8
G = 0xC0_0000_8340
STACK_HI = 0xC0_0004_2000


def code(*parts: str) -> bytes:
    return bytes.fromhex("".join(parts).replace(" ", ""))


def checked(*parts: str, check: str = CHECK) -> bytes:
    """check; jbe 1f; the parts; 1: call morestack; jmp to the beginning."""
    start, body = code(check), code(*parts)
    back = len(start) + 6 + len(body) + 5 + 5
    return (
        start
        + b"\x0f\x86"
        + len(body).to_bytes(4, "little")
        + body
        + b"\xe8\0\0\0\0\xe9"
        + (-back).to_bytes(4, "little", signed=True)
    )


def plan_of(body: bytes, *, writer: Writer = Writer.AUTO, **options: bool) -> SitePlan:
    case = Case(region=CodeRegion(CODE, 0x10000, STUBS))
    return case.plan(
        body + PADDING,
        size=len(body),
        body=body,
        behind=PADDING,
        writer=writer,
        has_exit=False,
        exit_refusal=Refusal.MOVING_STACKS,
        is_go=True,
        **options,
    )


def install(annex: AnnexModel, plan: SitePlan) -> None:
    """Stubs, landings and all sites."""
    for one in plan.all_writes():
        if not annex.machine.has(one.address):
            annex.machine.map(one.address & ~0xFFF, 0x2000)
        annex.machine.write(one.address, one.code)
    for patch in plan.patches():
        annex.machine.write(patch.address, patch.wanted)


def with_g(annex: AnnexModel, seed: int) -> State:
    """A goroutine that has room on its stack."""
    annex.machine.map(G & ~0xFFF, 0x1000)
    annex.write_word(G + 8, STACK_HI)
    annex.write_word(G + 0x10, 0x1000)
    return with_register(annex.state(seed), "r14", G)


FUNCTIONS = {
    "1.19": checked(FRAME_119, BODY, RETURN_119),
    "1.21": checked(FRAME_121, BODY, RETURN_121),
    "large frame": checked(FRAME_119, BODY, RETURN_119, check=LARGE),
    # test %rax,%rax; jz to the second return
    "two returns": checked(FRAME_119, "4885c0 740e", BODY, RETURN_119, "31c0", RETURN_119),
    "nop before ret": checked(FRAME_119, BODY, "488b6c2410 4883c418 90 c3"),
    # sub $-128,%rsp; ...; sub $-128... as the compiler writes 128 in one byte
    "128 bytes": checked("4883c480 90", BODY, "4883ec80 c3"),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("writer", [Writer.AUTO, Writer.STOP])
def test_h42_all_returns_are_patched_before_the_entry(name: str, writer: Writer) -> None:
    body = FUNCTIONS[name]
    plan = plan_of(body, writer=writer)
    assert plan.has_exit and plan.exit_refusal is None
    assert [site.role for site in plan.others] == [Role.EXIT] * body.count(b"\xc3")
    assert plan.sites()[-1] is plan and plan.role is Role.ENTRY
    # AND the entry lies behind the check, which runs again after the stack was moved
    assert plan.head.address > SITE
    assert all(site.head.address > plan.head.address for site in plan.others)


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("value", [0, 3])
def test_h42_a_call_writes_its_entry_and_exit_by_goroutine(name: str, value: int) -> None:
    body = FUNCTIONS[name]
    plan = plan_of(body)
    annex = AnnexModel()
    state = with_register(with_g(annex, 1), "rax", value)
    annex.machine.write(SITE, body + PADDING)
    before = annex.machine.run(SITE, state, (RETURN,))
    install(annex, plan)
    after = annex.run(SITE, state, RETURN)
    # THEN all registers and flags are as without the trace
    assert not before.state.differences(after.state)
    # AND the records name the goroutine, and the frame by its distance from the end
    key = (stack_pointer(state) - STACK_HI >> 3) & (1 << 36) - 1
    found = [(one.kind, one.function_id, one.key) for one in annex.records(1)]
    assert found[-4:] == [
        (KIND_STRAND, 0, G >> 4),
        (KIND_ENTRY, ID, key),
        (KIND_STRAND, 0, G >> 4),
        (KIND_EXIT, ID, key),
    ]


def test_h42_flags_survive_an_exit_that_needs_them() -> None:
    """What is patched may leave the flags alone: then the probe must, too."""
    body = checked(FRAME_121, "4839c0", "488d642410 5d c3")  # cmp; lea 16(%rsp),%rsp
    annex = AnnexModel()
    state = with_g(annex, 2)
    plan = plan_of(body)
    annex.machine.write(SITE, body + PADDING)
    before = annex.machine.run(SITE, state, (RETURN,))
    install(annex, plan)
    after = annex.run(SITE, state, RETURN)
    assert before.state.flags & FLAGS == after.state.flags & FLAGS


def test_code_without_a_goroutine_is_recorded_for_its_thread() -> None:
    """A signal on a thread that is not Go's: r14 is 0 there."""
    body = code(BODY, "488d4008", "0f1f440000", "c3")
    plan = plan_of(body, is_go_compiled=True)
    annex = AnnexModel()
    state = with_register(annex.state(3), "r14", 0)
    annex.machine.write(SITE, body + PADDING)
    install(annex, plan)
    annex.run(SITE, state, RETURN)
    assert KIND_STRAND not in {one.kind for one in annex.records(1)}
    assert ID in {one.function_id for one in annex.records(1)}


def test_threads_beyond_the_rings_name_the_goroutine_too() -> None:
    body = FUNCTIONS["1.19"]
    plan = plan_of(body)
    annex = AnnexModel()
    used = define("RING_USED") << 32 | 1
    for ring in (1, 2):
        annex.write_ring_word(ring, "OWNER", used)
    state = with_g(annex, 4)
    annex.machine.write(SITE, body + PADDING)
    install(annex, plan)
    annex.run(SITE, state, RETURN)
    kinds = [one.kind for one in annex.records(0)]
    thread = define("KIND_THREAD")
    assert kinds == [thread, KIND_STRAND, KIND_ENTRY, thread, KIND_STRAND, KIND_EXIT]
    assert annex.ring_word(0, "SHARED_HEAD") == 6 * RECORD_BYTES


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(
            # The second branch leads to the ret itself.
            checked(FRAME_119, "4885c0 740a", BODY, "488b6c2410 90 c3 90"),
            "nothing belongs to the ret",
            id="a branch to the ret",
        ),
        pytest.param(
            checked(FRAME_119, "e800000000 c3"), "nothing belongs to the ret", id="call; ret"
        ),
        pytest.param(checked(FRAME_119, "488b00 c3"), "nothing belongs to the ret", id="load; ret"),
        pytest.param(
            checked(FRAME_119, "4885c0 0f8400100000", BODY, RETURN_119),
            "leaves it",
            id="a conditional jump out of it",
        ),
        pytest.param(checked(FRAME_119, "c20800"), "leaves it", id="ret imm16"),
    ],
)
def test_h42_where_a_return_would_be_missed_none_is_traced(body: bytes, reason: str) -> None:
    function = GoFunction.of(FunctionCode(SITE, len(body), body, body=lambda: body))
    assert function is not None
    with pytest.raises(NoExitsError, match=reason):
        function.exits(SITE)
    plan = plan_of(body)
    assert not plan.has_exit and not plan.others
    assert plan.exit_refusal is Refusal.MOVING_STACKS
    assert reason in plan.detail


def test_a_jump_into_another_function_is_an_exit() -> None:
    body = checked("488b00", "e900200000")
    plan = plan_of(body)
    (leaving,) = plan.others
    assert leaving.head.address == SITE + len(body) - 10 - 5


def test_what_never_returns_needs_no_exit() -> None:
    body = checked(FRAME_119, "e800000000 0f0b")  # call of a panic; ud2
    plan = plan_of(body)
    assert plan.has_exit and not plan.others


def test_jump_tables_leave_the_epilogue_alone() -> None:
    """A table may lead to any instruction but those of the epilogue."""
    body = checked(FRAME_119, "ff24ca", "b802000000", RETURN_119)
    (leaving,) = plan_of(body).others
    assert leaving.head.address == SITE + len(body) - 10 - 10
    without = checked(FRAME_119, "ff24ca", "b802000000", "c3")
    assert not plan_of(without).has_exit


def test_assembly_is_not_known_by_its_first_bytes() -> None:
    body = code(BODY, "488d4008", "0f1f440000", "c3")
    plan = plan_of(body)
    assert plan.exit_refusal is Refusal.MOVING_STACKS and not plan.has_exit
    assert "may hold anything" in plan.detail


def test_an_exit_never_lies_before_the_entry() -> None:
    """A leaf in one straight line: both are somewhere in it."""
    body = code("488d4007", "0f1f440000", "488d4008", "0f1f440000", "c3")
    plan = plan_of(body, is_go_compiled=True)
    assert [site.head.address > plan.head.address for site in plan.others] == [True]


def test_a_loop_to_the_beginning_is_not_counted_as_calls() -> None:
    body = code("488d4007", "48ffc9", "75f7", "0f1f440000", "c3")  # 1: ...; dec; jnz 1b
    plan = plan_of(body, is_go_compiled=True)
    assert not plan.has_exit


def test_entries_alone() -> None:
    plan = plan_of(FUNCTIONS["1.19"], entry_only=True)
    assert not plan.has_exit and not plan.others
    assert plan.writes[0].code.count(
        (ID << define("ID_SHIFT") | KIND_ENTRY_ONLY << define("KIND_SHIFT")).to_bytes(4, "little")
    )
