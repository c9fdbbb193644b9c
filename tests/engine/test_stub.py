"""Whole stubs with the real runtime: what a traced program can and cannot notice."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.engine.annex_model import (
    DIRECTORY,
    PROGRAM,
    RETURN,
    RINGS,
    SLOTS,
    STUBS,
    THUNKS,
    TID,
    TID_OFFSET,
    AnnexModel,
    key_of,
    stack_pointer,
    thunk_return,
    with_register,
)
from tests.engine.machine import FLAGS, GPR_NAMES, Outcome, State
from uftrace_agent.engine.x86_64 import stub as stubs
from uftrace_agent.engine.x86_64.instruction import decode
from uftrace_agent.runtime.layout import (
    DIRECTORY_BYTES,
    KIND_ENTRY,
    KIND_ENTRY_ONLY,
    KIND_EXIT,
    KIND_TAIL_ENTRY,
    PARAM_BYTES,
    SLOT_BYTES,
    SLOT_TABLE_BYTES,
    THUNK_BYTES,
    THUNK_SPAN,
    define,
    id_word,
)

KIND_THREAD = define("KIND_THREAD")
SITE = PROGRAM + 0x100
ID = 1234
RED_ZONE = 128
STACK_BUDGET = 256
# Where each kind of probe finds the return address: bytes above rsp.
PROBES = {
    "uf_entry": 0,
    "uf_entry_paired": 0,
    "uf_entry_fentry": 8,
    "uf_entry_mcount": None,
    "uf_entry_only": 0,
    "uf_entry_only_fentry": 8,
    "uf_entry_only_mcount": None,
}


@pytest.fixture
def annex() -> AnnexModel:
    return AnnexModel()


def put_stub(
    annex: AnnexModel, code: str = "", probe: str = "uf_entry", kind: int = KIND_ENTRY
) -> int:
    """A stub for a site with that instruction; where the program goes on."""
    annex.machine.write(SITE, bytes.fromhex(code) or b"\x90")
    instruction = decode(bytes.fromhex(code), SITE) if code else None
    resume = SITE + max(len(code) // 2, 1)
    word = id_word(ID, kind)
    make = stubs.paired_stub if probe == "uf_entry_paired" else stubs.entry_stub
    annex.machine.write(STUBS, make(STUBS, annex.symbol(probe), word, instruction, resume))
    return resume


def placed(annex: AnnexModel, probe: str, seed: int) -> tuple[State, int]:
    """Registers for a kind of probe, and the address of the return address."""
    state = annex.state(seed)
    above = PROBES[probe]
    if above is None:
        slot = stack_pointer(state) + 0x40 + 8
        state = with_register(state, "rbp", slot - 8)
    else:
        slot = stack_pointer(state) + above
    annex.write_word(slot, RETURN)
    return state, slot


def lowest_stack_write(outcome: Outcome, state: State) -> int:
    near = [at for at in outcome.memory if abs(at - stack_pointer(state)) < 65536]
    return min(near)


def assert_unnoticed(outcome: Outcome, state: State, slot: int | None) -> None:
    """Nothing changed but the annex, the free stack, and maybe the return slot."""
    assert not outcome.error
    assert outcome.state.differences(state) == []
    for address in outcome.memory:
        in_annex = (
            DIRECTORY <= address < DIRECTORY + DIRECTORY_BYTES + SLOT_TABLE_BYTES
            or RINGS <= address < RINGS + (1 << 30)
        )
        free_stack = address < stack_pointer(state) - RED_ZONE
        in_slot = slot is not None and slot <= address < slot + 8
        assert in_annex or (free_stack and address > 0x1000000) or in_slot, hex(address)


@pytest.mark.parametrize("probe", [name for name in PROBES if "only" not in name])
def test_an_entry_is_recorded_and_its_return_goes_through_a_thunk(
    annex: AnnexModel, probe: str
) -> None:
    # GIVEN a thread that enters a traced function for the first time
    resume = put_stub(annex, probe=probe)
    for turn in range(2):  # the second time takes the fast path throughout
        state, slot = placed(annex, probe, seed=1)
        # WHEN the stub runs
        outcome = annex.run(STUBS, state, resume)
        # THEN the program goes on and can see nothing of it
        assert outcome.pc == resume
        assert_unnoticed(outcome, state, slot)
        # AND the return address is a thunk that knows the real one
        assert annex.slot_of(annex.read_word(slot)) == (RETURN, id_word(ID, KIND_ENTRY))
        first, *entries = annex.records(1)
        assert (first.kind, first.key) == (KIND_THREAD, TID)
        assert [(e.kind, e.function_id, e.key) for e in entries] == [
            (KIND_ENTRY, ID, key_of(slot))
        ] * (turn + 1)


@pytest.mark.parametrize("probe", [name for name in PROBES if "only" in name])
def test_an_entry_only_probe_leaves_the_return_address(annex: AnnexModel, probe: str) -> None:
    resume = put_stub(annex, probe=probe, kind=KIND_ENTRY_ONLY)
    state, slot = placed(annex, probe, seed=2)
    outcome = annex.run(STUBS, state, resume)
    assert outcome.pc == resume
    assert_unnoticed(outcome, state, None)
    assert annex.read_word(slot) == RETURN
    assert [(r.kind, r.key) for r in annex.records(1)[1:]] == [(KIND_ENTRY_ONLY, key_of(slot))]


def all_flags() -> Iterator[int]:
    bits = [1 << bit for bit in range(12) if FLAGS >> bit & 1]
    for chosen in range(1 << len(bits)):
        yield sum(bit for index, bit in enumerate(bits) if chosen >> index & 1)


@pytest.mark.parametrize("probe", list(PROBES))
def test_h30_every_flag_survives_the_probe(annex: AnnexModel, probe: str) -> None:
    resume = put_stub(annex, probe=probe)
    state, slot = placed(annex, probe, seed=3)
    for flags in all_flags():
        annex.write_word(slot, RETURN)
        before = State(state.gprs, flags, state.vectors)
        outcome = annex.run(STUBS, before, resume)
        assert_unnoticed(outcome, before, slot)


def test_h30_every_flag_survives_the_slow_paths() -> None:
    # Each run begins with an empty annex: registration, ring and slot are made.
    annex = AnnexModel()
    resume = put_stub(annex)
    state = annex.state(3)
    for flags in all_flags():
        before = State(state.gprs, flags, state.vectors)
        outcome = annex.machine.run(STUBS, before, [resume])
        assert outcome.pc == resume
        assert_unnoticed(outcome, before, stack_pointer(before))


def test_h32_every_register_survives_with_random_values(annex: AnnexModel) -> None:
    resume = put_stub(annex)
    for seed in range(100):
        state = annex.state(seed)
        rng = random.Random(seed)
        for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r15"):
            state = with_register(state, name, rng.getrandbits(64))
        outcome = annex.machine.run(STUBS, state, [resume])
        assert_unnoticed(outcome, state, stack_pointer(state))


def test_h34_the_fast_path_stays_within_its_stack(annex: AnnexModel) -> None:
    resume = put_stub(annex)
    state = annex.state(4)
    annex.run(STUBS, state, resume)
    annex.write_word(stack_pointer(state), RETURN)
    outcome = annex.run(STUBS, state, resume)
    assert lowest_stack_write(outcome, state) >= stack_pointer(state) - STACK_BUDGET


@pytest.mark.parametrize(
    "code", ["55", "4157", "4883ec28", "89f8", "488b0510000000", "488d0d00ffffff", "f30f1efa"]
)
def test_the_displaced_instruction_does_what_it_did(annex: AnnexModel, code: str) -> None:
    # GIVEN what the instruction does at its own place
    put_stub(annex, code)
    state = annex.state(5)
    resume = SITE + len(code) // 2
    alone = annex.machine.run(SITE, state, [resume])
    # WHEN it runs in the stub
    outcome = annex.machine.run(STUBS, state, [resume])
    # THEN registers and the stack in use are the same
    assert outcome.pc == alone.pc == resume
    assert outcome.state.differences(alone.state) == []
    for address, byte in alone.memory.items():
        assert outcome.memory[address] == byte


def test_h5_a_displaced_call_returns_to_the_program(annex: AnnexModel) -> None:
    put_stub(annex, "e800100000")
    state = annex.state(6)
    outcome = annex.run(STUBS, state, SITE + 5 + 0x1000)
    assert outcome.pc == SITE + 5 + 0x1000
    assert annex.read_word(stack_pointer(state) - 8) == SITE + 5


def test_a_displaced_return_goes_through_the_thunk(annex: AnnexModel) -> None:
    put_stub(annex, "c3")
    state = annex.state(7)
    outcome = annex.run(STUBS, state, SITE + 1)
    assert outcome.pc == RETURN
    kinds = [record.kind for record in annex.records(1)]
    assert kinds == [KIND_THREAD, KIND_ENTRY, KIND_EXIT]


def test_switched_off_nothing_is_recorded(annex: AnnexModel) -> None:
    resume = put_stub(annex)
    annex.enable(False)
    state = annex.state(8)
    outcome = annex.run(STUBS, state, resume)
    assert_unnoticed(outcome, state, None)
    assert all(address < stack_pointer(state) for address in outcome.memory)
    assert annex.records(1) == []
    assert annex.read_word(stack_pointer(state)) == RETURN


def test_a_full_ring_drops_and_counts(annex: AnnexModel) -> None:
    # GIVEN a ring whose reader has stopped reading
    resume = put_stub(annex)
    state = annex.state(9)
    room = (annex.ring_bytes - define("RING_SLACK")) // 16 - 1
    for _ in range(room):
        annex.write_word(stack_pointer(state), RETURN)
        annex.run(STUBS, state, resume)
    assert annex.ring_word(1, "LOST") == 0
    # WHEN more calls come
    annex.write_word(stack_pointer(state), RETURN)
    for lost in (2, 4, 6):
        outcome = annex.run(STUBS, state, resume)
        # THEN each is counted with its exit, which nobody will see either
        assert_unnoticed(outcome, state, None)
        assert annex.ring_word(1, "LOST") == lost
        assert annex.read_word(stack_pointer(state)) == RETURN
    assert len(annex.records(1)) == room + 1
    # AND once the reader goes on, so does the ring
    annex.write_ring_word(1, "TAIL", 512)
    annex.run(STUBS, state, resume)
    assert annex.ring_word(1, "LOST") == 6
    assert len(annex.records(1)) == room + 2


@pytest.mark.parametrize("kind", [KIND_TAIL_ENTRY, KIND_ENTRY_ONLY, KIND_EXIT])
def test_what_has_no_exit_of_its_own_is_lost_once(annex: AnnexModel, kind: int) -> None:
    # GIVEN a thread with a ring, which is full
    probe = "uf_entry_only" if kind == KIND_ENTRY_ONLY else "uf_entry"
    resume = put_stub(annex, probe=probe)
    state = annex.state(9)
    annex.run(STUBS, state, resume)
    annex.write_ring_word(1, "TAIL", 0)
    while not annex.ring_word(1, "LOST"):
        annex.write_word(stack_pointer(state), RETURN)
        annex.run(STUBS, state, resume)
    before = annex.ring_word(1, "LOST")
    # WHEN a call comes that has no exit, or an exit
    annex.write_slot(3, RETURN, id_word(ID, KIND_ENTRY))
    if kind == KIND_TAIL_ENTRY:
        annex.write_word(stack_pointer(state), thunk_return(3))
    start = thunk_return(3) if kind == KIND_EXIT else STUBS
    outcome = annex.run(start, state, resume)
    # THEN one record is lost
    assert not outcome.error
    assert annex.ring_word(1, "LOST") == before + 1


def test_h45_a_tail_call_is_marked_and_not_hijacked_twice(annex: AnnexModel) -> None:
    resume = put_stub(annex)
    state = annex.state(10)
    thunk = THUNKS + 77 * THUNK_BYTES
    annex.write_word(stack_pointer(state), thunk)
    outcome = annex.run(STUBS, state, resume)
    assert_unnoticed(outcome, state, None)
    assert annex.read_word(stack_pointer(state)) == thunk
    assert [r.kind for r in annex.records(1)] == [KIND_THREAD, KIND_TAIL_ENTRY]


def test_h50_with_a_full_table_entries_are_recorded_alone(annex: AnnexModel) -> None:
    resume = put_stub(annex)
    annex.fill_slots()
    state = annex.state(11)
    outcome = annex.run(STUBS, state, resume)
    assert_unnoticed(outcome, state, None)
    assert annex.read_word(stack_pointer(state)) == RETURN
    assert [r.kind for r in annex.records(1)] == [KIND_THREAD, KIND_ENTRY_ONLY]


def test_call_sites_share_the_table(annex: AnnexModel) -> None:
    # Every (function, return address) has one thunk, found again each time.
    resume = put_stub(annex)
    state = annex.state(12)
    thunks: dict[int, int] = {}
    for turn in range(2):
        for site in range(200):
            back = RETURN + 7 * site
            annex.write_word(stack_pointer(state), back)
            annex.machine.run(STUBS, state, [resume], keep=True)
            thunk = annex.read_word(stack_pointer(state))
            assert annex.slot_of(thunk)[0] == back
            assert thunks.setdefault(back, thunk) == thunk
            annex.write_ring_word(1, "TAIL", (turn * 200 + site) * 16)
    assert len(set(thunks.values())) == 200


def test_without_a_free_ring_the_shared_one_is_used(annex: AnnexModel) -> None:
    for ring in (1, 2):
        annex.write_ring_word(ring, "OWNER", 1 << 32 | 99)
    resume = put_stub(annex)
    state = annex.state(13)
    slot = stack_pointer(state)
    outcome = annex.run(STUBS, state, resume)
    assert_unnoticed(outcome, state, slot)
    who, what = annex.records(0)
    assert (who.kind, who.key) == (KIND_THREAD, TID)
    assert (what.kind, what.function_id, what.key) == (KIND_ENTRY, ID, key_of(slot))
    exited = annex.run(annex.read_word(slot), state)
    assert exited.pc == RETURN
    assert [r.kind for r in annex.records(0)[2:]] == [KIND_THREAD, KIND_EXIT]


def test_a_reused_thread_pointer_is_another_thread(annex: AnnexModel) -> None:
    resume = put_stub(annex)
    annex.run(STUBS, annex.state(14), resume)
    annex.tid = 4712
    annex.run(STUBS, annex.state(14), resume)
    kinds = [(r.kind, r.key) for r in annex.records(1) if r.kind == KIND_THREAD]
    assert kinds == [(KIND_THREAD, TID), (KIND_THREAD, 4712)]
    assert annex.ring_word(1, "OWNER") & 0xFFFFFFFF == 4712


def test_h58_a_thread_without_tls_of_its_own_uses_the_shared_ring(annex: AnnexModel) -> None:
    # A vfork child: the word beside the thread pointer is its parent's tid.
    resume = put_stub(annex)
    state = annex.state(15)
    annex.tid = 4713
    annex.run(STUBS, state, resume)
    assert annex.records(1) == []
    assert next((r.kind, r.key) for r in annex.records(0)) == (KIND_THREAD, 4713)


def test_without_a_known_place_of_the_tid_the_kernel_is_asked() -> None:
    annex = AnnexModel(tid_offset=-1)
    resume = put_stub(annex)
    state = annex.state(16)
    annex.write_word(state.fs_base + TID_OFFSET, 0)
    for count in range(1, 3):
        annex.write_word(stack_pointer(state), RETURN)
        assert_unnoticed(annex.run(STUBS, state, resume), state, stack_pointer(state))
        assert len(annex.records(1)) == count + 1


def test_a_thunk_returns_where_the_function_would_have(annex: AnnexModel) -> None:
    # GIVEN a function that has returned to a thunk, with results in registers
    index = 4321
    annex.write_slot(index, RETURN, id_word(ID, KIND_ENTRY))
    for flags in all_flags():
        state = annex.state(17, flags)
        # WHEN the thunk runs
        outcome = annex.machine.run(thunk_return(index), state, [], keep=True)
        # THEN it goes home, everything as the function left it
        assert outcome.pc == RETURN
        assert_unnoticed_by_caller(outcome, state)
        annex.write_ring_word(1, "TAIL", len(annex.records(1)) * 16)
    # AND the exit has the key of its entry: the return slot is just below rsp
    exits = annex.records(1)[1:]
    assert {(e.kind, e.function_id, e.key) for e in exits} == {
        (KIND_EXIT, ID, key_of(stack_pointer(state) - 8))
    }


def assert_unnoticed_by_caller(outcome: Outcome, state: State) -> None:
    # All of the stack below rsp is the caller's to lose: the function used it.
    assert not outcome.error
    assert outcome.state.differences(state) == []
    on_stack = [at for at in outcome.memory if abs(at - stack_pointer(state)) < 65536]
    assert max(on_stack) < stack_pointer(state)


def test_a_thunk_works_when_switched_off(annex: AnnexModel) -> None:
    annex.write_slot(5, RETURN, id_word(ID, KIND_ENTRY))
    annex.enable(False)
    state = annex.state(18)
    outcome = annex.run(thunk_return(5), state)
    assert outcome.pc == RETURN
    assert_unnoticed_by_caller(outcome, state)
    assert annex.records(1) == []


def test_every_thunk_pushes_its_number(annex: AnnexModel) -> None:
    for index in (0, 1, 255, 256, 32767, 32768, 65535):
        at = THUNKS + index * THUNK_BYTES
        code = annex.machine.read(at, THUNK_BYTES)
        enter = decode(code, at)
        assert enter is not None and enter.is_call()
        assert enter.indirect_slot() == SLOTS + index * SLOT_BYTES + define("SLOT_RESUME")
        assert at + enter.size == thunk_return(index)
        code = code[enter.size :]
        push = decode(code, thunk_return(index))
        assert push is not None and push.raw.operands[0].imm == index
        leave = decode(code[push.size :], push.address + push.size)
        assert leave is not None and leave.branch_target() == annex.symbol("uf_exit")


# -- the unwinder's hook ----------------------------------------------------


@pytest.mark.parametrize(
    ("pc", "ours"),
    [
        (THUNKS - THUNK_BYTES - 1, False),
        (THUNKS - THUNK_BYTES, True),
        (THUNKS - 1, True),  # the unwinder looks up pc - 1
        (THUNKS, True),
        (THUNKS + THUNK_SPAN - 1, True),
        (THUNKS + THUNK_SPAN, False),
        (PROGRAM, False),
        (0, False),
        ((1 << 64) - 1, False),
    ],
)
def test_the_unwinder_is_answered_for_thunks_only(annex: AnnexModel, pc: int, ours: bool) -> None:
    bases = 0x300000
    site = decode(b"\x41\x57", SITE)
    assert site is not None
    annex.machine.write(
        STUBS, stubs.unwinder_stub(STUBS, annex.symbol("uf_find_fde"), site, SITE + 2)
    )
    state = with_register(with_register(annex.state(19), "rdi", pc), "rsi", bases)
    outcome = annex.run(STUBS, state, SITE + 2)
    if not ours:
        # Goes on with the original, arguments as they were.
        assert outcome.pc == SITE + 2
        assert not {"rdi", "rsi"} & set(outcome.state.differences(state))
        return
    assert outcome.pc == RETURN
    fde = annex.symbol("uf_unwind_fde") + annex.fde_offset
    assert outcome.state.gprs[0] == fde
    assert annex.read_word(bases + 16) == THUNKS - THUNK_BYTES
    assert annex.machine.read(fde, 4) == annex.unwind_entry[annex.fde_offset :][:4]
    assert stack_pointer(outcome.state) == stack_pointer(state) + 8


@pytest.mark.parametrize("behind", [0, 1], ids=["signal frame", "call"])
def test_h40_the_unwinder_that_asks_for_a_thunk_gets_the_real_address(
    annex: AnnexModel, behind: int
) -> None:
    # GIVEN libgcc's context, whose return address is a thunk
    bases = 0x300000
    context_ra = bases - 16
    thunk = thunk_return(9)
    annex.write_slot(9, RETURN, id_word(ID, KIND_ENTRY))
    site = decode(b"\x41\x57", SITE)
    assert site is not None
    annex.machine.write(
        STUBS, stubs.unwinder_stub(STUBS, annex.symbol("uf_find_fde"), site, SITE + 2)
    )
    state = with_register(annex.state(19), "rdi", thunk - behind)
    state = with_register(state, "rsi", bases)
    annex.write_word(context_ra, thunk)
    # WHEN it looks up the thunk
    outcome = annex.run(STUBS, state, SITE + 2)
    # THEN it finds itself in the caller
    assert outcome.pc == SITE + 2
    assert outcome.state.gprs[GPR_NAMES.index("rdi")] == RETURN - behind
    assert annex.read_word(context_ra) == RETURN


# -- profiling calls, landings ----------------------------------------------


@pytest.mark.parametrize("through_slot", [False, True])
def test_a_profiling_call_still_reaches_the_profiler(annex: AnnexModel, through_slot: bool) -> None:
    code = b"\xff\x15" + (0x1000 - 6).to_bytes(4, "little") if through_slot else b"\xe8\x22\0\0\0"
    callee = decode(code, SITE)
    assert callee is not None
    profiler = PROGRAM + 0x2000 if through_slot else SITE + 5 + 0x22
    annex.write_word(SITE + 0x1000, profiler)
    word = id_word(ID, KIND_ENTRY)
    annex.machine.write(
        STUBS, stubs.call_stub(STUBS, annex.symbol("uf_entry_fentry"), word, callee)
    )
    # As after the call: the return into the function, then the function's own.
    state = annex.state(20)
    annex.write_word(stack_pointer(state) + 8, RETURN)
    annex.write_word(stack_pointer(state), SITE + len(code))
    outcome = annex.run(STUBS, state, profiler)
    assert outcome.pc == profiler
    assert_unnoticed(outcome, state, stack_pointer(state) + 8)
    assert annex.read_word(stack_pointer(state)) == SITE + len(code)
    assert annex.slot_of(annex.read_word(stack_pointer(state) + 8))[0] == RETURN


@pytest.mark.parametrize(("distance", "size"), [(0x1000, 5), (1 << 40, 14)])
def test_a_landing_leads_to_its_stub(annex: AnnexModel, distance: int, size: int) -> None:
    code = stubs.landing(STUBS, STUBS + distance)
    assert len(code) == size
    annex.machine.write(STUBS, code)
    state = annex.state(21)
    outcome = annex.run(STUBS, state, STUBS + distance)
    assert outcome.pc == STUBS + distance
    assert outcome.state.differences(state) == []


def test_h31_the_runtime_uses_general_registers_only() -> None:
    # Unicorn has no AVX: that no vector register changes is shown by there
    # being no instruction that could.
    annex = AnnexModel()
    start = PARAM_BYTES + 256
    code = annex.blob.code[start:].rstrip(b"\0")
    at = 0
    while at < len(code):
        instruction = decode(code[at:], start + at)
        assert instruction is not None, hex(start + at)
        read, written = instruction.raw.regs_access()
        names = [instruction.raw.reg_name(register) for register in (*read, *written)]
        vectors = [name for name in names if name.startswith(("xmm", "ymm", "zmm", "mm", "st"))]
        assert not vectors, instruction.text
        at += instruction.size
    assert at > 1000


def test_tables_are_where_the_probes_look() -> None:
    assert SLOTS == DIRECTORY + DIRECTORY_BYTES
