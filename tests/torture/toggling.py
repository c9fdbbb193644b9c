# SPDX-License-Identifier: Apache-2.0
"""Sites enabled and disabled, again and again, each step checked."""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import partial

from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.torture.forms import PLANNED_AT_ONCE, FormCase
from tests.torture.records import Draining, RecordCheck
from tests.torture.subject import Subject
from uftrace_agent.engine.model import Form, Refusal, Status, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.report import EngineOptions, EngineReport, SiteOutcome
from uftrace_agent.engine.site import Role, SitePlan
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.errors import BusyTargetError
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.session.attaching import Attachment, attach
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache

_RINGS = RecordingOptions(ring_bytes=1 << 20, ring_count=192)
_LOOK_AFTER_SECONDS = 0.5
# In a row, without anything done.
_MOST_BUSY = 100
_REMEMBERED = 12
_SAMPLE = 8
_HOT_ROUNDS = 4
# A thread that is being made blocks all signals for a moment.
_SIGNALS_BLOCKED = "blocks SIGTRAP"


class Way(Enum):
    """How sites are chosen; the value is its share of the time.

    Of the time, not of the toggles: beside 64 busy threads a request for one site by
    traps takes as long as one for thousands.
    """

    ALL_AT_ONCE = 0.65
    RANDOM_SUBSETS = 0.20
    FEW_HOT_ONES = 0.15


