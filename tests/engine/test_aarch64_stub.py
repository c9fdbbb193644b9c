"""Whole AArch64 stubs with the real runtime: what a traced program can and cannot notice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import unicorn
from unicorn import arm64_const as arm64

from tests.engine import annex_model as x86_model
from tests.engine.aarch64_annex_model import (
    CONTROL,
    DIRECTORY,
    PAGE,
    PROGRAM,
    RETURN,
    RINGS,
    SLOTS,
    STACK,
    STACK_PAGES,
    STUBS,
    THUNKS,
    TID,
    AnnexModel,
    State,
    key_of,
)
from tests.engine.test_stub import put_stub as put_x86_stub
from uftrace_agent.engine.aarch64 import stub as stubs
from uftrace_agent.engine.aarch64.encoding import (
    NOP,
    PACIASP,
    RET,
    branch,
    branch_link,
    pack,
)
from uftrace_agent.engine.aarch64.instruction import decode
from uftrace_agent.runtime.layout import (
    DIRECTORY_BYTES,
    KIND_ENTRY,
    KIND_ENTRY_ONLY,
    KIND_EXIT,
    KIND_TAIL_ENTRY,
    SLOT_TABLE_BYTES,
    THUNK_BYTES,
    THUNK_SPAN,
    define,
    id_word,
)

pytestmark = pytest.mark.arm

KIND_THREAD = define("KIND_THREAD")
THUNK_RETURN = define("A64_THUNK_RETURN")
SITE = PROGRAM + 0x100
RESUME = SITE + 4
ID = 1234
STACK_BUDGET = 512


@pytest.fixture
def annex() -> AnnexModel:
    return AnnexModel()


def put_stub(
    annex: AnnexModel,
    probe: str = "uf_entry_paired",
    kind: int = KIND_ENTRY,
    code: bytes = b"",
    signature: stubs.Signature = stubs.UNSIGNED,
) -> None:
    """A stub for a site with that instruction, and for a nop where there is none."""
    instruction = decode(code, SITE) if code else None
    make = stubs.paired_stub if probe == "uf_entry_paired" else stubs.entry_stub
    made = make(STUBS, annex.symbol(probe), id_word(ID, kind), instruction, RESUME, signature)
    annex.write(STUBS, made)


def assert_unnoticed(annex: AnnexModel, before: State) -> None:
    """Nothing changed but the annex and what is below the stack pointer."""
    assert annex.now() == before
    for address in annex.written:
        in_data = DIRECTORY <= address < DIRECTORY + DIRECTORY_BYTES + SLOT_TABLE_BYTES
        in_rings = RINGS <= address < RINGS + (1 << 24)
        below = before.sp - STACK_BUDGET <= address < before.sp
        assert in_data or in_rings or below, hex(address)


def kinds(annex: AnnexModel) -> list[int]:
    return [record.kind for record in annex.records(1)]


@pytest.mark.parametrize("seed", range(4))
def test_a_call_is_recorded_from_its_entry_to_its_return(annex: AnnexModel, seed: int) -> None:
    put_stub(annex)
    for turn in range(2):  # the second time takes the fast path throughout
        before = annex.state(seed)
        # WHEN the stub of a function's entry runs
        annex.run(STUBS, before, RESUME)
        # THEN the function sees all as it was, but that it will return to a thunk
        thunk = annex.now().x[30]
        assert_unnoticed(annex, replace(before, x=(*before.x[:30], thunk)))
        assert annex.slot_of(thunk) == (RETURN, id_word(ID, KIND_ENTRY))
        # AND WHEN it returns, by whichever register
        returned = annex.state(seed + 100)
        annex.run(thunk, returned, RETURN)
        # THEN its caller finds the link register as the call has left it
        assert_unnoticed(annex, returned)
        pair = [(KIND_ENTRY, ID, key_of(STACK)), (KIND_EXIT, ID, key_of(STACK))]
        first, *rest = [(r.kind, r.function_id, r.key) for r in annex.records(1)]
        assert (first[0], first[2]) == (KIND_THREAD, TID)
        assert rest == pair * (turn + 1)


def test_a_traced_call_takes_as_few_instructions_as_on_x86(annex: AnnexModel) -> None:
    # The figure of docs/architectures.md: the function itself is a nop.
    put_stub(annex)
    for _ in range(2):
        annex.run(STUBS, annex.state(1), RESUME)
        entry = annex.executed
        annex.run(annex.now().x[30], annex.state(2), RETURN)
    assert entry + annex.executed <= 1.3 * instructions_on_x86()


def instructions_on_x86() -> int:
    annex = x86_model.AnnexModel()
    executed = []
    annex.machine.cpu.hook_add(unicorn.UC_HOOK_CODE, lambda *_: executed.append(1))
    resume = put_x86_stub(annex, probe="uf_entry_paired")
    for _ in range(2):
        executed.clear()
        state = annex.state(1)
        top = x86_model.stack_pointer(state)
        annex.run(x86_model.STUBS, state, resume)
        returned = x86_model.with_register(annex.state(2), "rsp", top + 8)
        thunk = x86_model.thunk_return(0) + THUNK_BYTES * x86_slot(annex)
        assert annex.run(thunk, returned, x86_model.RETURN).pc == x86_model.RETURN
    return len(executed)


# The first slot that is in use.
def x86_slot(annex: x86_model.AnnexModel) -> int:
    words = annex.machine.read(x86_model.SLOTS, SLOT_TABLE_BYTES)
    return next(at // 32 for at in range(0, len(words), 32) if any(words[at : at + 8]))


def test_a_function_may_return_by_another_register(annex: AnnexModel) -> None:
    put_stub(annex)
    annex.run(STUBS, annex.state(1), RESUME)
    thunk = annex.now().x[30]
    # Its link register holds anything then.
    returned = annex.state(7)
    lost = replace(returned, x=(*returned.x[:30], 0xDEAD_BEEF))
    annex.run(thunk, lost, RETURN)
    assert_unnoticed(annex, returned)


def test_entries_alone_leave_the_link_register(annex: AnnexModel) -> None:
    put_stub(annex, "uf_entry_only", KIND_ENTRY_ONLY)
    for turn in range(1, 3):
        annex.run(STUBS, annex.state(3), RESUME)
        assert_unnoticed(annex, annex.state(3))
        assert kinds(annex) == [KIND_THREAD] + [KIND_ENTRY_ONLY] * turn


def test_a_tail_call_keeps_the_first_thunk(annex: AnnexModel) -> None:
    # H45
    put_stub(annex)
    annex.run(STUBS, annex.state(1), RESUME)
    inside = replace(annex.state(5), x=annex.now().x)
    annex.run(STUBS, inside, RESUME)
    assert_unnoticed(annex, inside)
    assert kinds(annex) == [KIND_THREAD, KIND_ENTRY, KIND_TAIL_ENTRY]


def test_a_full_table_of_returns_means_entries_alone(annex: AnnexModel) -> None:
    annex.fill_slots()
    put_stub(annex)
    annex.run(STUBS, annex.state(4), RESUME)
    assert_unnoticed(annex, annex.state(4))
    assert kinds(annex) == [KIND_THREAD, KIND_ENTRY_ONLY]


def test_a_switched_off_probe_does_nothing(annex: AnnexModel) -> None:
    put_stub(annex)
    annex.run(STUBS, annex.state(1), RESUME)
    thunk = annex.now().x[30]
    annex.enable(False)
    annex.run(STUBS, annex.state(6), RESUME)
    assert_unnoticed(annex, annex.state(6))
    # Who is inside still finds home.
    annex.run(thunk, annex.state(8), RETURN)
    assert_unnoticed(annex, annex.state(8))
    assert kinds(annex) == [KIND_THREAD, KIND_ENTRY]


def test_a_full_ring_drops_and_counts_entry_and_exit(annex: AnnexModel) -> None:
    put_stub(annex)
    room = (annex.ring_bytes - define("RING_SLACK")) // 16
    for _ in range(room + 3):
        before = annex.state(1)
        annex.run(STUBS, before, RESUME)
    assert_unnoticed(annex, before)
    assert len(kinds(annex)) == room
    assert annex.ring_word(1, "LOST") == 2 * 4


def test_without_a_tid_word_each_record_asks_the_kernel() -> None:
    annex = AnnexModel(tid_offset=-1)
    put_stub(annex)
    for _ in range(2):
        annex.run(STUBS, annex.state(1), RESUME)
        thunk = annex.now().x[30]
        annex.run(thunk, annex.state(2), RETURN)
        assert_unnoticed(annex, annex.state(2))
    assert kinds(annex) == [KIND_THREAD] + [KIND_ENTRY, KIND_EXIT] * 2


def test_threads_without_a_ring_share_one(annex: AnnexModel) -> None:
    for ring in (1, 2):
        annex.write_word(RINGS + ring * define("RING_HEADER_BYTES"), 1 << 32 | 99)
    put_stub(annex)
    before = annex.state(1)
    annex.run(STUBS, before, RESUME)
    thunk = annex.now().x[30]
    assert_unnoticed(annex, replace(before, x=(*before.x[:30], thunk)))
    annex.run(thunk, annex.state(2), RETURN)
    assert_unnoticed(annex, annex.state(2))
    assert [r.kind for r in annex.records(0)] == [KIND_THREAD, KIND_ENTRY, KIND_THREAD, KIND_EXIT]


@pytest.mark.parametrize("key", ["a", "b"])
def test_h12_a_signed_return_address_is_signed_again(annex: AnnexModel, key: str) -> None:
    # GIVEN a function that begins with paciasp, and the site behind it. (The emulator does
    # not sign: that the words are right, the processor of tests/arm says.)
    signature = stubs.SIGNATURES[key]
    sign = {"a": PACIASP, "b": stubs.SIGNATURES["b"].redo}[key]
    put_stub(annex, code=pack(0x9100_0400), signature=signature)  # add x0, x0, #1
    annex.write(SITE - 4, sign + branch(SITE, STUBS))
    annex.write(RESUME, signature.undo + RET)
    before = annex.state(1)
    # WHEN it runs, and its own autiasp undoes what the stub has signed
    annex.run(SITE - 4, before, RETURN)
    # THEN it has returned to its caller
    x = ((before.x[0] + 1) & (1 << 64) - 1, *before.x[1:])
    assert_unnoticed(annex, replace(before, x=x))
    assert kinds(annex) == [KIND_THREAD, KIND_ENTRY, KIND_EXIT]


def test_a_call_of_mcount_is_recorded_and_made(annex: AnnexModel) -> None:
    # GIVEN a function with a prologue of 32 bytes that called mcount
    mcount, frame = PROGRAM + 0x4000, 32
    probe = annex.symbol("uf_entry_mcount")
    annex.write(STUBS, stubs.call_stub(STUBS, probe, id_word(ID, KIND_ENTRY), frame, mcount))
    annex.write(SITE, branch_link(SITE, STUBS))
    for turn in range(1, 3):
        before = annex.state(1)
        record = before.x[29]
        annex.write_word(record + 8, RETURN)
        # WHEN it calls the stub instead
        annex.run(SITE, before, mcount)
        # THEN mcount is called as before, and the saved return address is a thunk
        called = replace(before, x=(*before.x[:30], RESUME))
        assert annex.now() == called
        thunk = annex.word(record + 8)
        assert annex.slot_of(thunk) == (RETURN, id_word(ID, KIND_ENTRY))
        # AND its return is recorded for the stack pointer that it has then
        annex.run(thunk, replace(annex.state(2), sp=record + frame), RETURN)
        assert kinds(annex) == [KIND_THREAD] + [KIND_ENTRY, KIND_EXIT] * turn
        assert {r.key for r in annex.records(1)[1:]} == {key_of(record + frame)}


def test_the_unwinder_is_shown_the_real_return_address(annex: AnnexModel) -> None:
    # H39
    annex.write(STUBS, hook(annex))
    put_at = SLOTS + 5 * 32
    annex.write_word(put_at, RETURN)
    bases = STACK_PAGES + 0x400
    inside = THUNKS + 5 * THUNK_BYTES + THUNK_RETURN
    annex.write_word(bases - 16, inside)
    before = annex.state(1)
    asked = replace(before, x=(inside - 1, bases, *before.x[2:]))
    annex.run(STUBS, asked, RESUME)
    assert annex.now().x[:2] == (RETURN - 1, bases)
    assert annex.now().x[2:] == asked.x[2:]
    assert annex.word(bases - 16) == RETURN
    # Anybody else's address goes on as it is.
    for pc in (RETURN, THUNKS - 2 * THUNK_BYTES, THUNKS + THUNK_SPAN + 1):
        asked = replace(before, x=(pc, bases, *before.x[2:]))
        annex.run(STUBS, asked, RESUME)
        # Flags mean nothing at a call of C.
        assert replace(annex.now(), nzcv=asked.nzcv) == asked


def test_who_else_asks_for_a_thunk_gets_the_end_of_the_stack(annex: AnnexModel) -> None:
    annex.write(STUBS, hook(annex))
    bases = STACK_PAGES + 0x400
    before = annex.state(1)
    asked = replace(before, x=(THUNKS + 100, bases, *before.x[2:]))
    annex.run(STUBS, asked, RETURN)
    assert annex.now().x[0] == annex.symbol("uf_unwind_fde") + annex.fde_offset
    assert [annex.word(bases + k) for k in (0, 8, 16)] == [0, 0, THUNKS - THUNK_BYTES]


def hook(annex: AnnexModel) -> bytes:
    instruction = decode(NOP, SITE)
    assert instruction is not None
    find_fde = annex.symbol("uf_find_fde")
    return stubs.unwinder_stub(STUBS, find_fde, instruction, RESUME, stubs.UNSIGNED)


def test_calls_for_the_agent_are_made_one_after_the_other(annex: AnnexModel) -> None:
    table = CONTROL + PAGE - 1024
    annex.write_word(table, 2)
    for index, number in enumerate((57, 178)):
        annex.write_word(table + 64 + 64 * index, number)
    before = annex.state(1)
    x = (*before.x[:19], table, *before.x[20:])
    sigreturn = annex.symbol("uf_restorer") + 4
    annex.run(annex.symbol("uf_calls"), replace(before, x=x), sigreturn)
    assert annex.system_calls == [57, 178]
    assert annex.cpu.reg_read(arm64.UC_ARM64_REG_X8) == 139
    assert annex.now().sp == before.sp
    assert [annex.word(table + 64 * k + 56) for k in (1, 2)] == [0, TID]
    assert annex.word(table) == 0
