"""The patch engine of one process: site -> plan -> journal -> write -> verify -> restore."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from uftrace_agent.engine import outcomes
from uftrace_agent.engine.adoption import Inheritance
from uftrace_agent.engine.annex import Annex
from uftrace_agent.engine.architecture import Architecture
from uftrace_agent.engine.exit_rules import ProcessTraits
from uftrace_agent.engine.journal_entry import Phase
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.leaving import set_back_at_rest
from uftrace_agent.engine.manifest import Manifest
from uftrace_agent.engine.model import Status, Writer
from uftrace_agent.engine.native import scratch_layout
from uftrace_agent.engine.neighbours import other_tracer
from uftrace_agent.engine.planner import Planner
from uftrace_agent.engine.preparation import Barrier, Preparation, at_once
from uftrace_agent.engine.program import Program, ProgramFunction
from uftrace_agent.engine.report import (
    DEFAULT_STOP_DEADLINE_NS,
    EngineOptions,
    EngineReport,
    SiteOutcome,
)
from uftrace_agent.engine.reservations import give_back
from uftrace_agent.engine.reuse import serves_again
from uftrace_agent.engine.site import CodeWrite, Patch
from uftrace_agent.engine.site_writer import DONE, Changed, SiteChange, SiteWriter
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.engine.tracepoint_table import TracepointTable
from uftrace_agent.engine.trap_writer import TrapWriter
from uftrace_agent.engine.unwinder import UnwinderHooks, find_unwinders
from uftrace_agent.engine.writer_choice import WriterChoice, most_intrusive
from uftrace_agent.errors import AgentError, BusyTargetError
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.runtime.host_library import SiteStatus
from uftrace_agent.runtime.layout import ID_MAX


class PatchEngine:
    """All tracepoints of one process. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        memory: ProcessMemory,
        program: Program,
        annex: Annex,
        manifest: Manifest,
        architecture: Architecture,
        has_shadow_stack: bool,
    ) -> None:
        self._memory = memory
        self._program = program
        self._annex = annex
        self._architecture = architecture
        self._has_shadow_stack = has_shadow_stack
        self._traps = TrapWriter(memory, annex)
        self._writer = SiteWriter(memory, self._traps)
        self._hooks = UnwinderHooks(memory, annex, manifest, architecture, self._writer)
        self._table = TracepointTable(memory, manifest, annex.layout)

    @property
    def tracepoints(self) -> Mapping[int, Tracepoint]:
        """By the live address of their function."""
        return self._table.by_address

    def skip_ids(self, first: int) -> None:
        """Give no function an id below `first`."""
        self._table.skip_ids(first)

    def adopt(self, inheritance: Inheritance) -> None:
        """Go on with what another agent patched; before anything else is asked for."""
        table = self._table
        out = [(row, plan) for row, plan in inheritance.hooks_out if table.is_as_it_was(plan)]
        self._hooks.adopt(inheritance.hooks, out)
        table.adopt(inheritance, [plan for _, plan in out])

    # -- enabling ----------------------------------------------------------

    def enable(
        self,
        functions: Sequence[ProgramFunction],
        options: EngineOptions,
        announce: Callable[[Sequence[Tracepoint]], None] = lambda new: None,
    ) -> EngineReport:
        """Enable tracepoints.

        Args:
            functions: Which.
            options: How.
            announce: Told of new tracepoints before their first record is.

        Raises:
            TargetGoneError: The process ended.
            BusyTargetError: Memory could not be mapped in it in time.
        """
        pauses = Pauses()
        if not options.dry_run:
            # Which functions' exits can be traced depends on it.
            self._install_hooks(options, pauses)
        preparation = self.prepare(functions, options)
        preparation.report.pauses.merge(pauses)
        return self._carry_out(preparation, announce, at_once)

    # Before the first return address is replaced, every unwinder in the process must be
    # able to see through the thunks (H39).
    def _install_hooks(self, options: EngineOptions, pauses: Pauses) -> None:
        if not (options.plan.entry_only or other_tracer(self._program.modules)):
            choice = self._choice(Writer.AUTO, pauses)
            self._hooks.install(self._program.modules, choice, pauses)

    def prepare(self, functions: Sequence[ProgramFunction], options: EngineOptions) -> Preparation:
        """Plan, and make ready what no thread can see: no byte of the program changes.

        Args:
            functions: Which are to be enabled.
            options: How.

        Raises:
            TargetGoneError: The process ended.
            BusyTargetError: Memory could not be mapped in it in time.
        """
        started = time.monotonic_ns()
        report = EngineReport([])
        if not (options.dry_run or options.plan.entry_only):
            self._hooks.prepare(self._program.modules)
        choice = self._choice(options.plan.writer, report.pauses)
        parked, planned, layout = self._plan(functions, options, choice, report)
        report.plan_ns = time.monotonic_ns() - started
        if options.dry_run or (options.all_or_nothing and report.has_refusal()):
            self._abandon(planned, layout)
            report.outcomes += outcomes.not_carried_out((*parked, *planned), choice)
            report.writer_detail = choice.detail
            return Preparation(report, options, choice, stands=False)
        try:
            new = self._prepare(planned, layout, report)
        except AgentError:
            self._abandon(planned, layout)
            raise
        report.pauses.merge(self._annex.caller.take_pauses())
        if options.all_or_nothing and report.has_refusal():
            report.outcomes += outcomes.not_enabled((*parked, *new))
            return Preparation(report, options, choice, stands=False)
        return Preparation(report, options, choice, parked, new)

    def commit(
        self,
        preparation: Preparation,
        announce: Callable[[Sequence[Tracepoint]], None] = lambda new: None,
        barrier: Barrier = at_once,
    ) -> EngineReport:
        """Change the code of what was prepared.

        Args:
            preparation: What; anything may have become of the process since.
            announce: Told of new tracepoints before their first record is.
            barrier: Around the change.

        Raises:
            TargetGoneError: The process ended.
            BusyTargetError: The threads did not stop in time; nothing was changed.
        """
        report = preparation.report
        if preparation.stands:
            self._drop_stale(preparation)
            if preparation.options.all_or_nothing and report.has_refusal():
                report.outcomes += outcomes.not_enabled(preparation.tracepoints)
                preparation.stands = False
        return self._carry_out(preparation, announce, barrier)

    def _carry_out(
        self,
        preparation: Preparation,
        announce: Callable[[Sequence[Tracepoint]], None],
        barrier: Barrier,
    ) -> EngineReport:
        report, options = preparation.report, preparation.options
        if not preparation.stands:
            return report
        preparation.stands = False
        announce(preparation.new)
        before = (o.function for o in report.outcomes if o.status is Status.ALREADY_ENABLED)
        self._table.hold_too(before, options.lease)
        self._write(preparation, barrier)
        report.pauses.merge(self._annex.caller.take_pauses())
        return report

    # Modules may have gone and come since, and with them unwinders.
    def _drop_stale(self, preparation: Preparation) -> None:
        report = preparation.report
        self._table.forget_unloaded(self._program.modules)
        self._install_hooks(preparation.options, report.pauses)
        exits_refused = self.process_traits().unwinder_refusal
        for known in (preparation.parked, preparation.new):
            for tracepoint in known[:]:
                if self.tracepoints.get(tracepoint.function.address) is not tracepoint:
                    known.remove(tracepoint)
                    report.outcomes.append(outcomes.module_has_gone(tracepoint))
                elif exits_refused and tracepoint.plan.has_exit:
                    known.remove(tracepoint)
                    report.outcomes.append(outcomes.unwinder_has_come(tracepoint))

    def _choice(self, asked: Writer, pauses: Pauses) -> WriterChoice:
        return WriterChoice(
            self._memory.pid,
            self._program.modules,
            asked,
            lambda: self._traps.handlers_refusal(pauses),
            self._architecture.has_trap_writer,
        )

    def _plan(
        self,
        functions: Sequence[ProgramFunction],
        options: EngineOptions,
        choice: WriterChoice,
        report: EngineReport,
    ) -> tuple[list[Tracepoint], list[Tracepoint], CodeLayout]:
        parked: list[Tracepoint] = []
        unknown: list[ProgramFunction] = []
        self._table.forget_unloaded(self._program.modules)
        traits = self.process_traits()
        for function in functions:
            known = self.tracepoints.get(function.address)
            if refused := choice.refusal(function):
                report.outcomes.append(refused)
            elif known is None:
                unknown.append(function)
            elif known.enabled and self._is_in_place(known.plan.head):
                report.outcomes.append(outcomes.already_enabled(known))
            elif serves_again(known, options.plan, traits):
                parked.append(known)
            elif known.is_idle and not options.dry_run:
                self._table.forget(known)
                unknown.append(function)
            else:
                report.outcomes.append(outcomes.other_way_before(known))
        if options.dry_run:
            layout = scratch_layout(self._memory.pid, self._architecture)
        else:
            layout = self._annex.layout
            layout.refresh(read_mappings(self._memory.pid))
        planner = Planner(
            self._architecture,
            layout,
            traits,
            frozenset(self._hooks.addresses),
            self._memory,
            other_tracer(self._program.modules),
        )
        # A function with events has up to two ids more.
        room = max((ID_MAX - self._table.next_id) // 3, 0)
        planned: list[Tracepoint] = []
        for one in planner.plan(unknown[:room], self._table.next_id, options.plan, options.breathe):
            if one.plan is None:
                report.outcomes.append(outcomes.refused(one))
                continue
            planned.append(
                Tracepoint(one.function_id, one.function, one.plan, options.plan.entry_only)
            )
        report.outcomes += map(outcomes.no_id_left, unknown[room:])
        if not options.dry_run:
            self._table.next_id = planner.next_id
        return parked, planned, layout

    # A module that was unloaded and loaded again at the same place is the file's.
    def _is_in_place(self, head: Patch) -> bool:
        return self._memory.read_some(head.address, len(head.wanted)) == head.wanted

    def is_gone(self, tracepoint: Tracepoint) -> bool:
        """Whether the function's site is as in the file, or is no more. From any thread."""
        head = tracepoint.plan.head
        live = self._memory.read_some(head.address, len(head.expected))
        return live in (head.expected, b"")

    def find_reloaded(self) -> list[Tracepoint]:
        """What was enabled in modules that were loaded again since: it is disabled."""
        return self._table.find_reloaded()

    def process_traits(self) -> ProcessTraits:
        """What of the process forbids hijacked returns."""
        found = find_unwinders(self._program.modules)
        return ProcessTraits(
            has_shadow_stack=self._has_shadow_stack,
            unwinder_refusal=found.unhookable or self._hooks.some_failed,
        )

    # Give back what plans that are not carried out had reserved.
    def _abandon(self, planned: Iterable[Tracepoint], layout: CodeLayout) -> None:
        for tracepoint in planned:
            give_back(layout, tracepoint.plan)

    # Everything that no thread can see yet: memory, stubs, landings, journal.
    def _prepare(
        self, planned: list[Tracepoint], layout: CodeLayout, report: EngineReport
    ) -> list[Tracepoint]:
        failed = [(m.start, m.start + m.size) for m in self._annex.map_pending()]
        ready: list[Tracepoint] = []
        for tracepoint in planned:
            if _any_inside(tracepoint.plan.all_writes(), failed):
                self._abandon([tracepoint], layout)
                report.outcomes.append(outcomes.no_trampoline_space(tracepoint))
                continue
            ready.append(tracepoint)
        self._annex.write_code(write for t in ready for write in t.plan.all_writes())
        self._table.add(ready)
        return ready

    def _write(self, preparation: Preparation, barrier: Barrier) -> None:
        report, options, choice = preparation.report, preparation.options, preparation.choice
        tracepoints = preparation.tracepoints
        if not tracepoints:
            return
        self._table.hold(tracepoints, options.lease)
        self._table.note(tracepoints, Phase.PATCHING)
        self._annex.enable(True)
        with barrier() as is_wanted:
            if is_wanted:
                changed, spans = self._change(tracepoints, options, choice, report, restores=False)
                report.written_ns = time.monotonic_ns()
        if not is_wanted:
            self._table.note(tracepoints, Phase.FREE)
            report.outcomes += outcomes.not_carried_out(tracepoints, choice)
            return
        now = time.time_ns()
        done: list[Tracepoint] = []
        not_done: list[Tracepoint] = []
        for tracepoint, span in zip(tracepoints, spans, strict=True):
            whole = all(status in DONE for status in changed.statuses[span])
            (done if whole else not_done).append(tracepoint)
            self._table.unpark(tracepoint)
            if whole:
                tracepoint.enabled_unix_ns = now
                self._keep(tracepoint, most_intrusive(changed.writers[span]), options, report)
            else:
                self._take_back(tracepoint, changed.statuses[span], report)
        self._table.note(done, Phase.PATCHED)
        self._table.note(not_done, Phase.FREE)
        report.writer_detail = choice.detail or "; ".join(changed.notes)
        if options.all_or_nothing and not_done:
            self.disable([t.function.address for t in done], options, report)
            report.outcomes = [
                SiteOutcome(o.function, Status.NOT_ENABLED, o.function_id, o.plan)
                if o.status is Status.DISABLED
                else o
                for o in report.outcomes
                if o.status is not Status.ENABLED
            ]

    # Change all sites of tracepoints; the slice of each one's results comes with them.
    def _change(
        self,
        tracepoints: Sequence[Tracepoint],
        options: EngineOptions,
        choice: WriterChoice,
        report: EngineReport,
        *,
        restores: bool,
    ) -> tuple[Changed, list[slice]]:
        changes: list[SiteChange] = []
        spans: list[slice] = []
        for tracepoint in tracepoints:
            first = len(changes)
            for site in tracepoint.plan.sites():
                writer = choice.of_site(tracepoint.function, site)
                changes.append(SiteChange(site, writer, restores))
            spans.append(slice(first, len(changes)))
        changed = self._writer.change(
            changes,
            options.stop_deadline_ns,
            report.pauses,
            may_stop=options.plan.writer is not Writer.TRAP,
        )
        return changed, spans

    def _keep(
        self, tracepoint: Tracepoint, writer: Writer, options: EngineOptions, report: EngineReport
    ) -> None:
        tracepoint.enabled = True
        tracepoint.conflicting = tracepoint.is_idle = False
        tracepoint.owner = options.owner
        report.outcomes.append(outcomes.enabled(tracepoint, writer))

    # A function some of whose sites could not be changed: the others go back.
    def _take_back(
        self,
        tracepoint: Tracepoint,
        statuses: Sequence[SiteStatus | None],
        report: EngineReport,
    ) -> None:
        changed = [
            SiteChange(site, Writer.STOP, restores=True)
            for site, status in zip(tracepoint.plan.sites(), statuses, strict=True)
            if status in DONE
        ]
        if changed:
            self._writer.change(changed, DEFAULT_STOP_DEADLINE_NS, report.pauses)
        foreign = None
        if None not in statuses:
            head = tracepoint.plan.head
            live = self._memory.read_some(head.address, len(head.expected))
            foreign = self._architecture.name_foreign_patch(head.expected, live)
        report.outcomes.append(outcomes.not_written(tracepoint, foreign))

    def modules_changed(self) -> None:
        """Something was loaded or unloaded: an unwinder that came now must see through
        the thunks before it meets one (H39).

        Raises:
            BusyTargetError: The threads did not stop in time; call again.
            TargetGoneError: The process ended.
        """
        self._program.refresh()
        self._table.forget_unloaded(self._program.modules)
        if any(t.enabled and t.plan.has_exit for t in self.tracepoints.values()):
            choice = self._choice(Writer.AUTO, Pauses())
            self._hooks.install(self._program.modules, choice, Pauses())

    # -- disabling ---------------------------------------------------------

    def disable(
        self, addresses: Sequence[int], options: EngineOptions, report: EngineReport
    ) -> None:
        """Set the sites of the functions at `addresses` back; outcomes go to `report`.

        Raises:
            TargetGoneError: The process ended.
            BusyTargetError: The threads did not stop in time; what needs no
                stop is done.
        """
        chosen = [self.tracepoints[address] for address in addresses]
        enabled = [t for t in chosen if t.enabled]
        report.outcomes += outcomes.not_enabled(t for t in chosen if not t.enabled)
        if not enabled:
            return
        choice = self._choice(options.plan.writer, report.pauses)
        self._table.note(enabled, Phase.RESTORING)
        changed, spans = self._change(enabled, options, choice, report, restores=True)
        late: list[Tracepoint] = []
        restored: list[Tracepoint] = []
        for tracepoint, span in zip(enabled, spans, strict=True):
            statuses = changed.statuses[span]
            if None in statuses:
                late.append(tracepoint)
                continue
            tracepoint.enabled = False
            tracepoint.conflicting = not all(status in DONE for status in statuses)
            if not tracepoint.conflicting:
                restored.append(tracepoint)
            writer = most_intrusive(changed.writers[span])
            report.outcomes.append(outcomes.disabled(tracepoint, writer))
        self._table.note(late, Phase.PATCHED)
        self._table.note(restored, Phase.FREE)
        self._table.park(changed.parked, restored)
        report.writer_detail = choice.detail or "; ".join(changed.notes)
        report.pauses.merge(self._annex.caller.take_pauses())
        if late:
            raise BusyTargetError(
                f"process {self._memory.pid} did not reach a safe point in time; "
                f"{len(late)} functions stay enabled: {'; '.join(changed.notes)}",
                hint="try again",
            )

    def lapsed(self, alive: int) -> list[Tracepoint]:
        """See `TracepointTable.lapsed`."""
        return self._table.lapsed(alive)

    def keep(self, lease: int) -> int:
        """See `TracepointTable.keep`."""
        return self._table.keep(lease)

    # -- leaving -----------------------------------------------------------

    def leave(self, deadline_ns: int = DEFAULT_STOP_DEADLINE_NS) -> EngineReport:
        """Set everything back: sites, hijacked return addresses, the unwinder.

        The sites first, so that threads leave our code by themselves; then, in
        a stop at a moment when no thread is inside it, the rest. The annex
        stays mapped: a suspended fiber may still return through it.

        Raises:
            TargetGoneError: The process ended.
            BusyTargetError: The threads did not stop in time.
        """
        report = EngineReport([])
        enabled = [t.function.address for t in self.tracepoints.values() if t.enabled]
        options = EngineOptions(stop_deadline_ns=deadline_ns)
        self._annex.enable(False)
        self.disable(enabled, options, report)
        heads = self._hooks.ways_back()
        if not self.tracepoints and not heads:
            return report
        self._traps.finish(report.pauses)
        rest = set_back_at_rest(
            self._memory,
            self._annex,
            heads,
            self._table.parked(),
            deadline_ns,
            report.pauses,
        )
        report.frames = rest.frames
        for tracepoint in self.tracepoints.values():
            tracepoint.is_idle = rest.is_idle and not tracepoint.conflicting
        if rest.tails_are_back:
            self._table.tails_are_back()
        if rest.hooks_are_out:
            self._hooks.removed()
        report.pauses.merge(self._annex.caller.take_pauses())
        return report


def _any_inside(writes: Sequence[CodeWrite], ranges: Sequence[tuple[int, int]]) -> bool:
    return any(start <= write.address < end for write in writes for start, end in ranges)
