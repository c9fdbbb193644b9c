"""What the next agent is told of a budget."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from uftrace_agent.engine.manifest import NOTE_BYTES
from uftrace_agent.session.budget import NO_LIMITS, LimitChange, LimitKind, Limits
from uftrace_agent.session.budget_note import CAPACITY, BudgetNote, NotedFunction
from uftrace_agent.session.types import Throttle

OUT = Throttle(7, 2e7, 0.62, LimitKind.CPU, 0.05, 1_700_000_000_000_000_000)


@pytest.mark.parametrize(
    "note",
    [
        BudgetNote(NO_LIMITS),
        BudgetNote(
            Limits(0.2, 5e5),
            (
                NotedFunction(0x401000, throttle=OUT),
                NotedFunction(0x7FFF_0000_1000, LimitChange(cpu=math.inf)),
                NotedFunction(0x402000, LimitChange(0.5, 1e6), OUT),
            ),
        ),
    ],
)
def test_it_comes_back_as_it_was(note: BudgetNote) -> None:
    assert BudgetNote.unpack(note.pack().ljust(NOTE_BYTES, b"\xff")) == note


def test_of_too_many_functions_the_first_are_kept() -> None:
    functions = tuple(NotedFunction(0x1000 * n, throttle=OUT) for n in range(CAPACITY + 9))
    packed = BudgetNote(Limits(), functions).pack()
    assert len(packed) <= NOTE_BYTES
    assert BudgetNote.unpack(packed) == BudgetNote(Limits(), functions[:CAPACITY])


@pytest.mark.parametrize(
    "forged",
    [
        BudgetNote(Limits(math.nan, 1.0)),
        BudgetNote(Limits(1.0, -1.0)),
        BudgetNote(Limits(), (NotedFunction(1, LimitChange(cpu=-math.inf)),)),
        BudgetNote(Limits(), (NotedFunction(1, throttle=replace(OUT, calls_per_second=math.inf)),)),
        BudgetNote(Limits(), (NotedFunction(1, throttle=replace(OUT, allowed=0.0)),)),
    ],
)
def test_what_no_agent_has_written_is_none(forged: BudgetNote) -> None:
    assert BudgetNote.unpack(forged.pack()) is None


def test_what_was_torn_or_never_written_is_no_note() -> None:
    packed = BudgetNote(Limits(), (NotedFunction(0x401000, throttle=OUT),)).pack()
    assert BudgetNote.unpack(bytes(NOTE_BYTES)) is None
    assert BudgetNote.unpack(b"") is None
    for place in range(len(packed)):
        torn = bytearray(packed)
        torn[place] ^= 0x41
        assert BudgetNote.unpack(bytes(torn)) is None, place
