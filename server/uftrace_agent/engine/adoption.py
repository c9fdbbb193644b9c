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
        disabled: Functions that are not, or will not be once `undo` is done: their stubs
            and places serve again, and records in the rings may carry their ids.
        hooks: Hooked unwinders, with their places in the journal.
        hooks_out: Unwinders that were hooked, likewise.
        parked: Sites whose padding waits for being set back, with their ids, by
            their places in the journal.
        undo: What was half done, or cannot be gone on with: places in the journal.
        next_id: The first id that no record carries.
    """

    tracepoints: list[Tracepoint] = field(default_factory=list)
    disabled: list[Tracepoint] = field(default_factory=list)
    hooks: list[tuple[int, SitePlan]] = field(default_factory=list)
    hooks_out: list[tuple[int, SitePlan]] = field(default_factory=list)
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
        if entry.phase is Phase.PARKED:
            inheritance.parked[row] = (entry.plan(), entry.function_id)
        if entry.function_id:
            by_function.setdefault(entry.function_id, []).append((row, entry))
        elif entry.phase is Phase.PATCHED:
            inheritance.hooks.append((row, entry.plan()))
        elif entry.phase not in (Phase.MAPPED, Phase.PARKED):
            if entry.facts.stub:
                inheritance.hooks_out.append((row, entry.plan()))
            if entry.may_be_changed:
                inheritance.undo.append(row)
    for function_id, sites in by_function.items():
        tracepoint = _tracepoint(function_id, sites, find, owner)
        if tracepoint is not None and tracepoint.enabled:
            inheritance.tracepoints.append(tracepoint)
            continue
        inheritance.undo += [
            row for row, entry in sites if entry.may_be_changed and entry.phase is not Phase.PARKED
        ]
        if tracepoint is not None:
            inheritance.disabled.append(tracepoint)
    return inheritance


def as_restored(found: FoundManifest) -> FoundManifest:
    """A journal none of whose sites is patched any more."""
    entries = [
        replace(entry, phase=Phase.FREE) if entry.may_be_changed else entry
        for entry in found.entries
    ]
    return replace(found, entries=tuple(entries))


def next_id(found: FoundManifest) -> int:
    """The first id that no record of the rings carries."""
    used = (max(entry.function_id, entry.facts.record_id) for entry in found.entries)
    return min(max(used, default=0) + 1, ID_MAX)


# None where some site is missing, or where threads would have to be moved with
# instructions that the journal does not name; disabled where not all are patched.
def _tracepoint(
    function_id: int, sites: list[tuple[int, Entry]], find: FindFunction, owner: str
) -> Tracepoint | None:
    first, last = sites[0], sites[-1]
    facts = last[1].facts
    is_whole = (
        all(entry.form is not Form.MULTI for _, entry in sites)
        and len(sites) == facts.sites == last[0] - first[0] + 1
        and facts.role is Role.ENTRY
    )
    function = find(facts.function) if is_whole else None
    if function is None:
        return None
    is_enabled = all(entry.phase is Phase.PATCHED for _, entry in sites)
    plan = replace(last[1].plan(), others=tuple(entry.plan() for _, entry in sites[:-1]))
    return Tracepoint(
        function_id,
        function,
        plan,
        not plan.has_exit and plan.exit_refusal is None,
        journal_index=first[0],
        is_journaled=True,
        enabled=is_enabled,
        owner=owner,
        leases=last[1].leases if is_enabled else 0,
    )