@dataclass(slots=True)
class Tally:
    """What was done.

    Attributes:
        toggles: Sites enabled or disabled, by form.
        ways: The same by the way in which they were chosen.
        operations: Requests for that.
        seconds: How long they took.
        busy: Sites that could not be changed in time, and were asked for again.
        writers: Toggles by the writer that was used.
        longest_pause_ns: Of any thread, by any stop.
        calls: Calls of sites that the program made and checked meanwhile.
        signals: SIGPROFs that it handled meanwhile.
        records: Records that were taken out of the rings.
        lost: Records for which there was no room.
    """

    toggles: Counter[str] = field(default_factory=Counter)
    ways: Counter[Way] = field(default_factory=Counter)
    operations: int = 0
    seconds: float = 0.0
    busy: int = 0
    writers: Counter[Writer] = field(default_factory=Counter)
    longest_pause_ns: int = 0
    calls: int = 0
    signals: int = 0
    records: int = 0
    lost: int = 0

    def add(self, other: Tally) -> None:
        """Take another run into account."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            both = max(mine, theirs) if item.name == "longest_pause_ns" else mine + theirs
            setattr(self, item.name, both)


@dataclass(frozen=True, slots=True)
class Limit:
    """When to end: after so many toggles of each form, or seconds, whatever comes first."""

    toggles: int
    seconds: float


class Toggler:
    """One attachment to a subject.

    Attributes:
        forms: How many of each form's sites got which form.
        history: The last operations, for reports of failures.
    """

    def __init__(
        self,
        subject: Subject,
        attachment: Attachment,
        check: RecordCheck,
        draining: Draining,
        seed: int,
    ) -> None:
        self._subject = subject
        self._attachment = attachment
        self._engine = attachment.engine
        self._check = check
        self._draining = draining
        self._random = random.Random(seed)
        self._sites: dict[str, list[ProgramFunction]] = {}
        self._plans: dict[int, SitePlan] = {}
        self._cases: dict[int, FormCase] = {}
        self.forms: dict[str, Counter[str]] = {}
        self.history: deque[str] = deque(maxlen=_REMEMBERED)
        self._looked = time.monotonic()
        # What the round before has patched is gone on with, by the ids of before.
        for tracepoint in attachment.engine.tracepoints.values():
            sites = tracepoint.plan.sites()
            by_thunks = all(site.role is not Role.EXIT for site in sites)
            check.allow([site.record_id for site in sites], paired=by_thunks)

    # -- planning ----------------------------------------------------------

    def plan(self, most: int) -> None:
        """Let the engine plan the sites, and see that they got their form.

        Args:
            most: So many of each form at most, taken by chance.

        Raises:
            AssertionError: Too few did.
        """
        for case in self._subject.cases:
            self._plan(case, most)

    def _plan(self, case: FormCase, most: int) -> None:
        functions = self._attachment.program.select([case.pattern])
        if len(functions) > most:
            functions = self._random.sample(functions, most)
            functions.sort(key=lambda function: function.address)
        options = EngineOptions(case.plan_options(case.planned_by))
        forms = self.forms[case.name] = Counter[str]()
        ours: list[ProgramFunction] = []
        announce = partial(self._announce, paired=case.form is not Form.SLED)
        for first in range(0, len(functions), PLANNED_AT_ONCE):
            some = functions[first : first + PLANNED_AT_ONCE]
            for outcome in self._engine.enable(some, options, announce).outcomes:
                forms[_form(outcome)] += 1
                plan = outcome.plan
                if outcome.status is Status.ENABLED and plan is not None and case.matches(plan):
                    ours.append(outcome.function)
                    self._plans[outcome.function.address] = plan
                    self._cases[outcome.function.address] = case
        self._sites[case.name] = sorted(ours, key=lambda function: function.address)
        everything = [t.function.address for t in self._engine.tracepoints.values() if t.enabled]
        self._engine.disable(everything, options, EngineReport([]))
        share = len(ours) / len(functions)
        assert share >= case.least_share, (
            f"{case.name}: only {len(ours)} of {len(functions)} sites got their form: {forms}"
        )

    # -- toggling ----------------------------------------------------------

    def toggle(self, writer: Writer, limit: Limit) -> Tally:
        """Toggle the sites that a writer can change, with this writer.

        Raises:
            AssertionError: Something is not as it should be.
            AgentError: The engine failed.
        """
        tally = Tally()
        spent = dict.fromkeys(Way, 0.0)
        before = self._subject.counters()
        records, lost = self._draining.records, self._draining.lost
        started = time.monotonic()
        until = started + limit.seconds
        while cases := self._cases_left(writer, limit, tally):
            way = min(Way, key=lambda way: (spent[way] / way.value, self._random.random()))
            began, done = time.monotonic(), tally.toggles.total()
            if began > until:
                break
            self._toggle(way, cases, writer, tally)
            spent[way] += time.monotonic() - began
            tally.ways[way] += tally.toggles.total() - done
            self._look_after()
        after = self._subject.counters()
        tally.seconds = time.monotonic() - started
        tally.calls = after["calls_sites"] - before["calls_sites"]
        tally.signals = after["calls_signals"] - before["calls_signals"]
        tally.records = self._draining.records - records
        tally.lost = self._draining.lost - lost
        assert not self._check.complaints, "; ".join(self._check.complaints)
        return tally

    def _cases_left(self, writer: Writer, limit: Limit, tally: Tally) -> list[FormCase]:
        return [
            case
            for case in self._subject.cases
            if writer in case.writers and tally.toggles[case.name] < limit.toggles
        ]

    def _toggle(self, way: Way, cases: Sequence[FormCase], writer: Writer, tally: Tally) -> None:
        match way:
            case Way.ALL_AT_ONCE:
                self._all_at_once(self._sites_of(cases), writer, tally)
            case Way.RANDOM_SUBSETS:
                self._random_subsets(self._sites_of(cases), writer, tally)
            case Way.FEW_HOT_ONES:
                self._few_hot_ones(self._random.choice(cases), writer, tally)

    def _sites_of(self, cases: Sequence[FormCase]) -> list[ProgramFunction]:
        return [site for case in cases for site in self._sites[case.name]]

    def _all_at_once(self, sites: Sequence[ProgramFunction], writer: Writer, tally: Tally) -> None:
        self._on(sites, writer, tally)
        self._off(sites, writer, tally)

    # Beside neighbours that stay as they are.
    def _random_subsets(
        self, sites: Sequence[ProgramFunction], writer: Writer, tally: Tally
    ) -> None:
        for _ in range(4):
            some = self._random.sample(sites, self._random.randint(1, len(sites)))
            half = len(some) // 2
            self._on(some[:half], writer, tally)
            self._off(some[half:], writer, tally)
        self._off(sites, writer, tally)

    # All threads call these and nothing else: whoever toggles meets them there.
    def _few_hot_ones(self, case: FormCase, writer: Writer, tally: Tally) -> None:
        sites = self._sites[case.name]
        count = self._random.choice((1, 2, 4, 16))
        first = self._random.randrange(len(sites) - count)
        hot = sites[first : first + count]
        self._subject.focus_on(case, hot[0].symbol.linkage_name, count)
        for _ in range(_HOT_ROUNDS):
            self._on(hot, writer, tally)
            self._off(hot, writer, tally)
        self._subject.focus()

    def _on(self, functions: Sequence[ProgramFunction], writer: Writer, tally: Tally) -> None:
        self._repeat(functions, writer, tally, wanted=True)

    def _off(self, functions: Sequence[ProgramFunction], writer: Writer, tally: Tally) -> None:
        self._repeat(functions, writer, tally, wanted=False)

    def _repeat(
        self,
        functions: Sequence[ProgramFunction],
        writer: Writer,
        tally: Tally,
        *,
        wanted: bool,
    ) -> None:
        options = EngineOptions(PlanOptions(writer=writer))
        tracepoints = self._engine.tracepoints
        for _ in range(_MOST_BUSY):
            left = [f for f in functions if tracepoints[f.address].enabled is not wanted]
            if not left:
                return
            word = "enable" if wanted else "disable"
            self.history.append(f"{word} {len(left)} from {left[0].symbol.linkage_name} on")
            change = self._engine.enable if wanted else self._disable
            report = change(left, options)
            done = self._judge(report, writer, tally, wanted)
            tally.operations += 1
            tally.busy += len(left) - done
            tally.longest_pause_ns = max(tally.longest_pause_ns, report.pauses.longest_ns)
            self.history[-1] += f": {done} done {report.writer_detail}"
            self._check_bytes(left, wanted)
        raise AssertionError(f"{len(left)} sites were not to be changed: {report.writer_detail}")

    def _is_enabled(self, function: ProgramFunction) -> bool:
        return self._engine.tracepoints[function.address].enabled

    def _disable(
        self, functions: Sequence[ProgramFunction], options: EngineOptions
    ) -> EngineReport:
        report = EngineReport([])
        try:
            self._engine.disable([f.address for f in functions], options, report)
        except BusyTargetError as error:
            report.writer_detail = error.message
        return report

    def _announce(self, tracepoints: Sequence[Tracepoint], *, paired: bool) -> None:
        ids = [site.record_id for t in tracepoints for site in t.plan.sites()]
        self._check.allow(ids, paired=paired)

    # How many sites were changed; anything else must be for lack of time.
    def _judge(self, report: EngineReport, writer: Writer, tally: Tally, wanted: bool) -> int:
        done: Counter[tuple[str, Writer]] = Counter()
        right = Status.ENABLED if wanted else Status.DISABLED
        # Where the guards of `trap` do not pass just now, `stop` takes its place: for
        # `auto`, and where something is to be set back.
        may_stop = (writer is Writer.AUTO or not wanted) and report.writer_detail
        for outcome in report.outcomes:
            if outcome.refusal is Refusal.STOP_TIMED_OUT or _SIGNALS_BLOCKED in outcome.detail:
                continue
            assert outcome.status is right, f"{_told(outcome)}: {outcome.detail}"
            assert outcome.plan is not None and outcome.writer is not None
            case = self._cases[outcome.plan.function]
            expected = case.writer_of(outcome.plan, writer)
            assert outcome.writer is expected or (
                outcome.writer is Writer.STOP and expected is Writer.TRAP and may_stop
            ), f"{_told(outcome)}, not {expected.name}"
            done[case.name, outcome.writer] += 1
        for (name, used), count in done.items():
            tally.toggles[name] += count
            tally.writers[used] += count
        return done.total()

    def _check_bytes(self, functions: Sequence[ProgramFunction], wanted: bool) -> None:
        for function in self._random.sample(functions, min(_SAMPLE, len(functions))):
            if self._is_enabled(function) is not wanted:
                continue
            for site in self._plans[function.address].sites():
                patch = site.head
                should = patch.wanted if wanted else patch.expected
                found = self._attachment.memory.read(patch.address, len(should))
                assert found == should, (
                    f"{function.symbol.linkage_name} at {patch.address:#x}: "
                    f"{found.hex(' ')}, not {should.hex(' ')}"
                )

    def _look_after(self) -> None:
        if time.monotonic() - self._looked < _LOOK_AFTER_SECONDS:
            return
        self._subject.check_alive()
        self._looked = time.monotonic()
        assert not self._check.complaints, "; ".join(self._check.complaints)

    # -- the end -----------------------------------------------------------

    def leave(self) -> None:
        """Set everything back, and see that nothing is left.

        Raises:
            AssertionError: Something is.
            AgentError: The engine failed.
        """
        self.history.append("leave")
        self._engine.leave()
        assert_text_unchanged(self._subject.pid)
        assert_not_traced(self._subject.pid)
        self._subject.check_signals()
        self._subject.check_alive()


def _told(outcome: SiteOutcome) -> str:
    by = f" by {outcome.writer.name}" if outcome.writer else ""
    return f"{outcome.function.symbol.linkage_name}: {outcome.status.name}{by}"


def _form(outcome: SiteOutcome) -> str:
    if outcome.plan is None:
        return outcome.refusal.name.lower() if outcome.refusal else outcome.status.name.lower()
    name = outcome.plan.form.name.lower()
    if outcome.plan.form is not Form.PUN:
        return name
    if outcome.plan.head.wanted[0] != 0xE9:
        return "prefixed pun"
    return f"pun of {len(outcome.plan.head.changed())} bytes"


@contextmanager
def attached(subject: Subject, images: ImageCache, seed: int) -> Iterator[Toggler]:
    """Attach, and empty the rings until the block ends.

    Raises:
        AssertionError: The rings held what cannot be.
        AgentError: The program cannot be attached.
    """
    attachment = attach(resolve(ProcessId(subject.pid)), _RINGS, images)
    try:
        check = RecordCheck()
        draining = Draining(subject.pid, attachment.annex, check)
        try:
            yield Toggler(subject, attachment, check, draining, seed)
        finally:
            draining.stop()
        assert not check.complaints, "; ".join(check.complaints)
    finally:
        attachment.close()
