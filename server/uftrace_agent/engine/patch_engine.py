"""The patch engine of one process: site -> plan -> journal -> write -> verify -> restore."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from uftrace_agent.engine.annex import Annex
from uftrace_agent.engine.architecture import Architecture
from uftrace_agent.engine.exit_rules import ProcessTraits
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.manifest import Entry, Manifest, Phase
from uftrace_agent.engine.model import Refusal, Status, Writer
from uftrace_agent.engine.native import scratch_layout
from uftrace_agent.engine.planner import Planned, Planner
from uftrace_agent.engine.program import Program, ProgramFunction
from uftrace_agent.engine.report import (
    DEFAULT_STOP_DEADLINE_NS,
    EngineOptions,
    EngineReport,
    SiteOutcome,
)
from uftrace_agent.engine.site import CodeWrite, Patch, SitePlan
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.engine.unwinder import UnwinderHooks, find_unwinders
from uftrace_agent.engine.writer import (
    FrameRepair,
    Pauses,
    StopOrder,
    write_running,
    write_stopped,
)
from uftrace_agent.errors import AgentError, BusyTargetError
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.runtime.host_library import SiteStatus
from uftrace_agent.runtime.layout import ID_MAX, THUNK_SPAN

_DONE: Final = (SiteStatus.WRITTEN, SiteStatus.ALREADY)
_TOO_LATE: Final = (
    "the threads did not stop in time; nothing was changed: try again, or give a longer deadline"
)
_FOREIGN: Final = (
    "its bytes are not those of the file: a debugger, a uprobe or another tracer is there"
)


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
        self._manifest = manifest
        self._architecture = architecture
        self._has_shadow_stack = has_shadow_stack
        self._hooks = UnwinderHooks(memory, annex, manifest, architecture)
        self.tracepoints: dict[int, Tracepoint] = {}
        self._next_id = 1

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
        started = time.monotonic_ns()
        report = EngineReport([])
        if not (options.dry_run or options.plan.entry_only):
            # Before the first return address is replaced, every unwinder in the
            # process must be able to see through the thunks (H39).
            self._hooks.install(self._program.modules, report.pauses)
        parked, planned, layout = self._plan(functions, options, report)
        report.plan_ns = time.monotonic_ns() - started
        if options.dry_run or (options.all_or_nothing and report.has_refusal()):
            self._abandon(planned, layout)
            report.outcomes += [
                SiteOutcome(t.function, Status.NOT_ENABLED, t.function_id, t.plan, t.plan.writer)
                for t in (*parked, *planned)
            ]
            return report
        try:
            new = self._prepare(planned, layout, report)
        except AgentError:
            self._abandon(planned, layout)
            raise
        if options.all_or_nothing and report.has_refusal():
            report.outcomes += [
                SiteOutcome(t.function, Status.NOT_ENABLED, t.function_id, t.plan)
                for t in (*parked, *new)
            ]
            return report
        announce(new)
        self._write(parked + new, options, report)
        return report

    def _plan(
        self, functions: Sequence[ProgramFunction], options: EngineOptions, report: EngineReport
    ) -> tuple[list[Tracepoint], list[Tracepoint], CodeLayout]:
        parked: list[Tracepoint] = []
        unknown: list[ProgramFunction] = []
        self._forget_unloaded()
        for function in functions:
            known = self.tracepoints.get(function.address)
            if known is None:
                unknown.append(function)
            elif known.enabled and self._is_in_place(known.plan.head):
                report.outcomes.append(
                    SiteOutcome(
                        function,
                        Status.ALREADY_ENABLED,
                        known.function_id,
                        known.plan,
                        detail=f"enabled by {known.owner}" if known.owner else "",
                    )
                )
            elif known.entry_only != options.plan.entry_only or not _writer_fits(
                known.plan, options.plan.writer
            ):
                # Its trampoline may still be in use: a second one cannot take
                # its place while this session lasts.
                report.outcomes.append(
                    SiteOutcome(
                        function,
                        Status.REFUSED,
                        known.function_id,
                        refusal=Refusal.WRITER_UNSUITABLE,
                        detail="it was enabled in another way before: detach, then patch again",
                    )
                )
            else:
                parked.append(known)
        if options.dry_run:
            layout = scratch_layout(self._memory.pid, self._architecture)
        else:
            layout = self._annex.layout
            layout.refresh(read_mappings(self._memory.pid))
        planner = Planner(
            self._architecture,
            layout,
            self.process_traits(),
            frozenset(self._hooks.addresses),
        )
        room = max(ID_MAX - self._next_id, 0)
        outcomes = planner.plan(unknown[:room], self._next_id, options.plan)
        planned: list[Tracepoint] = []
        for offset, outcome in enumerate(outcomes):
            if outcome.plan is None:
                report.outcomes.append(_refused(outcome))
                continue
            planned.append(
                Tracepoint(
                    self._next_id + offset,
                    outcome.function,
                    outcome.plan,
                    options.plan.entry_only,
                )
            )
        report.outcomes += [
            SiteOutcome(f, Status.REFUSED, refusal=Refusal.TABLE_FULL, detail="no id is left")
            for f in unknown[room:]
        ]
        if not options.dry_run:
            self._next_id += len(outcomes)
        return parked, planned, layout

    # A module that was unloaded and loaded again at the same place is the file's.
    def _is_in_place(self, head: Patch) -> bool:
        return self._memory.read_some(head.address, len(head.wanted)) == head.wanted

    # A module that was unloaded took its sites with it; its addresses may be
    # another module's by now (H83).
    def _forget_unloaded(self) -> None:
        present = set(map(id, self._program.modules))
        for address, tracepoint in list(self.tracepoints.items()):
            if id(tracepoint.function.module) in present:
                continue
            self._journal([tracepoint], Phase.FREE)
            self._annex.layout.release(tracepoint.plan.patches())
            del self.tracepoints[address]

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
            plan = tracepoint.plan
            layout.release(plan.patches())
            for write in plan.writes:
                if write.address == plan.landing:
                    layout.give_back_landing(write.address, len(write.code))

    # Everything that no thread can see yet: memory, stubs, landings, journal.
    def _prepare(
        self, planned: list[Tracepoint], layout: CodeLayout, report: EngineReport
    ) -> list[Tracepoint]:
        failed = [(m.start, m.start + m.size) for m in self._annex.map_pending()]
        ready: list[Tracepoint] = []
        for tracepoint in planned:
            if _any_inside(tracepoint.plan.writes, failed):
                self._abandon([tracepoint], layout)
                report.outcomes.append(
                    SiteOutcome(
                        tracepoint.function,
                        Status.REFUSED,
                        refusal=Refusal.NO_TRAMPOLINE_SPACE,
                        detail="the kernel refused memory at its trampoline's address "
                        "(taken meanwhile, or vm.max_map_count is reached)",
                    )
                )
                continue
            ready.append(tracepoint)
            self.tracepoints[tracepoint.function.address] = tracepoint
        self._annex.write_code(write for tracepoint in ready for write in tracepoint.plan.writes)
        first = self._manifest.reserve(len(ready))
        for index, tracepoint in enumerate(ready):
            tracepoint.journal_index = first + index
        return ready

    def _write(
        self, tracepoints: list[Tracepoint], options: EngineOptions, report: EngineReport
    ) -> None:
        if not tracepoints:
            return
        self._journal(tracepoints, Phase.PATCHING)
        self._annex.enable(True)
        tails = [t.plan.tail for t in tracepoints if t.plan.tail is not None]
        if tails:
            write_running(self._memory, tails)
        running = [t for t in tracepoints if _writer_of(t.plan, options.plan.writer) is Writer.BYTE]
        stopped = [t for t in tracepoints if _writer_of(t.plan, options.plan.writer) is Writer.STOP]
        results: dict[int, SiteStatus] = {}
        timed_out = False
        if running:
            statuses = write_running(self._memory, [t.plan.head for t in running])
            results.update(zip((t.function_id for t in running), statuses, strict=True))
        if stopped:
            order = StopOrder([t.plan.head for t in stopped], options.stop_deadline_ns)
            try:
                statuses, _ = write_stopped(self._memory, order, report.pauses)
                results.update(zip((t.function_id for t in stopped), statuses, strict=True))
            except BusyTargetError:
                timed_out = True
        done = [t for t in tracepoints if results.get(t.function_id) in _DONE]
        not_done = [t for t in tracepoints if results.get(t.function_id) not in _DONE]
        self._keep(done, options, report)
        self._take_back(not_done, results, timed_out, report)
        if options.all_or_nothing and not_done:
            self.disable([t.function.address for t in done], options, report)
            report.outcomes = [
                SiteOutcome(o.function, Status.NOT_ENABLED, o.function_id, o.plan)
                if o.status is Status.DISABLED
                else o
                for o in report.outcomes
                if o.status is not Status.ENABLED
            ]

    def _keep(
        self, done: Sequence[Tracepoint], options: EngineOptions, report: EngineReport
    ) -> None:
        now = time.time_ns()
        for tracepoint in done:
            tracepoint.enabled = True
            tracepoint.conflicting = False
            tracepoint.owner = options.owner
            tracepoint.enabled_unix_ns = now
            writer = _writer_of(tracepoint.plan, options.plan.writer)
            report.outcomes.append(
                SiteOutcome(
                    tracepoint.function,
                    Status.ENABLED,
                    tracepoint.function_id,
                    tracepoint.plan,
                    writer,
                    detail=tracepoint.plan.detail,
                )
            )
        self._journal(done, Phase.PATCHED)

    def _take_back(
        self,
        not_done: Sequence[Tracepoint],
        results: Mapping[int, SiteStatus],
        timed_out: bool,
        report: EngineReport,
    ) -> None:
        tails = [t.plan.tail.reversed() for t in not_done if t.plan.tail is not None]
        write_running(self._memory, tails)
        self._journal(not_done, Phase.FREE)
        for tracepoint in not_done:
            late = timed_out and tracepoint.function_id not in results
            report.outcomes.append(
                SiteOutcome(
                    tracepoint.function,
                    Status.REFUSED,
                    refusal=Refusal.STOP_TIMED_OUT if late else Refusal.FOREIGN_PATCH,
                    detail=_TOO_LATE if late else _FOREIGN,
                )
            )

    def _journal(self, tracepoints: Sequence[Tracepoint], phase: Phase) -> None:
        self._manifest.write(
            [(t.journal_index, Entry.of(t.plan, t.function_id, phase)) for t in tracepoints]
        )

    def modules_changed(self) -> None:
        """Something was loaded or unloaded: an unwinder that came now must see through
        the thunks before it meets one (H39).

        Raises:
            BusyTargetError: The threads did not stop in time; call again.
            TargetGoneError: The process ended.
        """
        if any(t.enabled and t.plan.has_exit for t in self.tracepoints.values()):
            self._program.refresh()
            self._hooks.install(self._program.modules, Pauses())

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
        report.outcomes += [
            SiteOutcome(t.function, Status.NOT_ENABLED, t.function_id, t.plan)
            for t in chosen
            if not t.enabled
        ]
        self._journal(enabled, Phase.RESTORING)
        running = [t for t in enabled if _writer_of(t.plan, options.plan.writer) is Writer.BYTE]
        stopped = [t for t in enabled if _writer_of(t.plan, options.plan.writer) is Writer.STOP]
        if running:
            heads = [t.plan.head.reversed() for t in running]
            self._finish_disable(running, write_running(self._memory, heads), report)
        if stopped:
            order = StopOrder([t.plan.head.reversed() for t in stopped], options.stop_deadline_ns)
            try:
                statuses, _ = write_stopped(self._memory, order, report.pauses)
            except BusyTargetError:
                self._journal(stopped, Phase.PATCHED)
                raise
            self._finish_disable(stopped, statuses, report)

    def _finish_disable(
        self,
        tracepoints: Sequence[Tracepoint],
        statuses: Sequence[SiteStatus],
        report: EngineReport,
    ) -> None:
        restored: list[Tracepoint] = []
        for tracepoint, status in zip(tracepoints, statuses, strict=True):
            tracepoint.enabled = False
            if status in _DONE:
                restored.append(tracepoint)
                report.outcomes.append(
                    SiteOutcome(
                        tracepoint.function,
                        Status.DISABLED,
                        tracepoint.function_id,
                        tracepoint.plan,
                    )
                )
            else:
                tracepoint.conflicting = True
                report.outcomes.append(
                    SiteOutcome(
                        tracepoint.function,
                        Status.CONFLICT,
                        tracepoint.function_id,
                        tracepoint.plan,
                        refusal=Refusal.FOREIGN_PATCH,
                        detail="somebody else changed the site since: it was left alone",
                    )
                )
        tails = [t.plan.tail.reversed() for t in restored if t.plan.tail is not None]
        if tails:
            write_running(self._memory, tails)
        self._journal(restored, Phase.FREE)

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
        repair = FrameRepair(self._annex.thunks, THUNK_SPAN, self._annex.read_slots())
        order = StopOrder(heads, deadline_ns, self._annex.code_ranges, repair)
        try:
            _, report.frames = write_stopped(self._memory, order, report.pauses)
        except BusyTargetError:
            # Some thread never leaves our code (starved, or stopped in it):
            # that is no danger, since the code stays.
            order = StopOrder(heads, 10 * deadline_ns, (), repair)
            _, report.frames = write_stopped(self._memory, order, report.pauses)
        self._hooks.removed()
        return report


def _refused(planned: Planned) -> SiteOutcome:
    return SiteOutcome(
        planned.function, Status.REFUSED, refusal=planned.refusal, detail=planned.detail
    )


def _any_inside(writes: Sequence[CodeWrite], ranges: Sequence[tuple[int, int]]) -> bool:
    return any(start <= write.address < end for write in writes for start, end in ranges)


def _writer_of(plan: SitePlan, asked: Writer) -> Writer:
    return Writer.STOP if asked is Writer.STOP else plan.writer


def _writer_fits(plan: SitePlan, asked: Writer) -> bool:
    return asked is not Writer.BYTE or plan.writer is Writer.BYTE
