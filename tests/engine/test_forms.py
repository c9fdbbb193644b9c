"""Which form the planner chooses, and why it refuses."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.planning import (
    ENDBR64,
    FOLLOWING,
    SITE,
    TEXT,
    TEXT_BYTES,
    Case,
    Text,
)
from uftrace_agent.engine.model import Form, Refusal, RefusedError, Writer
from uftrace_agent.engine.site import Gap, ProbeKind, SitePlan
from uftrace_agent.engine.x86_64.forms import X86Architecture

MOV_EAX = b"\xb8\x01\x00\x00\x00"
PUSH = b"\x55"
SUB_RSP = b"\x48\x83\xec\x28"
# push rbp; mov $0x15,%edi: as a jump it leads into the module itself.
INWARD = bytes.fromhex("55bf15000000") + FOLLOWING
RETURNING = b"\x31\xc0\xc3"


def refusal(case: Case, code: bytes, **options: object) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        case.plan(code, **options)  # type: ignore[arg-type]
    return caught.value


# -- nop, near, call ----------------------------------------------------------


@pytest.mark.parametrize("nop", [b"\x0f\x1f\x44\x00\x00", b"\x0f\x1f\x44\x00\x08"])
@pytest.mark.parametrize("pad", [b"", ENDBR64])
def test_a_five_byte_nop_becomes_the_jump(pad: bytes, nop: bytes) -> None:
    plan = Case().plan(pad + nop + FOLLOWING)
    assert plan.form is Form.NOP
    assert plan.head.address == SITE + len(pad)
    assert plan.head.expected == nop


@pytest.mark.parametrize(
    "first",
    ["b801000000", "488b0510000000", "4881ec00010000", "f30f1e fa b801000000", "e800100000"],
)
def test_a_long_first_instruction_takes_the_jump(first: str) -> None:
    code = bytes.fromhex(first)
    plan = Case().plan(code + FOLLOWING)
    assert plan.form is Form.NEAR
    body = code.removeprefix(ENDBR64)
    assert plan.head.expected == body
    assert plan.head.wanted[5:] == body[5:]
    assert plan.writer is Writer.STOP


@pytest.mark.parametrize(
    ("prologue", "name", "probe"),
    [
        (b"", "__fentry__", ProbeKind.FENTRY),
        (ENDBR64, "__fentry__", ProbeKind.FENTRY),
        (b"\x55\x48\x89\xe5", "mcount", ProbeKind.MCOUNT),
        (ENDBR64 + b"\x55\x48\x89\xe5\x48\x83\xec\x10", "mcount", ProbeKind.MCOUNT),
    ],
)
@pytest.mark.parametrize("through_slot", [False, True])
def test_the_call_of_a_profiler_is_redirected(
    prologue: bytes, name: str, probe: ProbeKind, through_slot: bool
) -> None:
    # GIVEN `call name`, or `call *name@GOTPCREL(%rip)`
    call = (b"\xff\x15" if through_slot else b"\xe8") + (0x2000).to_bytes(4, "little")
    site = SITE + len(prologue)
    target = site + len(call) + 0x2000
    # WHEN it is planned
    plan = Case().plan(prologue + call + FOLLOWING, profiled={target: name})
    # THEN the operand changes, and six bytes stay one instruction
    assert (plan.form, plan.probe) == (Form.CALL, probe)
    assert (plan.head.address, plan.head.expected) == (site, call)
    assert plan.head.wanted[: len(call) - 4] == (b"\x67\xe8" if through_slot else b"\xe8")


@pytest.mark.parametrize(
    ("prologue", "name"),
    [(b"", "mcount"), (b"\x55\x48\x89\xe5", "__fentry__"), (b"", ""), (b"\x55", "mcount")],
)
def test_other_calls_are_not_taken_for_a_profiler(prologue: bytes, name: str) -> None:
    call = b"\xe8" + (0x2000).to_bytes(4, "little")
    target = SITE + len(prologue) + 5 + 0x2000
    code = prologue + call + FOLLOWING
    plan = Case().plan(code, profiled={target: name, 1: "mcount"}, text=Text(code))
    assert plan.form is not Form.CALL


# -- pun ------------------------------------------------------------------------


def window(code: bytes, prefixes: int, size: int, site: int = SITE) -> tuple[int, int]:
    """What a punned jump with so many prefixes can reach: (address, size)."""
    chosen = size - 1 - prefixes
    fixed = int.from_bytes(code[size : prefixes + 5], "little", signed=True) << (8 * chosen)
    return site + prefixes + 5 + fixed, 1 << (8 * chosen)


@pytest.mark.parametrize(
    ("first", "prefixes"),
    [
        *((b"\x55", count) for count in range(1)),
        *((b"\x41\x57", count) for count in range(2)),
        *((b"\x48\x89\xe0", count) for count in range(3)),
        *((SUB_RSP, count) for count in range(4)),
    ],
)
def test_a_pun_uses_the_bytes_that_follow(first: bytes, prefixes: int) -> None:
    # GIVEN that what fewer prefixes lead to is taken
    code = first + FOLLOWING
    blocked = []
    for fewer in range(prefixes):
        start, size = window(code, fewer, len(first))
        blocked.append((start // 4096 * 4096 - 4096, size + 3 * 4096))
    # WHEN it is planned
    plan = Case(blocked).plan(code)
    # THEN the jump has so many prefixes
    assert plan.form is Form.PUN
    assert plan.head.wanted.startswith(b"\x26" * prefixes + b"\xe9")
    start, size = window(code, prefixes, len(first))
    assert start <= plan.landing < start + size
    assert plan.head.wanted[len(first) :] == plan.head.expected[len(first) :]
    one_byte = len(first) == 1
    assert plan.writer is Writer.STOP
    assert (len(plan.head.changed()) == 1) == one_byte


@pytest.mark.parametrize("first", [PUSH, b"\x41\x57", b"\x48\x89\xe0", SUB_RSP, MOV_EAX])
def test_h15_the_byte_writer_changes_one_byte(first: bytes) -> None:
    # The displacement begins right behind the opcode byte: 0x13... leads up.
    code = first + b"\x00\x13" * 8 if first == PUSH else first[:4] + b"\x13" * 12
    plan = Case().plan(code, writer=Writer.BYTE)
    assert (plan.form, plan.writer) == (Form.PUN, Writer.BYTE)
    assert plan.head.changed() == [SITE]
    assert plan.head.wanted[0] == 0xE9


def test_the_byte_writer_refuses_what_takes_more_bytes() -> None:
    # Neither the first instruction nor those behind it lead to free memory.
    error = refusal(Case(), bytes.fromhex("b801000000") * 6, writer=Writer.BYTE)
    assert error.refusal is Refusal.NO_TRAMPOLINE_SPACE


def test_left_to_itself_the_planner_prefers_one_byte() -> None:
    code = b"\x48\x8d\x05\x12\x13\x14\x15" + FOLLOWING
    assert Case().plan(code, writer=Writer.AUTO).writer is Writer.BYTE
    assert Case().plan(code, writer=Writer.AUTO, frugal=True).form is Form.NEAR


def test_a_stub_out_of_reach_of_its_landing_gets_a_long_one() -> None:
    # GIVEN a pun that leads 1.98 GiB down, and stubs that can only be up
    code = PUSH + (-0x7EC0_0000).to_bytes(4, "little", signed=True) + FOLLOWING
    low = TEXT - (1 << 31)
    blocked = [(low + (64 << 20), (1 << 31) - (128 << 20))]
    plan = Case(blocked).plan(code)
    landing = next(write for write in plan.writes if write.address == plan.landing)
    assert len(landing.code) == (14 if abs(plan.landing - plan.stub) >= 1 << 31 else 5)


# -- hop ------------------------------------------------------------------------


def gap_at(distance: int, code: bytes = b"\x90" * 8, before: bytes = RETURNING) -> Gap:
    return Gap(SITE + distance, code, before)


# xor %eax,%eax; mov $1,%edx: leads into the module with and without prefixes.
SHORT = bytes.fromhex("31c0ba0100000048c3") + FOLLOWING


@pytest.mark.parametrize(
    "gap",
    [
        gap_at(16),
        gap_at(-9),
        gap_at(120, b"\xcc" * 9),
        gap_at(-126, b"\x66\x0f\x1f\x44\x00\x00\x90\x90"),
        gap_at(40, b"\x90" * 5, before=b"\xe9\x00\x00\x00\x00"),
        gap_at(40, b"\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00", before=b"\x0f\x0b"),
        gap_at(-200, b"\x90" * 100),
    ],
)
def test_a_hop_goes_through_padding(gap: Gap) -> None:
    plan = Case().plan(SHORT, gaps=[gap])
    assert plan.form is Form.HOP
    assert plan.tail is not None
    assert gap.start <= plan.tail.address
    assert plan.tail.end <= gap.start + len(gap.code)
    assert plan.head.wanted[:1] == b"\xeb"


@pytest.mark.parametrize(
    "gap",
    [
        pytest.param(gap_at(16, before=b"\x31\xc0"), id="falls through"),
        pytest.param(gap_at(16, before=b"\xe8\x00\x00\x00\x00"), id="after a call"),
        pytest.param(gap_at(16, before=b"\x06"), id="undecodable before"),
        pytest.param(gap_at(16, before=b"\xb8\xc3"), id="cut off before"),
        pytest.param(gap_at(16, before=b""), id="nothing before"),
        pytest.param(gap_at(16, b"\x90\x90\x90\x31\xc0\x90"), id="code"),
        pytest.param(gap_at(16, b"\x00" * 8), id="zeros"),
        pytest.param(gap_at(130), id="too far up"),
        pytest.param(gap_at(-140), id="too far down"),
        pytest.param(gap_at(126, b"\x90" * 4), id="too small"),
    ],
)
def test_a_hop_needs_padding_that_nothing_runs_into(gap: Gap) -> None:
    error = refusal(Case(), SHORT, gaps=[gap])
    assert error.refusal is Refusal.TOO_SHORT
    assert "padding" in error.detail


def test_padding_is_given_away_once() -> None:
    case = Case()
    gap = gap_at(64, b"\x90" * 5)
    case.plan(SHORT, gaps=[gap])
    error = refusal(case, SHORT, address=SITE + 32, gaps=[gap])
    assert error.refusal is Refusal.TOO_SHORT


# -- endbr64 ----------------------------------------------------------------------


def test_h11_a_landing_pad_stays_where_that_is_possible() -> None:
    plan = Case().plan(ENDBR64 + PUSH + FOLLOWING)
    assert plan.head.address == SITE + 4


def test_h11_a_landing_pad_is_the_site_as_a_last_resort() -> None:
    # What follows is a system call, which cannot be moved.
    plan = Case().plan(ENDBR64 + b"\x0f\x05\x48\x13" + FOLLOWING)
    assert plan.form is Form.PUN
    assert plan.head.address == SITE
    assert "syscall" in plan.detail


# -- the instructions behind ----------------------------------------------------------


def test_behind_a_push_the_return_address_is_one_word_further() -> None:
    plan = Case().plan(INWARD, text=Text(INWARD))
    assert (plan.form, plan.probe) == (Form.NEAR, ProbeKind.FENTRY)
    assert plan.head.address == SITE + 1
    assert plan.detail.startswith("near: the first instruction has 1 of 5 bytes")


def test_behind_other_instructions_it_is_where_it_was() -> None:
    plan = Case().plan(SHORT, text=Text(SHORT))
    assert (plan.form, plan.probe) == (Form.NEAR, ProbeKind.ENTRY)
    assert plan.head.address == SITE + 2


def test_the_way_may_have_three_steps() -> None:
    # push rbp; cdq; cwde; mov $0x10000,%edi
    code = bytes.fromhex("559998bf00000100") + FOLLOWING
    plan = Case().plan(code, text=Text(code))
    assert (plan.head.address, plan.probe) == (SITE + 3, ProbeKind.FENTRY)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("5fba1500000090", id="pop"),
        pytest.param("ff30ba1500000090", id="push of memory"),
        pytest.param("5553ba1500000090", id="two pushes lead nowhere"),
        pytest.param("7400ba1500000090", id="jump"),
        pytest.param("c3ba1500000090", id="return"),
        pytest.param("c9ba1500000090", id="leave"),
        pytest.param("0f0bba1500000090", id="trap"),
        pytest.param("0f05ba1500000090", id="system call"),
        pytest.param("ffd0ba1500000090", id="call"),
        pytest.param("ffe0ba1500000090", id="indirect jump"),
        pytest.param("89ecba1500000090", id="new stack"),
        pytest.param("94ba1500000090", id="exchanged stack"),
    ],
)
def test_the_way_must_be_certain(code: str) -> None:
    body = bytes.fromhex(code) + b"\x00" * 24
    refusal(Case(), body, text=Text(body))


@pytest.mark.parametrize(
    "jump",
    [
        b"\xe9" + (-0x105).to_bytes(4, "little", signed=True),
        b"\xe8" + (-0x105).to_bytes(4, "little", signed=True),
        b"\x0f\x84" + (-0x106).to_bytes(4, "little", signed=True),
        b"\x48\x8d\x05" + (-0x107).to_bytes(4, "little", signed=True),
    ],
)
def test_h3_nothing_may_jump_behind_the_entry(jump: bytes) -> None:
    body = INWARD.ljust(0x101, b"\x90") + jump
    assert refusal(Case(), INWARD, text=Text(body)).refusal is Refusal.TOO_SHORT


@pytest.mark.parametrize("opcode", [0xEB, 0x74, 0xE2])
def test_h2_nothing_may_jump_behind_the_entry_from_near(opcode: int) -> None:
    body = INWARD.ljust(0x41, b"\x90") + bytes((opcode, 0x100 - 0x42))
    assert refusal(Case(), INWARD, text=Text(body)).refusal is Refusal.TOO_SHORT


def test_h8_no_function_may_begin_behind_the_entry() -> None:
    error = refusal(Case(), INWARD, text=Text(INWARD), next_entry=SITE + 1)
    assert error.refusal is Refusal.TOO_SHORT


def test_without_the_modules_code_only_the_first_instruction_is_used() -> None:
    assert refusal(Case(), INWARD).refusal is Refusal.TOO_SHORT


# -- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "wanted", "detail"),
    [
        ("0f05", Refusal.UNMOVABLE_INSTRUCTION, "syscall"),
        ("c7f800100000", Refusal.UNMOVABLE_INSTRUCTION, "xbegin"),
        ("0f0b", Refusal.UNMOVABLE_INSTRUCTION, "ud2"),
        ("cc", Refusal.UNMOVABLE_INSTRUCTION, "int3"),
        ("06", Refusal.UNDECODABLE, "no instruction"),
        ("", Refusal.UNDECODABLE, "no instruction"),
        ("48c7c00f0000000f05", Refusal.RESERVED, "signal handlers"),
    ],
)
def test_refusals_say_why(code: str, wanted: Refusal, detail: str) -> None:
    body = bytes.fromhex(code)
    error = refusal(Case(), body + FOLLOWING if body else b"")
    assert error.refusal is wanted
    assert detail in error.detail


def test_a_full_address_space_is_a_refusal() -> None:
    low, high = SITE - (1 << 32), SITE + (1 << 32)
    blocked = [(low, TEXT - low), (TEXT + TEXT_BYTES, high - TEXT - TEXT_BYTES)]
    error = refusal(Case(blocked), MOV_EAX + FOLLOWING)
    assert error.refusal is Refusal.NO_TRAMPOLINE_SPACE


def test_a_refused_function_gives_its_stub_back() -> None:
    case = Case()
    refusal(case, SHORT)
    region = case.layout.regions[0]
    assert region.cursor - len(region.free_stubs) * case.architecture.stub_bytes == (
        region.base + 8192
    )


def test_code_that_ends_within_the_jump_is_a_refusal() -> None:
    assert refusal(Case(), PUSH + b"\xc3", size=2).refusal is Refusal.TOO_SHORT


# -- neighbours -------------------------------------------------------------------------

BODIES = ["55", "4157", "31c0", "4889e0", "4883ec28", "b801000000", "c3", "f30f1efa", "5548"]


def plan_pair(first: bytes, second: bytes, distance: int, swap: bool) -> list[SitePlan]:
    case = Case()
    code = (first + FOLLOWING)[:distance].ljust(distance, b"\x90") + second + FOLLOWING
    starts = [0, distance] if not swap else [distance, 0]
    plans = []
    for start in starts:
        size = distance if start == 0 else 0
        try:
            plans.append(case.plan(code[start:], address=SITE + start, size=size))
        except RefusedError:
            continue
    return plans


@pytest.mark.parametrize("distance", range(1, 9))
@pytest.mark.parametrize("swap", [False, True])
def test_h7_neighbours_do_not_touch_each_others_bytes(distance: int, swap: bool) -> None:
    both = 0
    for first in BODIES:
        for second in BODIES:
            plans = plan_pair(bytes.fromhex(first), bytes.fromhex(second), distance, swap)
            assert plans, (first, second)
            for one, other in itertools.pairwise(plans):
                both += 1
                for a, b in ((one, other), (other, one)):
                    span = range(a.head.address, a.head.end)
                    assert not set(span) & set(b.head.changed())
    assert both or distance < 3


# -- any code ------------------------------------------------------------------------------

ARCHITECTURE = X86Architecture()


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.binary(min_size=0, max_size=64),
        st.tuples(st.sampled_from(BODIES), st.binary(min_size=16, max_size=40)).map(
            lambda parts: bytes.fromhex(parts[0]) + parts[1]
        ),
    ),
    st.integers(0, 40),
    st.sampled_from([Writer.AUTO, Writer.BYTE, Writer.STOP]),
    st.booleans(),
)
def test_any_code_is_refused_or_gets_a_sound_plan(
    code: bytes, size: int, writer: Writer, has_text: bool
) -> None:
    case = Case(architecture=ARCHITECTURE)
    text = Text(code) if has_text else None
    try:
        # `plan` checks the promises of every plan.
        plan = case.plan(code, size=size, writer=writer, text=text, gaps=[gap_at(48)])
    except RefusedError as error:
        assert error.detail
        return
    if size:
        assert plan.head.address < SITE + size
    if writer is Writer.BYTE:
        assert plan.writer is Writer.BYTE
    if writer is Writer.STOP:
        assert plan.writer is Writer.STOP


def test_h43_a_call_stays_where_the_processor_keeps_return_addresses() -> None:
    call = bytes.fromhex("e800000000") + FOLLOWING
    with pytest.raises(RefusedError) as refused:
        Case().plan(call, has_exit=False, exit_refusal=Refusal.SHADOW_STACK)
    assert refused.value.refusal is Refusal.SHADOW_STACK
    assert Case().plan(call, has_exit=False).form is Form.NEAR
