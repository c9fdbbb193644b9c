"""The tracepoints of one process, and their rows in its journal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from uftrace_agent.engine import holds
from uftrace_agent.engine.adoption import Inheritance
from uftrace_agent.engine.journal_entry import Entry, Phase
from uftrace_agent.engine.layout import LANDING_BYTES, CodeLayout
from uftrace_agent.engine.manifest import Manifest
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.reservations import give_back
from uftrace_agent.engine.site import SitePlan
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.process.memory import ProcessMemory


class TracepointTable:
    """All tracepoints of one process; what is said here of one is in the journal too.

    Args:
        memory: The process's memory.
        manifest: Its journal.
        layout: Where its stubs are.

    Attributes:
        by_address: The tracepoints, by the live address of their function.
        next_id: The first id that no function has had.
    """

    def __init__(self, memory: ProcessMemory, manifest: Manifest, layout: CodeLayout) -> None:
        self.by_address: dict[int, Tracepoint] = {}
        self.next_id = 1
        self._memory = memory
        self._manifest = manifest
        self._layout = layout
        # Sites whose tails are not set back yet, by their row in the journal.
        self._parked: dict[int, tuple[SitePlan, int]] = {}

    def skip_ids(self, first: int) -> None:
        """Give no function an id below `first`."""
        self.next_id = max(self.next_id, first)

    def enabled(self) -> list[Tracepoint]:
        """Those whose sites are changed."""
        return [t for t in self.by_address.values() if t.enabled]

    # -- beginning ---------------------------------------------------------

    def adopt(self, inheritance: Inheritance, hooks_out: Sequence[SitePlan]) -> None:
        """Go on with what another agent's journal says; before anything else.

        Args:
            inheritance: The journal.
            hooks_out: Of the unwinders that were hooked, those that may be again.
        """
        self.skip_ids(inheritance.next_id)
        self._parked.update(inheritance.parked)
        hooks = [plan for _, plan in inheritance.hooks]
        parked = [plan for plan, _ in inheritance.parked.values()]
        plans = {plan.stub: plan for plan in (*hooks, *hooks_out, *parked)}
        disabled = [t for t in inheritance.disabled if self.is_as_it_was(t.plan)]
        for tracepoint in (*inheritance.tracepoints, *disabled):
            address = tracepoint.function.address
            # A function that was patched in another way before: that is past.
            if self.by_address.setdefault(address, tracepoint) is tracepoint:
                plans |= {site.stub: site for site in tracepoint.plan.sites()}
        for plan in plans.values():
            if plan.landing:
                self._layout.adopt_landing(plan.landing, LANDING_BYTES)
            for patch in (plan.head, plan.tail):
                if patch is not None:
                    changed = patch.changed()
                    span = range(patch.address, patch.end)
                    self._layout.claim(changed, [at for at in span if at not in changed])

    def is_as_it_was(self, plan: SitePlan) -> bool:
        """Whether all of a function's sites are as in the file. What is not patched can be
        gone on with where its module is still the same."""
        heads = [site.head for site in plan.sites()]
        return all(self._memory.read_some(h.address, len(h.expected)) == h.expected for h in heads)

    def add(self, tracepoints: Sequence[Tracepoint]) -> None:
        """Give new tracepoints their rows.

        Raises:
            ExhaustedError: The journal is full.
        """
        rows = self._manifest.reserve_each([len(t.plan.sites()) for t in tracepoints])
        for tracepoint, row in zip(tracepoints, rows, strict=True):
            tracepoint.journal_index = row
            self.by_address[tracepoint.function.address] = tracepoint

    # -- changing ----------------------------------------------------------

    def note(self, tracepoints: Sequence[Tracepoint], phase: Phase) -> None:
        """Write down what is about to become of their sites, or what has."""
        new = [t for t in tracepoints if not t.is_journaled]
        self._manifest.write(
            [
                (index, Entry.of(site, t.function_id, phase, len(rows), t.entry_only, t.leases))
                for t in new
                for rows in (t.journal_rows(),)
                for index, site in rows
            ]
        )
        known = [i for t in tracepoints if t.is_journaled for i in t.journal_indices()]
        self._manifest.mark(sorted(known), phase)
        for tracepoint in new:
            tracepoint.is_journaled = True

    def hold(self, tracepoints: Iterable[Tracepoint], lease: int) -> None:
        """They are about to be enabled, by this lease alone; 0: for good."""
        holds.begin(self._manifest, tracepoints, lease)

    def hold_too(self, functions: Iterable[ProgramFunction], lease: int) -> None:
        """They are enabled, and asked for by this lease too; 0: for good from now on."""
        known = (self.by_address.get(function.address) for function in functions)
        holds.extend(self._manifest, [t for t in known if t is not None], lease)

    def lapsed(self, alive: int) -> list[Tracepoint]:
        """What is held by leases, and by none that is alive: to be disabled.

        Args:
            alive: The bits of the leases that have not ended.
        """
        return holds.lapse(self._manifest, self.enabled(), alive)

    def keep(self, lease: int) -> int:
        """What a lease holds stays until it is disabled; how many tracepoints that is."""
        held = [t for t in self.enabled() if t.leases & lease]
        holds.extend(self._manifest, held, 0)
        return len(held)

    # -- tails -------------------------------------------------------------

    def park(self, plans: Sequence[SitePlan], tracepoints: Sequence[Tracepoint]) -> None:
        """Tails that nothing leads to any more, but that a thread may still be about to
        run, stay.

        Args:
            plans: Theirs.
            tracepoints: Those that the plans are of, and others.
        """
        waiting = set(map(id, plans))
        for tracepoint in tracepoints:
            for index, site in tracepoint.journal_rows():
                if id(site) in waiting:
                    self._parked[index] = (site, tracepoint.function_id)
                    self._manifest.mark([index], Phase.PARKED)

    def unpark(self, tracepoint: Tracepoint) -> None:
        """Its tails are in use again."""
        if self._parked:
            for index in tracepoint.journal_indices():
                self._parked.pop(index, None)

    def parked(self) -> list[SitePlan]:
        """The sites whose tails are not set back yet."""
        return [plan for plan, _ in self._parked.values()]

    def tails_are_back(self) -> None:
        """All of those have been set back."""
        self._manifest.mark(sorted(self._parked), Phase.FREE)
        self._parked.clear()

    # -- ending ------------------------------------------------------------

    def forget(self, tracepoint: Tracepoint) -> None:
        """It is none any more: its row and its stubs serve others."""
        self.unpark(tracepoint)
        self._manifest.give_back(tracepoint.journal_index, len(tracepoint.plan.sites()))
        give_back(self._layout, tracepoint.plan)
        del self.by_address[tracepoint.function.address]

    def forget_unloaded(self, modules: Iterable[object]) -> None:
        """A module that was unloaded took its sites with it; its addresses may be another
        module's by now (H83). Nobody is in its trampolines: they lead back into it.

        Args:
            modules: Those that are loaded.
        """
        present = set(map(id, modules))
        gone = [t for t in self.by_address.values() if id(t.function.module) not in present]
        self.note(gone, Phase.FREE)
        for tracepoint in gone:
            self.forget(tracepoint)

    def find_reloaded(self) -> list[Tracepoint]:
        """What was enabled in modules that were unloaded and loaded again at the same
        place between two looks (H83): nothing of it is in them, so it is disabled."""
        found = [t for t in self.enabled() if self.is_as_it_was(t.plan)]
        for tracepoint in found:
            tracepoint.enabled = False
        self.note(found, Phase.FREE)
        return found
