"""The handler of SIGTRAP in a target: emulation, the table, and who else is asked."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.annex_model import (
    RETURN,
    STUBS,
    SYSCALL_GETPID,
    SYSCALL_GETTID,
    TID,
    TRAP_ROOM,
    TRAPS,
    AnnexModel,
    stack_pointer,
    with_register,
)
from tests.engine.machine import GPR_NAMES, Outcome, State
from uftrace_agent.runtime.layout import define

SIGTRAP = 5
SI_KERNEL = 0x80
SI_TKILL = -6
SIG_DFL, SIG_IGN = 0, 1
SITE = STUBS + 0x1000
TARGET = STUBS + 0x2000
HANDLER = STUBS + 0x3000
INFO = 0x1200000
CONTEXT = 0x1300000
SP, PC = CONTEXT + 8 * 20, CONTEXT + 8 * 21
THREADS_STACK = 0x1400000
CONTEXT_BYTES = 968


@pytest.fixture(scope="module")
def shared_annex() -> AnnexModel:
    return AnnexModel()


@pytest.fixture
def annex(shared_annex: AnnexModel) -> AnnexModel:
    shared_annex.write_traps([])
    shared_annex.write_programs_action(SIG_DFL)
    shared_annex.system_calls.clear()
    return shared_annex


def deliver(
    annex: AnnexModel, address: int, code: int = SI_KERNEL, exits: tuple[int, ...] = ()
) -> tuple[State, Outcome]:
    """Run the handler as the kernel would for a trap at `address`."""
    noise = random.Random(address).randbytes(CONTEXT_BYTES)
    annex.machine.write(CONTEXT, noise)
    annex.write_word(SP, THREADS_STACK)
    annex.write_word(PC, address + 1)  # int3 leaves the counter behind itself
    annex.machine.write(INFO, struct.pack("<iii", SIGTRAP, 0, code))
    state = annex.state(7)
    for register, value in (("rdi", SIGTRAP), ("rsi", INFO), ("rdx", CONTEXT)):
        state = with_register(state, register, value)
    return state, annex.machine.run(annex.symbol("uf_trapped"), state, exits, keep=True)


def assert_only_changed(outcome: Outcome, *words: int) -> None:
    """Nothing was written but the handler's own stack and these words."""
    allowed = {word + k for word in words for k in range(8)}
    for address in outcome.memory:
        near = abs(address - stack_pointer(outcome.state)) < 4096
        assert near or address in allowed, hex(address)


# -- sites of ours -----------------------------------------------------------------------


def test_a_trapped_jump_goes_on_at_its_target(annex: AnnexModel) -> None:
    annex.write_traps([(SITE, TARGET, 0)])
    _, outcome = deliver(annex, SITE)
    assert (outcome.pc, outcome.error) == (RETURN, "")
    assert annex.read_word(PC) == TARGET
    assert annex.read_word(SP) == THREADS_STACK
    assert_only_changed(outcome, PC)
    assert annex.system_calls == []


def test_a_trapped_call_leaves_its_return_address(annex: AnnexModel) -> None:
    annex.write_word(THREADS_STACK - 8, 0xDEAD)
    annex.write_traps([(SITE, TARGET, SITE + 5)])
    _, outcome = deliver(annex, SITE)
    assert (outcome.pc, outcome.error) == (RETURN, "")
    assert annex.read_word(PC) == TARGET
    assert annex.read_word(SP) == THREADS_STACK - 8
    assert annex.read_word(THREADS_STACK - 8) == SITE + 5
    assert_only_changed(outcome, PC, SP, THREADS_STACK - 8)


def test_h54_the_handler_never_waits(annex: AnnexModel) -> None:
    """Whatever the writer has written, or not written, the answer is the same: the
    handler does not look at the site."""
    annex.write_traps([(SITE, TARGET, 0)])
    for bytes_at_site in (b"\xcc\x00\x00\x00\x00", b"\x90" * 5, b"\xe9\x01\x02\x03\x04"):
        annex.machine.write(SITE, bytes_at_site)
        _, outcome = deliver(annex, SITE)
        assert annex.read_word(PC) == TARGET
        assert_only_changed(outcome, PC)


# -- the table ------------------------------------------------------------------------------


def looked_up(annex: AnnexModel, address: int) -> int | None:
    annex.write_programs_action(HANDLER)
    _, outcome = deliver(annex, address, exits=(HANDLER,))
    assert outcome.pc in (RETURN, HANDLER) and not outcome.error
    return annex.read_word(PC) if outcome.pc == RETURN else None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9, 64, TRAP_ROOM - 1, TRAP_ROOM])
