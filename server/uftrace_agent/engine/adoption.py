"""What of another agent's tracepoints can be gone on with, from the journal alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from uftrace_agent.engine.journal_entry import Entry, Phase
from uftrace_agent.engine.manifest import FoundManifest
from uftrace_agent.engine.model import Form
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.site import Role, SitePlan
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.runtime.layout import ID_MAX

FindFunction = Callable[[int], ProgramFunction | None]


@dataclass(slots=True)
class Inheritance:
    """A journal, sorted by what is to become of its sites.

    Attributes:
        tracepoints: Functions all of whose sites are patched: they stay so.
        hooks: Hooked unwinders, with their places in the journal.
        parked: Sites whose padding waits for being set back, with their ids, by
            their places in the journal.
        undo: What was half done, or cannot be gone on with: places in the journal.
        next_id: The first id that no record carries.
    """

    tracepoints: list[Tracepoint] = field(default_factory=list)
    hooks: list[tuple[int, SitePlan]] = field(default_factory=list)
    parked: dict[int, tuple[SitePlan, int]] = field(default_factory=dict)
    undo: list[int] = field(default_factory=list)
    next_id: int = 1


def inherit(found: FoundManifest, find: FindFunction, owner: str) -> Inheritance:
    """Sort a journal.

    Args:
        found: The journal.
        find: The function that begins at a live address.
        owner: Whose its tracepoints are from now on.
    """
    inheritance = Inheritance(next_id=next_id(found))
    by_function: dict[int, list[tuple[int, Entry]]] = {}
    for row, entry in sorted(zip(found.rows, found.entries, strict=True), key=lambda pair: pair[0]):
        if not entry.may_be_changed:
            continue
        if entry.phase is Phase.PARKED:
            inheritance.parked[row] = (entry.plan(), entry.function_id)
        elif entry.function_id:
            by_function.setdefault(entry.function_id, []).append((row, entry))
        elif entry.phase is Phase.PATCHED:
            inheritance.hooks.append((row, entry.plan()))
        else:
            inheritance.undo.append(row)
    for function_id, sites in by_function.items():
        tracepoint = _tracepoint(function_id, sites, find, owner)
        if tracepoint is None:
            inheritance.undo += [row for row, _ in sites]
        else:
            inheritance.tracepoints.append(tracepoint)
    return inheritance


def next_id(found: FoundManifest) -> int:
    """The first id that no record of the rings carries."""
    used = (max(entry.function_id, entry.facts.record_id) for entry in found.entries)
    return min(max(used, default=0) + 1, ID_MAX)


# None where some site is half done or missing, or where threads would have to be moved
# with instructions that the journal does not name.
def _tracepoint(
    function_id: int, sites: list[tuple[int, Entry]], find: FindFunction, owner: str
) -> Tracepoint | None:
    first, last = sites[0], sites[-1]
    facts = last[1].facts
    is_whole = (
        all(entry.phase is Phase.PATCHED and entry.form is not Form.MULTI for _, entry in sites)
        and len(sites) == facts.sites == last[0] - first[0] + 1
        and facts.role is Role.ENTRY
    )
    function = find(facts.function) if is_whole else None
    if function is None:
        return None
    others = tuple(entry.plan() for _, entry in sites[:-1])
    return Tracepoint(
        function_id,
        function,
        replace(last[1].plan(), others=others),
        facts.entry_only,
        journal_index=first[0],
        is_journaled=True,
        enabled=True,
        owner=owner,
        leases=last[1].leases,
    )
