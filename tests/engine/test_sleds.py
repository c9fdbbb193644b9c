"""XRay's sleds: what they become, and what runs there, with the real runtime."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import unicorn

from tests.engine.annex_model import (
    CODE,
    RETURN,
    STUBS,
    AnnexModel,
    key_of,
    stack_pointer,
    with_register,
)
from tests.engine.machine import FLAGS, State
from tests.engine.planning import ENDBR64, FOLLOWING, SITE, TEXT, Case
from uftrace_agent.engine.layout import CodeRegion
from uftrace_agent.engine.model import Form, SiteKind, Writer
from uftrace_agent.engine.site import LiveSled, Patch, Role, SitePlan
from uftrace_agent.runtime.layout import KIND_ENTRY, KIND_ENTRY_ONLY, KIND_EXIT
from uftrace_agent.symbols.xray_sleds import SledKind

NOP9 = bytes.fromhex("660f1f840000020000")
NOP10 = bytes.fromhex("2e660f1f840000020000")
ENTRY = b"\xeb\x09" + NOP9
EXIT = b"\xc3" + NOP10
TAIL = ENTRY
LEA = bytes.fromhex("8d4703")  # lea 3(%rdi),%eax
ID = 7
EVENT_HOOK = SITE + 0x800


class Function:
    """A function under construction, and where its sleds are."""

    def __init__(self, address: int = SITE) -> None:
        self.address = address
        self.code = b""
        self._sleds: list[tuple[int, SledKind]] = []

    @property
    def here(self) -> int:
        return self.address + len(self.code)

    def add(self, code: str | bytes, kind: SledKind | None = None) -> Function:
        if kind is not None:
            self._sleds.append((self.here, kind))
        self.code += bytes.fromhex(code) if isinstance(code, str) else code
        return self

    def jump(self, to: int, opcode: bytes = b"\xe9") -> Function:
        size = len(opcode) + 4
        return self.add(opcode + (to - self.here - size).to_bytes(4, "little", signed=True))

    @property
    def sleds(self) -> tuple[LiveSled, ...]:
        text = self.code + FOLLOWING
        return tuple(LiveSled(at, kind, text[at - self.address :][:40]) for at, kind in self._sleds)

    def plan(self, case: Case | None = None, **options: object) -> SitePlan:
        case = case or Case(region=CodeRegion(CODE, 0x10000, STUBS))
        options = {"writer": Writer.AUTO, "size": len(self.code)} | options
        return case.plan(
            self.code + FOLLOWING,
            address=self.address,
            sleds=self.sleds,
            body=self.code,
            **options,  # type: ignore[arg-type]
        )


def plain(address: int = SITE) -> Function:
    """lea 3(%rdi),%eax; ret"""
    function = Function(address)
    return function.add(ENTRY, SledKind.ENTRY).add(LEA).add(EXIT, SledKind.EXIT)


def two_exits() -> Function:
    """Two ways out: test %edi,%edi; jz 1f; ...; ret; 1: ...; ret."""
    function = Function().add(ENTRY, SledKind.ENTRY).add("85ff740e").add(LEA)
    return function.add(EXIT, SledKind.EXIT).add("31c0").add(EXIT, SledKind.EXIT)


def tail_call() -> Function:
    """inc %edi; jmp to a function without sleds."""
    function = Function().add(ENTRY, SledKind.ENTRY).add("ffc7").add(TAIL, SledKind.TAIL)
    return function.jump(EVENT_HOOK)


def loop() -> Function:
    """1: (entry) dec %edi; jnz 1b; ret: every round passes the entry."""
    function = Function().add(ENTRY, SledKind.ENTRY).add("ffcf")
    return function.jump(SITE, b"\x0f\x85").add(EXIT, SledKind.EXIT)


def event(kind: SledKind, distance: int) -> bytes:
    """The sled of an event: what it jumps over would call the hook."""
    return b"\xeb" + bytes((distance,)) + b"\x57\x56\x0f\x0b".ljust(distance, b"\x90")


def with_events() -> Function:
    function = Function().add(ENTRY, SledKind.ENTRY)
    function.add(event(SledKind.CUSTOM_EVENT, 0x0F), SledKind.CUSTOM_EVENT)
    function.add(event(SledKind.CUSTOM_EVENT, 0x14), SledKind.CUSTOM_EVENT)
    function.add(event(SledKind.TYPED_EVENT, 0x14), SledKind.TYPED_EVENT)
    return function.add(LEA).add(EXIT, SledKind.EXIT)


FUNCTIONS = {
    "plain": plain,
    "two exits": two_exits,
    "tail call": tail_call,
    "loop": loop,
    "events": with_events,
}


def steps(plan: SitePlan) -> list[Patch]:
    """All writes in the order in which the engine makes them."""
    exits = [site for site in plan.sites() if site.role is not Role.ENTRY]
    tails = [site.tail for site in plan.sites() if site.tail is not None]
    return [*tails, *(site.head for site in exits), plan.head]


def write(annex: AnnexModel, patches: Sequence[Patch]) -> None:
    for patch in patches:
        assert annex.machine.read(patch.address, len(patch.expected)) == patch.expected
        annex.machine.write(patch.address, patch.wanted)


def loaded(function: Function) -> AnnexModel:
    annex = AnnexModel()
    annex.machine.write(SITE, function.code + FOLLOWING)
    annex.machine.write(EVENT_HOOK, bytes.fromhex("8d4709c3"))  # lea 9(%rdi),%eax; ret
    return annex


def install(annex: AnnexModel, plan: SitePlan) -> None:
    for one in plan.all_writes():
        annex.machine.write(one.address, one.code)


def called(annex: AnnexModel, seed: int = 1, value: int = 3) -> State:
    return with_register(annex.state(seed), "rdi", value)


# -- what is planned -------------------------------------------------------------


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("writer", [Writer.AUTO, Writer.BYTE, Writer.STOP])
def test_every_sled_is_changed_by_one_byte(name: str, writer: Writer) -> None:
    plan = FUNCTIONS[name]().plan(writer=writer)
    assert {site.form for site in plan.sites()} == {Form.SLED}
    assert {site.kind for site in plan.sites()} == {SiteKind.SLEDS}
    expected = Writer.STOP if writer is Writer.STOP else Writer.BYTE
    assert {site.writer for site in plan.sites()} == {expected}
    assert [site.role for site in plan.sites()].count(Role.ENTRY) == 1
    assert plan.sites()[-1] is plan, "the entry comes last, so that no exit is missed"
    assert plan.has_exit and plan.exit_refusal is None


def test_the_sleds_are_told() -> None:
    assert two_exits().plan().detail == "1 entry, 2 exit"
    assert tail_call().plan().detail == "1 entry, 1 tail"
    assert with_events().plan().detail == "1 entry, 2 custom event, 1 typed event, 1 exit"


@pytest.mark.parametrize("low", range(0, 256, 2))
def test_h15_a_sled_at_any_address_keeps_its_second_byte(low: int) -> None:
    """The landing lies where the jump's lowest displacement byte is the old distance."""
    plan = plain(SITE + low).plan()
    assert plan.form is Form.SLED
    assert plan.head.wanted == b"\xe9\x09"