def test_every_entry_is_found_and_nothing_beside(annex: AnnexModel, count: int) -> None:
    entries = [(SITE + 16 * n, TARGET + n, 0) for n in range(count)]
    annex.write_traps(entries)
    few = sorted({0, 1, 2, count // 2 - 1, count // 2, count // 2 + 1, count - 2, count - 1})
    for n in few:
        if 0 <= n < count:
            assert looked_up(annex, SITE + 16 * n) == TARGET + n
            assert looked_up(annex, SITE + 16 * n + 1) is None
            assert looked_up(annex, SITE + 16 * n - 1) is None
    assert looked_up(annex, SITE + 16 * count) is None
    assert looked_up(annex, SITE - 16) is None


def test_addresses_are_compared_as_unsigned(annex: AnnexModel) -> None:
    high = 0xFFFF_FFFF_FF60_0000
    annex.write_traps([(0x1000, TARGET, 0), (SITE, TARGET + 1, 0), (high, TARGET + 2, 0)])
    assert looked_up(annex, 0x1000) == TARGET
    assert looked_up(annex, SITE) == TARGET + 1
    assert looked_up(annex, high) == TARGET + 2
    assert looked_up(annex, 0) is None


@given(st.sets(st.integers(0, 1 << 47), max_size=40), st.integers(0, 1 << 47))
def test_any_table_answers_as_a_dictionary(
    shared_annex: AnnexModel, addresses: set[int], other: int
) -> None:
    entries = {address: TARGET + n for n, address in enumerate(sorted(addresses))}
    shared_annex.write_traps([(address, entries[address], 0) for address in sorted(entries)])
    for address in [*sorted(entries)[:5], *sorted(entries)[-2:], other]:
        assert looked_up(shared_annex, address) == entries.get(address)


def test_the_place_of_an_entry_is_the_hosts() -> None:
    assert define("TRAP_BYTES") == 24
    assert TRAPS % 8 == 0


# -- H52: a SIGTRAP that is not ours ---------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "code"),
    [(SITE + 1, SI_KERNEL), *((SITE + n, code) for n in (0, 1) for code in (SI_TKILL, 0, 1, 2))],
)
def test_h52_a_foreign_signal_goes_to_the_programs_handler(
    annex: AnnexModel, address: int, code: int
) -> None:
    """With the same three arguments. A signal that was sent is foreign even while the
    program counter happens to be behind one of our sites."""
    annex.write_traps([(SITE, TARGET, 0)])
    annex.write_programs_action(HANDLER)
    state, outcome = deliver(annex, address, code, exits=(HANDLER,))
    assert (outcome.pc, outcome.error) == (HANDLER, "")
    names = ("rdi", "rsi", "rdx")
    values = [outcome.state.gprs[GPR_NAMES.index(name)] for name in names]
    assert values == [SIGTRAP, INFO, CONTEXT]
    assert annex.read_word(PC) == address + 1
    # A function is entered with its stack aligned for calls, as the kernel left it.
    assert (stack_pointer(outcome.state) - stack_pointer(state)) % 16 == 0
    # With the mask that it would have had, where ours had blocked all.
    [set_mask] = annex.system_calls
    rt_sigprocmask, set_it = 14, 2
    assert (set_mask[0], set_mask[1], set_mask[3:]) == (rt_sigprocmask, set_it, (0, 8))


def test_h52_the_programs_handler_returns_through_ours(annex: AnnexModel) -> None:
    annex.write_programs_action(HANDLER)
    annex.machine.write(HANDLER, b"\xc3")
    _, outcome = deliver(annex, SITE)
    assert (outcome.pc, outcome.error) == (RETURN, "")
    assert_only_changed(outcome)


def test_h52_an_ignored_signal_is_ignored(annex: AnnexModel) -> None:
    annex.write_programs_action(SIG_IGN)
    _, outcome = deliver(annex, SITE, SI_TKILL)
    assert (outcome.pc, outcome.error) == (RETURN, "")
    assert_only_changed(outcome)
    assert annex.system_calls == []


def test_h52_by_default_the_signal_ends_the_program(annex: AnnexModel) -> None:
    """The default action is set, and the signal sent again to the same thread."""
    _, outcome = deliver(annex, SITE, SI_TKILL)
    assert (outcome.pc, outcome.error) == (RETURN, "")
    set_action, *questions, kill = annex.system_calls
    rt_sigaction, tgkill = 13, 234
    assert (set_action[0], set_action[1], set_action[3:]) == (rt_sigaction, SIGTRAP, (0, 8))
    assert annex.machine.read(set_action[2], 32) == bytes(32)  # SIG_DFL, no flags
    assert sorted(call[0] for call in questions) == [SYSCALL_GETPID, SYSCALL_GETTID]
    assert kill[:4] == (tgkill, TID, TID, SIGTRAP)
    assert annex.read_word(PC) == SITE + 1


# -- the way back ----------------------------------------------------------------------------


def test_the_restorer_is_what_unwinders_know(annex: AnnexModel) -> None:
    """libgcc and gdb recognise a signal frame by these bytes at its return address."""
    at = annex.symbol("uf_restorer")
    assert annex.machine.read(at, 9) == bytes.fromhex("48c7c00f0000000f05")


def test_many_calls_are_made_in_order_and_counted_down(annex: AnnexModel) -> None:
    """`uf_calls`: each call with its six arguments, its result behind them; then the way
    back by the frame that the stack pointer is at."""
    table = INFO
    calls = [(100 + n, *(10 * n + k for k in range(6))) for n in range(5)]
    left, first, size = (define(f"CALL{name}") for name in ("S_LEFT", "S_ENTRIES", "_BYTES"))
    annex.write_word(table + left, len(calls))
    for n, call in enumerate(calls):
        row = struct.pack("<8q", *call, -1)
        annex.machine.write(table + first + n * size, row)
    state = with_register(annex.state(9), "rbx", table)
    restorer = annex.symbol("uf_restorer")
    outcome = annex.machine.run(annex.symbol("uf_calls"), state, [restorer], keep=True)
    assert (outcome.pc, outcome.error) == (restorer, "")
    assert [call[:5] for call in annex.system_calls] == [call[:5] for call in calls]
    assert annex.read_word(table + left) == 0
    for n in range(len(calls)):
        assert annex.read_word(table + first + n * size + define("CALL_RESULT")) == 0
    assert stack_pointer(outcome.state) == stack_pointer(state)


def test_an_empty_table_of_calls_is_left_at_once(annex: AnnexModel) -> None:
    annex.write_word(INFO + define("CALLS_LEFT"), 0)
    state = with_register(annex.state(9), "rbx", INFO)
    restorer = annex.symbol("uf_restorer")
    outcome = annex.machine.run(annex.symbol("uf_calls"), state, [restorer], keep=True)
    assert outcome.pc == restorer and annex.system_calls == []
