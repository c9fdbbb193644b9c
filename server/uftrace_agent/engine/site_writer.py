"""Carrying out many changes at once, each site by the writer that suits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from uftrace_agent.engine.model import Form, Writer
from uftrace_agent.engine.site import Patch, Role, SitePlan
from uftrace_agent.engine.trap_writer import CAPACITY, TrapSite, TrapWriter
from uftrace_agent.engine.writer import StopOrder, write_running, write_stopped
from uftrace_agent.errors import BusyTargetError
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.runtime.host_library import SiteStatus, library

DONE: Final = (SiteStatus.WRITTEN, SiteStatus.ALREADY)
# How often to try for a moment at which no thread is in the padding of a hop.
_THOROUGH: Final = 8


@dataclass(frozen=True, slots=True)
class SiteChange:
    """One site that is to be patched, or (`restores`) set back.

    Attributes:
        plan: The site.
        writer: BYTE, TRAP or STOP.
        restores: The way back.
    """

    plan: SitePlan
    writer: Writer
    restores: bool = False

    @property
    def patch(self) -> Patch:
        """What changes."""
        return self.plan.head.reversed() if self.restores else self.plan.head


@dataclass(slots=True)
class Changed:
    """What became of changes.

    Attributes:
        statuses: In the order of the changes; None where the threads did not
            stop in time.
        writers: Which writer was used for each.
        parked: Plans whose tails are not set back yet.
        notes: Why not the writer that was wanted.
    """

    statuses: list[SiteStatus | None]
    writers: list[Writer]
    parked: list[SitePlan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class SiteWriter:
    """Changes sites of one process; knows nothing of functions and journals.

    Args:
        memory: The process's memory.
        traps: Its trap writer.
    """

    def __init__(self, memory: ProcessMemory, traps: TrapWriter) -> None:
        self._memory = memory
        self._traps = traps

    def change(
        self,
        changes: Sequence[SiteChange],
        deadline_ns: int,
        pauses: Pauses,
        *,
        may_stop: bool = True,
    ) -> Changed:
        """Change the sites.

        Args:
            changes: Which.
            deadline_ns: For one stop.
            pauses: Told of all stops.
            may_stop: STOP may take the place of TRAP where that is not possible.

        Raises:
            TargetGoneError: The process ended.
        """
        done = Changed([None] * len(changes), [change.writer for change in changes])
        if not any(change.restores for change in changes):
            write_running(self._memory, [c.plan.tail for c in changes if c.plan.tail is not None])
        self._running(changes, done)
        self._trapped(changes, done, pauses, may_stop)
        self._stopped(changes, done, deadline_ns, pauses)
        self._set_tails_back(changes, done)
        return done

    # An exit whose entry was seen must be seen: exits first, and last on the way back.
    def _running(self, changes: Sequence[SiteChange], done: Changed) -> None:
        for entries_now in (False, True):
            rows = [
                index
                for index, change in enumerate(changes)
                if change.writer is Writer.BYTE
                and (change.plan.role is Role.ENTRY) == (entries_now ^ change.restores)
            ]
            if rows:
                _store(done, rows, write_running(self._memory, [changes[i].patch for i in rows]))

    def _trapped(
        self,
        changes: Sequence[SiteChange],
        done: Changed,
        pauses: Pauses,
        may_stop: bool,
    ) -> None:
        rows = [i for i, change in enumerate(changes) if change.writer is Writer.TRAP]
        for first in range(0, len(rows), CAPACITY):
            batch = rows[first : first + CAPACITY]
            sites = [_trap_site(changes[i]) for i in batch]
            try:
                _store(done, batch, self._traps.write(sites, pauses))
            except BusyTargetError as error:
                done.notes.append(error.message)
                if may_stop:
                    for i in rows[first:]:
                        done.writers[i] = Writer.STOP
                return

    def _stopped(
        self, changes: Sequence[SiteChange], done: Changed, deadline_ns: int, pauses: Pauses
    ) -> None:
        rows = [i for i, writer in enumerate(done.writers) if writer is Writer.STOP]
        if not rows:
            return
        for order in _orders([changes[i] for i in rows], deadline_ns):
            try:
                statuses, _ = write_stopped(self._memory, order, pauses)
            except BusyTargetError as error:
                done.notes.append(error.message)
                continue
            _store(done, rows, statuses[: len(rows)])
            return

    # What only a jump leads to, once the jump is gone: bytes of a sled are its operand,
    # so it is enough that every processor has seen it go. In the padding of a hop a
    # thread may still be waiting for its turn: that is left for a stop (see `leave`).
    def _set_tails_back(self, changes: Sequence[SiteChange], done: Changed) -> None:
        plans = [
            change.plan
            for change, status in zip(changes, done.statuses, strict=True)
            if change.restores and change.plan.tail is not None and status in DONE
        ]
        if not plans:
            return
        sleds = [plan for plan in plans if plan.form is Form.SLED]
        if sleds and not library().uh_can_visit_processors():
            write_running(self._memory, [_tail_back(plan) for plan in sleds])
        done.parked = [plan for plan in plans if not self._tail_is_back(plan)]

    def _tail_is_back(self, plan: SitePlan) -> bool:
        tail = _tail_back(plan)
        return self._memory.read_some(tail.address, len(tail.wanted)) == tail.wanted


def _trap_site(change: SiteChange) -> TrapSite:
    plan = change.plan
    return TrapSite(change.patch, plan.stub, plan.head.end if plan.is_call else 0)


def _tail_back(plan: SitePlan) -> Patch:
    assert plan.tail is not None, "asked only of plans that have one"
    return plan.tail.reversed()


# With the tails; failing that (somebody stays there) without.
def _orders(changes: Sequence[SiteChange], deadline_ns: int) -> list[StopOrder]:
    heads = [change.patch for change in changes]
    inside = [
        (change.plan.head.address + 1, change.plan.head.end)
        for change in changes
        if change.plan.form is Form.MULTI
    ]
    moves = [
        (there, here) if change.restores else (here, there)
        for change in changes
        for here, there in (change.plan.moves if change.restores else change.plan.moves[1:])
    ]
    plain = StopOrder(heads, deadline_ns, inside, watched=inside, moves=moves)
    hops = [
        change.plan
        for change in changes
        if change.restores and change.plan.form is Form.HOP and change.plan.tail is not None
    ]
    if not hops:
        return [plain]
    tails = [_tail_back(plan) for plan in hops]
    spans = [(tail.address, tail.end) for tail in tails]
    ranges = sorted([*inside, *spans])
    thorough = StopOrder(
        [*heads, *tails], deadline_ns, ranges, watched=ranges, moves=moves, attempts=_THOROUGH
    )
    return [thorough, plain]


def _store(done: Changed, rows: Sequence[int], statuses: Sequence[SiteStatus]) -> None:
    for row, status in zip(rows, statuses, strict=True):
        done.statuses[row] = status
