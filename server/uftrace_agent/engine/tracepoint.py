"""A function that is, was, or could be enabled."""

from __future__ import annotations

from dataclasses import dataclass

from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.site import SitePlan


@dataclass(slots=True)
class Tracepoint:
    """One planned function of a session; the plan stays when it is disabled.

    Attributes:
        function_id: What its records carry.
        function: The function.
        plan: How it is patched.
        entry_only: Whether only its entry was asked for.
        journal_index: Its first entry in the manifest; one follows for each other site.
        is_journaled: Whether those entries were written.
        enabled: Whether its site is changed now.
        conflicting: Somebody else changed the site while it was enabled.
        owner: Who enabled it.
        enabled_unix_ns: Since when.
        leases: Those that hold it, a bit each; 0: it stays until it is taken out.
        is_idle: No thread can be in its code: it has been left since it was enabled.
    """

    function_id: int
    function: ProgramFunction
    plan: SitePlan
    entry_only: bool
    journal_index: int = -1
    is_journaled: bool = False
    enabled: bool = False
    conflicting: bool = False
    owner: str = ""
    enabled_unix_ns: int = 0
    leases: int = 0
    is_idle: bool = False

    def journal_rows(self) -> list[tuple[int, SitePlan]]:
        """Its sites, with their indices in the manifest."""
        return [(self.journal_index + i, site) for i, site in enumerate(self.plan.sites())]

    def journal_indices(self) -> range:
        """The indices alone."""
        return range(self.journal_index, self.journal_index + 1 + len(self.plan.others))