def test_many_sleds_share_a_yard() -> None:
    case = Case(region=CodeRegion(CODE, 0x10000, STUBS))
    plans = [plain(SITE + 64 * n).plan(case) for n in range(100)]
    spans = [(w.address, w.address + len(w.code)) for p in plans for w in p.all_writes()]
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("kind", [SledKind.ENTRY, SledKind.ARGUMENTS])
def test_a_logged_entry_is_an_entry(kind: SledKind) -> None:
    function = Function().add(ENTRY, kind).add(LEA).add(EXIT, SledKind.EXIT)
    assert function.plan().detail == "1 entry, 1 exit"


def test_entries_alone_leave_the_exits_but_not_the_events() -> None:
    plan = with_events().plan(entry_only=True)
    assert not plan.has_exit
    assert sorted(site.role for site in plan.sites()) == [Role.ENTRY] + [Role.EVENT] * 3


def test_events_of_each_kind_have_an_id() -> None:
    plan = with_events().plan()
    ids = {site.label: site.record_id for site in plan.others if site.role is Role.EVENT}
    assert ids == {"custom event": ID + 1, "typed event": ID + 2}


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(
            Function().add("eb08" + "90" * 9, SledKind.ENTRY).add(LEA).add(EXIT, SledKind.EXIT),
            id="jumps elsewhere",
        ),
        pytest.param(
            Function().add("eb09" + "5d" * 9, SledKind.ENTRY).add(LEA).add(EXIT, SledKind.EXIT),
            id="code inside",
        ),
        pytest.param(
            Function().add(ENTRY, SledKind.ENTRY).add(LEA).add("c3" + "31c0" * 5, SledKind.EXIT),
            id="code behind the return",
        ),
        pytest.param(
            plain().add(ENTRY, SledKind.ENTRY).add(EXIT, SledKind.EXIT), id="two entries"
        ),
        pytest.param(
            Function().add(ENTRY).add(LEA).add(EXIT, SledKind.EXIT), id="an exit without entry"
        ),
        pytest.param(
            Function().add(ENTRY, SledKind.ENTRY).add("85ff").add(TAIL, SledKind.TAIL)
            .add("0f8400070000").add(LEA).add(EXIT, SledKind.EXIT),
            id="conditional tail call",
        ),
        pytest.param(
            Function().add(ENTRY, SledKind.ENTRY).add(LEA).add("c20800"), id="no exit at all"
        ),
        pytest.param(
            Function().add(ENTRY, SledKind.ENTRY).add("85ff7403c20800").add(LEA)
            .add(EXIT, SledKind.EXIT),
            id="one return without a sled",
        ),
        pytest.param(
            Function().add(ENTRY, SledKind.ENTRY).add("85ff740e").add(LEA)
            .add(EXIT, SledKind.EXIT).jump(EVENT_HOOK),
            id="a tail call without a sled",
        ),
        pytest.param(
            Function().add(ENTRY, SledKind.ENTRY)
            .add("eb0e" + "90" * 14, SledKind.CUSTOM_EVENT).add(LEA).add(EXIT, SledKind.EXIT),
            id="an event of unknown size",
        ),
    ],
)  # fmt: skip
def test_what_is_not_as_llvm_writes_it_is_any_function(function: Function) -> None:
    """Its entry gets one of the other forms, and its exit a thunk."""
    plan = function.plan(writer=Writer.STOP)
    assert plan.form is not Form.SLED
    assert not plan.others


