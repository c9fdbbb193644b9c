"""The tracepoints of one session: what is asked for, what holds them, what takes them out.

What changes the process here runs on the session's one worker thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from uftrace_agent.engine.model import Status, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.preparation import Barrier, Preparation
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.report import (
    DEFAULT_STOP_DEADLINE_NS,
    EngineOptions,
    EngineReport,
    SiteOutcome,
)
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.errors import AgentError
from uftrace_agent.session.attaching import Attachment
from uftrace_agent.session.budget import LimitChange
from uftrace_agent.session.leases import Leases
from uftrace_agent.session.pending import PendingOrders
from uftrace_agent.session.results import (
    over_budget,
    patch_outcome,
    traced_functions,
    tracepoint_infos,
)
from uftrace_agent.session.throttling import Throttling
from uftrace_agent.session.types import (
    LeaseInfo,
    PatchOrder,
    PatchOutcome,
    TracedFunction,
    TracepointInfo,
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedOrder:
    """An order that only has to be carried out; patterns that match nothing yet."""

    order: PatchOrder
    preparation: Preparation
    unmatched: Sequence[str]


class TracepointSet:
    """The tracepoints of one session.

    Args:
        attachment: The process, with what another agent may have left.
        throttling: Watches what they cost.
        leases: Those that another agent has granted.
        breathe: Does what is urgent, in the middle of what takes long.
    """

    def __init__(
        self,
        attachment: Attachment,
        throttling: Throttling,
        leases: Leases,
        breathe: Callable[[], None],
    ) -> None:
        self._pid = attachment.memory.pid
        self._program = attachment.program
        self._engine = attachment.engine
        self._manifest = attachment.manifest
        self._throttling = throttling
        self._leases = leases
        self._breathe = breathe
        self._pending = PendingOrders()
        # How functions were asked to be patched: so they are unpatched.
        self._writers: dict[int, Writer] = {}
        inherited = list(self._engine.tracepoints.values())
        self._functions = [traced for t in inherited for traced in traced_functions(t)]
        self._names = {traced.function_id: traced.function for traced in self._functions}
        throttling.announce(inherited)
        throttling.enabled([t for t in inherited if t.enabled])
        self._manifest.write_leases(leases.rows())
        # Their leases may have ended while there was no agent.
        self._must_look = any(t.leases for t in inherited)
        # One enabled tracepoint of each module.
        self._samples: tuple[Tracepoint, ...] = ()
        self._choose_samples()

    # -- patching ----------------------------------------------------------

    def patch(self, order: PatchOrder) -> PatchOutcome:
        """Enable the functions that the patterns mean.

        Raises:
            AgentError: A pattern matches nothing (and is not to wait), or is malformed;
                the lease is none; the process ended.
        """
        started = time.monotonic_ns()
        functions, unmatched = self._find(order)
        report = self._enable(functions, order, self._grant(order))
        return self._done(report, order, unmatched, started)

    def _find(self, order: PatchOrder) -> tuple[Sequence[ProgramFunction], Sequence[str]]:
        self._program.refresh()
        self._catch_up()
        functions, unmatched = self._program.select_known(order.patterns)
        if unmatched and not order.pending:
            raise self._program.nothing_found(unmatched[0])
        return functions, unmatched

    # Before the first tracepoint is: who dies in between leaves none behind.
    def _grant(self, order: PatchOrder, later_ns: int = 0) -> int:
        if order.lease is None or order.dry_run:
            return 0
        duration_ns = order.lease.duration_ns + later_ns
        lease = self._leases.grant(order.lease.name, duration_ns, boottime_ns())
        self._manifest.write_leases(self._leases.rows())
        return lease

    def _done(
        self, report: EngineReport, order: PatchOrder, unmatched: Sequence[str], started: int
    ) -> PatchOutcome:
        self._choose_samples()
        if order.pending and not order.dry_run:
            self._pending.add(order)
            self._pending.see(self._program.modules)
        outcome = patch_outcome(report, started, self._names)
        return replace(outcome, pending=unmatched)

    def _enable(
        self, functions: Sequence[ProgramFunction], order: PatchOrder, lease: int
    ) -> EngineReport:
        allowed, refused, options = self._allowed(functions, order)
        report = EngineReport([])
        if allowed:
            report = self._engine.enable(allowed, replace(options, lease=lease), self._announce)
        self._watch(report, order.writer)
        report.outcomes += refused
        return report

    # What may be patched, what is out since it cost too much, and how to go about it.
    def _allowed(
        self, functions: Sequence[ProgramFunction], order: PatchOrder
    ) -> tuple[list[ProgramFunction], list[SiteOutcome], EngineOptions]:
        if order.limits and not order.dry_run:
            self._throttling.set_own([f.address for f in functions], order.limits)
        refused = over_budget(functions, self._throttling)
        out = {outcome.function.address for outcome in refused}
        options = EngineOptions(
            plan=PlanOptions(order.writer, order.entry_only, order.allow_multi),
            all_or_nothing=order.all_or_nothing,
            dry_run=order.dry_run or (order.all_or_nothing and bool(refused)),
            stop_deadline_ns=order.stop_deadline_ns or DEFAULT_STOP_DEADLINE_NS,
            owner=order.owner,
            breathe=self._breathe,
        )
        return [f for f in functions if f.address not in out], refused, options

    # -- patching in two steps ---------------------------------------------

    def prepare(self, order: PatchOrder) -> tuple[PreparedOrder, PatchOutcome]:
        """Make everything ready for an order, and change no code; and what would become
        of each function.

        Raises:
            AgentError: As for `patch`.
        """
        started = time.monotonic_ns()
        functions, unmatched = self._find(order)
        allowed, refused, options = self._allowed(functions, order)
        preparation = self._engine.prepare(allowed, options)
        preparation.report.outcomes += refused
        shown = replace(preparation.report, outcomes=preparation.outcomes_so_far())
        outcome = replace(patch_outcome(shown, started, self._names), pending=unmatched)
        return PreparedOrder(order, preparation, unmatched), outcome

    def commit(
        self, prepared: PreparedOrder, in_ns: int, barrier: Barrier
    ) -> tuple[PatchOutcome, int]:
        """Carry out what was prepared: what became of each function, and when the code had
        been changed (CLOCK_MONOTONIC; 0: it was not).

        Args:
            prepared: What.
            in_ns: The lease counts from then.
            barrier: Around the change.

        Raises:
            AgentError: The process ended.
        """
        started = time.monotonic_ns()
        order, preparation = prepared.order, prepared.preparation
        if preparation.stands:
            self._program.refresh()
            lease = self._grant(order, in_ns)
            preparation.options = replace(preparation.options, lease=lease)
        report = self._engine.commit(preparation, self._announce, barrier)
        self._watch(report, order.writer)
        outcome = self._done(report, order, prepared.unmatched, started)
        return outcome, report.written_ns

    def take_back(self, addresses: Sequence[int]) -> int:
        """Disable some of the functions again; how many were enabled.

        Raises:
            AgentError: The threads did not stop in time, or the process ended.
        """
        report = EngineReport([])
        known = self._engine.tracepoints
        self._disable([at for at in addresses if at in known], Writer.AUTO, report)
        return sum(outcome.status is Status.DISABLED for outcome in report.outcomes)

    def _watch(self, report: EngineReport, writer: Writer) -> None:
        tracepoints = self._engine.tracepoints
        new = [o.function.address for o in report.outcomes if o.status is Status.ENABLED]
        self._writers |= dict.fromkeys(new, writer)
        # What was taken out again while the last ones were written is not watched.
        self._throttling.enabled([tracepoints[each] for each in new if tracepoints[each].enabled])

    def _announce(self, new: Sequence[Tracepoint]) -> None:
        self._throttling.announce(new)
        traced = [traced for tracepoint in new for traced in traced_functions(tracepoint)]
        self._functions += traced
        self._names.update((one.function_id, one.function) for one in traced)

    def unpatch(self, patterns: Sequence[str], writer: Writer) -> PatchOutcome:
        """Disable the functions that the patterns mean, whoever holds them, and wait no
        longer for those patterns; all, where there are none.

        Raises:
            AgentError: As for `patch`; or threads did not stop in time.
        """
        started = time.monotonic_ns()
        tracepoints = self._engine.tracepoints
        report = EngineReport([])
        waited_for = set(self._pending.patterns())
        if patterns:
            self._program.refresh()
            functions, unmatched = self._program.select_known(patterns)
            for pattern in unmatched:
                if pattern not in waited_for:
                    raise self._program.nothing_found(pattern)
            addresses = [f.address for f in functions if f.address in tracepoints]
            known = set(addresses)
            report.outcomes += [
                SiteOutcome(function, Status.NOT_ENABLED)
                for function in functions
                if function.address not in known
            ]
        else:
            addresses = [a for a, t in tracepoints.items() if t.enabled]
        self._pending.drop(patterns)
        self._disable(addresses, writer, report)
        return patch_outcome(report, started, self._names)

    def _disable(self, addresses: Sequence[int], writer: Writer, report: EngineReport) -> None:
        try:
            self._engine.disable(addresses, EngineOptions(plan=PlanOptions(writer)), report)
        finally:
            self._unwatch(addresses)
            self._choose_samples()

    def _unwatch(self, addresses: Sequence[int]) -> None:
        chosen = [self._engine.tracepoints[address] for address in addresses]
        self._throttling.disabled([each for each in chosen if not each.enabled])

    # -- modules that come and go ------------------------------------------

    def modules_changed(self) -> None:
        """Something was loaded or unloaded.

        Raises:
            BusyTargetError: The threads did not stop in time; call again.
            TargetGoneError: The process ended.
        """
        reloaded = self._engine.find_reloaded()
        self._throttling.disabled(reloaded)
        self._pending.see_anew(tracepoint.function.module for tracepoint in reloaded)
        self._engine.modules_changed()
        self._catch_up()
        self._choose_samples()

    def has_lost_module(self) -> bool:
        """Whether some module is as in its file again, or is no more, though functions of
        it are enabled. From any thread: one function of each module is looked at."""
        return any(self._engine.is_gone(each) for each in self._samples if each.enabled)

    def _choose_samples(self) -> None:
        tracepoints = self._engine.tracepoints.values()
        by_module = {id(t.function.module): t for t in tracepoints if t.enabled}
        self._samples = tuple(by_module.values())

    # Carry out the pending orders in modules that are new.
    def _catch_up(self) -> None:
        self._pending.end_leases(self._leases.bit_of)
        for order in self._pending.orders:
            functions, _ = self._program.select_known(order.patterns)
            new = self._pending.new_among(functions)
            if not new:
                continue
            lease = self._leases.bit_of(order.lease.name) if order.lease else 0
            report = self._enable(new, order, lease)
            statuses = [outcome.status for outcome in report.outcomes]
            _log.info(
                "patched in a module that was loaded",
                pid=self._pid,
                patterns=list(order.patterns),
                enabled=statuses.count(Status.ENABLED),
                refused=statuses.count(Status.REFUSED),
            )
        self._pending.see(self._program.modules)

    # -- what they cost ----------------------------------------------------

    def set_limits(self, change: LimitChange, patterns: Sequence[str]) -> tuple[int, int]:
        """Change what the session may cost, or, with patterns, what these functions may:
        how many functions that is, and how many may be patched again."""
        if not patterns:
            return 0, self._throttling.set_limits(change)
        self._program.refresh()
        addresses = [function.address for function in self._program.select(patterns)]
        return len(addresses), self._throttling.set_own(addresses, change)

    def take_out(self, addresses: Sequence[int]) -> None:
        """Disable what costs too much."""
        by_writer: dict[Writer, list[int]] = {}
        for address in addresses:
            if address in self._engine.tracepoints:
                writer = self._writers.get(address, Writer.AUTO)
                by_writer.setdefault(writer, []).append(address)
        for writer, those in by_writer.items():
            options = EngineOptions(plan=PlanOptions(writer))
            try:
                self._engine.disable(those, options, EngineReport([]))
            except (AgentError, OSError) as error:
                # It goes on costing too much, and will be taken out at the next try.
                _log.warning("not throttled", pid=self._pid, error=str(error))
        for throttle in self._throttling.taken_out(addresses):
            _log.warning(
                "took out a tracepoint that cost too much",
                pid=self._pid,
                function=throttle.function,
                why=throttle.words(),
            )

    # -- leases ------------------------------------------------------------

    def renew(self, name: str, duration_ns: int) -> None:
        """Have a lease end that long from now.

        Raises:
            NoSuchLeaseError: It has ended, or never was.
            InvalidRequestError: The duration is none.
        """
        self._leases.renew(name, duration_ns, boottime_ns())
        self._manifest.write_leases(self._leases.rows())

    def release(self, name: str) -> int:
        """End a lease now; how many tracepoints went with it.

        Raises:
            NoSuchLeaseError: It has ended, or never was.
            BusyTargetError: The threads did not stop in time: it is tried again soon.
        """
        self._leases.release(name)
        return self.lapse()

    def keep(self, name: str) -> int:
        """End a lease, and have what it holds stay for good; how many tracepoints that is.

        Raises:
            NoSuchLeaseError: It has ended, or never was.
        """
        kept = self._engine.keep(self._leases.known_bit(name))
        self._pending.keep_lease(name)
        self._leases.release(name)
        self._forget_leases()
        return kept

    def lapse(self) -> int:
        """Disable what was held by leases that have ended; how many that were.

        Raises:
            BusyTargetError: The threads did not stop in time; call again.
            TargetGoneError: The process ended.
        """
        report = EngineReport([])
        self._must_look = False
        lapsed = self._engine.lapsed(self._leases.alive(boottime_ns()))
        self._disable([t.function.address for t in lapsed], Writer.AUTO, report)
        self._forget_leases()
        statuses = [outcome.status for outcome in report.outcomes]
        return statuses.count(Status.DISABLED)

    def _forget_leases(self) -> None:
        self._leases.forget(boottime_ns())
        self._pending.end_leases(self._leases.bit_of)
        self._manifest.write_leases(self._leases.rows())

    def is_lease_due(self) -> bool:
        """Whether `lapse` has something to do. From any thread."""
        ends_ns = self._leases.next_end_ns()
        return self._must_look or (ends_ns is not None and ends_ns <= boottime_ns())

    def leases(self) -> list[LeaseInfo]:
        """The leases, with how long they last from now. From any thread."""
        now_ns = boottime_ns()
        known = list(self._engine.tracepoints.values())
        return [
            LeaseInfo(
                lease.name,
                max(lease.ends_ns - now_ns, 0),
                sum(t.enabled and bool(t.leases >> place & 1) for t in known),
            )
            for place, lease in self._leases.rows()
            if lease.name
        ]

    # -- what there is -----------------------------------------------------

    def new_functions(self, known: int) -> tuple[int, list[TracedFunction]]:
        """How many functions were ever announced, and those behind the first `known`."""
        new = self._functions[known:]
        return known + len(new), new

    def infos(self, owner: str) -> list[TracepointInfo]:
        """The functions that are enabled or throttled, by rising id; `owner` is whose is
        what an agent before has taken out."""
        known = list(self._engine.tracepoints.values())
        enabled = [t for t in known if t.enabled]
        return tracepoint_infos(enabled, self._throttling, owner, self._names)

    def enabled_addresses(self) -> set[int]:
        """Live addresses of the enabled functions."""
        return {a for a, t in list(self._engine.tracepoints.items()) if t.enabled}

    def pending_patterns(self) -> list[str]:
        """What is waited for in modules that are loaded later."""
        return self._pending.patterns()


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: no change of the wall clock moves it, and it counts in suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
