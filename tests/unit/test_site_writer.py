"""Carrying out changes in the right order, each by its writer; on this process's memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from uftrace_agent.engine import site_writer
from uftrace_agent.engine.model import Form, Writer
from uftrace_agent.engine.site import Patch, ProbeKind, Role, SitePlan
from uftrace_agent.engine.site_writer import Changed, SiteChange, SiteWriter
from uftrace_agent.engine.trap_writer import CAPACITY, TrapSite, TrapWriter
from uftrace_agent.engine.writer import StopOrder, write_running
from uftrace_agent.errors import BusyTargetError
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.runtime.host_library import SiteStatus

DEADLINE = 50_000_000


@dataclass
class Traps:
    """In the place of the trap writer: writes at once, or cannot."""

    memory: ProcessMemory
    busy: bool = False
    batches: list[list[TrapSite]] = field(default_factory=list)

    def write(self, sites: Sequence[TrapSite], pauses: Pauses) -> list[SiteStatus]:
        self.batches.append(list(sites))
        if self.busy:
            raise BusyTargetError("the program changed its handler of SIGTRAP just now")
        return write_running(self.memory, [site.patch for site in sites])


@dataclass
class Scene:
    """Memory to change, and what was written to it in which order."""

    memory: ProcessMemory
    base: int
    traps: Traps
    written: list[list[Patch]] = field(default_factory=list)
    orders: list[StopOrder] = field(default_factory=list)
    stops_fail: int = 0

    def writer(self) -> SiteWriter:
        return SiteWriter(self.memory, cast(TrapWriter, self.traps))

    def change(self, *changes: SiteChange, may_stop: bool = True) -> Changed:
        return self.writer().change(changes, DEADLINE, Pauses(), may_stop=may_stop)

    def read(self, offset: int, size: int) -> bytes:
        return self.memory.read(self.base + offset, size)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    area = mmap.mmap(-1, 1 << 16)
    area.write(bytes(range(256)) * 256)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    with ProcessMemory(os.getpid()) as memory:
        made = Scene(memory, base, Traps(memory))

        def running(memory: ProcessMemory, patches: Sequence[Patch]) -> list[SiteStatus]:
            made.written.append(list(patches))
            return write_running(memory, patches)

        def stopped(
            memory: ProcessMemory, order: StopOrder, pauses: Pauses
        ) -> tuple[list[SiteStatus], int]:
            made.orders.append(order)
            if made.stops_fail:
                made.stops_fail -= 1
                raise BusyTargetError("some thread does not stop")
            return write_running(memory, order.patches), 0

        monkeypatch.setattr(site_writer, "write_running", running)
        monkeypatch.setattr(site_writer, "write_stopped", stopped)
        yield made


def site(
    scene: Scene,
    offset: int,
    form: Form = Form.NEAR,
    *,
    size: int = 5,
    tail: tuple[int, int] | None = None,
    role: Role = Role.ENTRY,
    is_call: bool = False,
    moves: tuple[tuple[int, int], ...] = (),
) -> SitePlan:
    def patch(at: int, length: int) -> Patch:
        old = scene.read(at, length)
        return Patch(scene.base + at, old, bytes(byte ^ 0xFF for byte in old))

    return SitePlan(
        function=scene.base,
        form=form,
        writer=Writer.STOP,
        head=patch(offset, size),
        tail=patch(*tail) if tail else None,
        stub=scene.base + 0x8000,
        writes=(),
        probe=ProbeKind.ENTRY,
        has_exit=True,
        role=role,
        is_call=is_call,
        moves=moves,
    )


def sled(scene: Scene, offset: int, role: Role = Role.ENTRY) -> SitePlan:
    return site(scene, offset, Form.SLED, size=1, tail=(offset + 1, 4), role=role)


def test_a_change_and_its_way_back(scene: Scene) -> None:
    plan = site(scene, 16)
    before = scene.read(0, 64)
    assert scene.change(SiteChange(plan, Writer.STOP)).statuses == [SiteStatus.WRITTEN]
    assert scene.read(16, 5) == plan.head.wanted
    done = scene.change(SiteChange(plan, Writer.STOP, restores=True))
    assert done.statuses == [SiteStatus.WRITTEN]
    assert scene.read(0, 64) == before
    again = scene.change(SiteChange(plan, Writer.STOP, restores=True))
    assert again.statuses == [SiteStatus.ALREADY]


@pytest.mark.parametrize("restores", [False, True])
def test_an_exit_whose_entry_is_seen_is_seen(scene: Scene, restores: bool) -> None:
    """Exits first, and last on the way back, whatever the order of the changes."""
    entry, leave = sled(scene, 16), sled(scene, 32, Role.EXIT)
    event = sled(scene, 48, Role.EVENT)
    changes = [SiteChange(plan, Writer.BYTE) for plan in (entry, leave, event)]
    scene.change(*changes)
    if restores:
        scene.written.clear()
        scene.change(*(SiteChange(c.plan, Writer.BYTE, restores=True) for c in changes))
    heads = [[p.address - scene.base for p in batch] for batch in scene.written]
    heads = [batch for batch in heads if not set(batch) & {17, 33, 49}]
    assert heads == ([[16], [32, 48]] if restores else [[32, 48], [16]])


def test_tails_come_before_heads_and_go_after_them(scene: Scene) -> None:
    plan = sled(scene, 16)
    scene.change(SiteChange(plan, Writer.BYTE))
    assert [batch[0].address - scene.base for batch in scene.written] == [17, 16]
    scene.written.clear()
    done = scene.change(SiteChange(plan, Writer.BYTE, restores=True))
    assert [batch[0].address - scene.base for batch in scene.written] == [16, 17]
    assert done.parked == []


def test_each_site_has_its_writer(scene: Scene) -> None:
    plans = [site(scene, 16 * n) for n in range(3)]
    writers = [Writer.STOP, Writer.BYTE, Writer.TRAP]
    done = scene.change(*(SiteChange(p, w) for p, w in zip(plans, writers, strict=True)))
    assert done.statuses == [SiteStatus.WRITTEN] * 3
    assert done.writers == writers
    assert [t.patch for t in scene.traps.batches[0]] == [plans[2].head]
    assert [o.patches for o in scene.orders] == [[plans[0].head]]


def test_the_results_come_in_the_order_of_the_changes(scene: Scene) -> None:
    plans = [site(scene, 16 * n) for n in (3, 1, 2)]
    scene.memory.write(scene.base + 16, b"other")
    done = scene.change(*(SiteChange(plan, Writer.STOP) for plan in plans))
    assert done.statuses == [SiteStatus.WRITTEN, SiteStatus.CONFLICT, SiteStatus.WRITTEN]
    assert scene.read(16, 5) == b"other"


# -- traps ------------------------------------------------------------------------------


def test_a_trap_stands_for_a_jump_or_for_a_call(scene: Scene) -> None:
    jump, call = site(scene, 16), site(scene, 32, Form.CALL, size=6, is_call=True)
    scene.change(SiteChange(jump, Writer.TRAP), SiteChange(call, Writer.TRAP))
    (batch,) = scene.traps.batches
    assert [(t.target, t.return_to) for t in batch] == [
        (jump.stub, 0),
        (call.stub, scene.base + 38),
    ]


@pytest.mark.parametrize("restores", [False, True])
def test_h54_a_trap_leads_to_the_stub_both_ways(scene: Scene, restores: bool) -> None:
    plan = site(scene, 16)
    scene.change(SiteChange(plan, Writer.TRAP))
    scene.change(SiteChange(plan, Writer.TRAP, restores=restores))
    assert {t.target for batch in scene.traps.batches for t in batch} == {plan.stub}


def test_without_traps_the_threads_are_stopped_and_it_is_noted(scene: Scene) -> None:
    scene.traps.busy = True
    plan = site(scene, 16)
    done = scene.change(SiteChange(plan, Writer.TRAP))
    assert done.statuses == [SiteStatus.WRITTEN]
    assert done.writers == [Writer.STOP]
    assert done.notes == ["the program changed its handler of SIGTRAP just now"]


def test_traps_alone_that_cannot_be_leave_all_as_it_is(scene: Scene) -> None:
    scene.traps.busy = True
    plan = site(scene, 16)
    done = scene.change(SiteChange(plan, Writer.TRAP), may_stop=False)
    assert done.statuses == [None] and scene.orders == []
    assert scene.read(16, 5) == plan.head.expected
    assert "SIGTRAP" in done.notes[0]


def test_traps_come_in_batches_that_fit_the_table(scene: Scene) -> None:
    plan = site(scene, 16)
    done = scene.change(*[SiteChange(plan, Writer.TRAP)] * (CAPACITY + 5))
    assert [len(batch) for batch in scene.traps.batches] == [CAPACITY, 5]
    assert set(done.statuses) == {SiteStatus.WRITTEN, SiteStatus.ALREADY}


# -- stops ------------------------------------------------------------------------------


def test_a_stop_that_fails_leaves_no_status(scene: Scene) -> None:
    scene.stops_fail = 1
    done = scene.change(SiteChange(site(scene, 16), Writer.STOP))
    assert done.statuses == [None]
    assert done.notes == ["some thread does not stop"]


def test_h1_a_hops_padding_is_set_back_where_nobody_is_in_it(scene: Scene) -> None:
    plan = site(scene, 16, Form.HOP, size=2, tail=(64, 5))
    scene.change(SiteChange(plan, Writer.STOP))
    done = scene.change(SiteChange(plan, Writer.STOP, restores=True))
    order = scene.orders[-1]
    span = (scene.base + 64, scene.base + 69)
    assert list(order.forbidden) == list(order.watched) == [span]
    assert done.parked == []
    assert scene.read(64, 5) == plan.tail.expected if plan.tail else False


def test_h1_a_hops_padding_stays_while_somebody_is_in_it(scene: Scene) -> None:
    plan = site(scene, 16, Form.HOP, size=2, tail=(64, 5))
    scene.change(SiteChange(plan, Writer.STOP))
    scene.stops_fail = 1
    done = scene.change(SiteChange(plan, Writer.STOP, restores=True))
    assert done.statuses == [SiteStatus.WRITTEN]
    assert done.parked == [plan]
    assert plan.tail is not None and scene.read(64, 5) == plan.tail.wanted
    assert scene.read(16, 2) == plan.head.expected


def test_h1_those_among_moved_instructions_move_along_both_ways(scene: Scene) -> None:
    base = scene.base
    moves = ((base + 16, base + 0x8020), (base + 17, base + 0x8021), (base + 19, base + 0x8023))
    plan = site(scene, 16, Form.MULTI, moves=moves)
    scene.change(SiteChange(plan, Writer.STOP))
    forth = scene.orders[-1]
    # At the first one nobody has to move: it is the jump now.
    assert list(forth.moves) == [(here, there) for here, there in moves[1:]]
    # Between two instructions nobody can be: such a word on a stack is no place.
    assert list(forth.forbidden) == list(forth.watched) == [(base + 17, base + 21)]
    scene.change(SiteChange(plan, Writer.STOP, restores=True))
    back = scene.orders[-1]
    assert list(back.moves) == [(there, here) for here, there in moves]