def test_entries_without_exits_will_do_for_entries_alone() -> None:
    function = Function().add(ENTRY, SledKind.ENTRY).add(LEA).add("c20800")
    assert function.plan(entry_only=True).form is Form.SLED


def test_a_landing_pad_before_the_sled_stays() -> None:
    """clang -fcf-protection: endbr64, then the sled."""
    function = Function().add(ENDBR64).add(ENTRY, SledKind.ENTRY).add(LEA)
    plan = function.add(EXIT, SledKind.EXIT).plan()
    assert plan.form is Form.SLED
    assert plan.head.address == SITE + 4


def test_a_claimed_byte_stands_against_a_sled() -> None:
    case = Case(region=CodeRegion(CODE, 0x10000, STUBS))
    function = plain()
    assert case.layout.claim([], [SITE + 3])
    assert function.plan(case).form is not Form.SLED


# -- what runs ---------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_a_function_with_patched_sleds_does_what_it_did(name: str) -> None:
    # GIVEN a function, and what it does
    function = FUNCTIONS[name]()
    annex = loaded(function)
    state = called(annex)
    untouched = annex.machine.run(SITE, state, [])
    assert untouched.pc == RETURN and not untouched.error
    # WHEN its sleds are patched, and it is called twice
    plan = function.plan()
    install(annex, plan)
    write(annex, steps(plan))
    for _ in range(2):
        annex.write_word(stack_pointer(state), RETURN)
        outcome = annex.run(SITE, state)
        # THEN it returns with the same results, and its own return address
        assert (outcome.pc, outcome.error) == (RETURN, "")
        assert outcome.state.differences(untouched.state) == []
        assert annex.read_word(stack_pointer(state)) == RETURN
    # AND entry and exit are recorded with one key; no thunk is involved
    key = key_of(stack_pointer(state))
    records = [(r.kind, r.function_id) for r in annex.records(1)[1:]]
    entries = 3 if name == "loop" else 1
    events = [(KIND_ENTRY_ONLY, ID + n) for n in (1, 1, 2)] if name == "events" else []
    assert records == ([(KIND_ENTRY, ID)] * entries + events + [(KIND_EXIT, ID)]) * 2
    assert {r.key for r in annex.records(1)[1:] if r.kind in (KIND_ENTRY, KIND_EXIT)} == {key}
    # WHEN they are set back
    write(annex, [patch.reversed() for patch in reversed(steps(plan))])
    # THEN the code is what it was
    assert annex.machine.read(SITE, len(function.code)) == function.code
    annex.write_word(stack_pointer(state), RETURN)
    assert annex.run(SITE, state).state.differences(untouched.state) == []


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_h1_between_any_two_writes_the_function_works(name: str) -> None:
    """The engine writes while threads run: each step must leave a whole function, and
    an exit must be recorded whenever its entry was."""
    function = FUNCTIONS[name]()
    annex = loaded(function)
    state = called(annex)
    untouched = annex.machine.run(SITE, state, [])
    plan = function.plan()
    install(annex, plan)
    forth = steps(plan)
    back = [patch.reversed() for patch in reversed(forth)]
    for number, patch in enumerate([*forth, *back]):
        write(annex, [patch])
        seen = len(annex.records(1))
        annex.write_word(stack_pointer(state), RETURN)
        outcome = annex.run(SITE, state)
        assert (outcome.pc, outcome.error) == (RETURN, ""), number
        assert outcome.state.differences(untouched.state) == []
        kinds = [r.kind for r in annex.records(1)[seen:]]
        assert KIND_EXIT in kinds or KIND_ENTRY not in kinds


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_h1_threads_inside_a_function_go_on(name: str) -> None:
    """Whoever is anywhere inside (also behind the short jump's first byte being
    fetched, so at no instruction that the patch removes) ends as without the patch."""
    function = FUNCTIONS[name]()
    annex = loaded(function)
    state = called(annex)
    plan = function.plan()
    install(annex, plan)
    for stop in reached(annex, state, function):
        before = annex.machine.run(SITE, state, [stop], keep=True)
        assert before.pc == stop
        straight = annex.machine.run(stop, before.state, [])
        write(annex, steps(plan))
        resumed = annex.machine.run(stop, before.state, [])
        assert resumed.pc == straight.pc == RETURN
        assert resumed.state.differences(straight.state) == []
        write(annex, [patch.reversed() for patch in reversed(steps(plan))])


def reached(annex: AnnexModel, state: State, function: Function) -> list[int]:
    """The addresses of the function at which control is in the course of a call."""
    found: set[int] = set()
    machine = annex.machine

    def note(cpu: object, address: int, size: int, data: object) -> None:
        if SITE < address < SITE + len(function.code):
            found.add(address)

    hook = machine.cpu.hook_add(unicorn.UC_HOOK_CODE, note)
    machine.run(SITE, state, [])
    machine.cpu.hook_del(hook)
    return sorted(found)


def test_h30_h32_registers_and_flags_survive_an_event() -> None:
    """A compiler lets values live across a sled: even the flags, in front of a
    conditional tail call, and all of the red zone."""
    function = with_events()
    annex = loaded(function)
    plan = function.plan()
    install(annex, plan)
    write(annex, steps(plan))
    (custom, *_) = [site for site in plan.others if site.role is Role.EVENT]
    for seed in range(50):
        state = annex.state(seed, seed * 0x9E5 & FLAGS & ~0x400)
        annex.machine.write(stack_pointer(state) - 128, bytes(range(128)))
        resume = custom.head.address + 2 + 0x0F
        outcome = annex.machine.run(custom.head.address, state, [resume])
        assert outcome.pc == resume
        assert outcome.state.differences(state) == []
        assert annex.machine.read(stack_pointer(state) - 128, 128) == bytes(range(128))
        low = stack_pointer(state) - 128
        assert not [a for a in outcome.memory if low <= a <= stack_pointer(state) + 4096]


def test_switched_off_sleds_record_nothing() -> None:
    function = with_events()
    annex = loaded(function)
    plan = function.plan()
    install(annex, plan)
    write(annex, steps(plan))
    annex.enable(False)
    state = called(annex)
    assert annex.run(SITE, state).pc == RETURN
    assert annex.records(1) == []


def test_the_module_is_where_the_model_has_its_program() -> None:
    assert abs(TEXT - CODE) < 1 << 31
