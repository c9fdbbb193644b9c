"""Which leases hold which tracepoints, here and in the journal."""

from __future__ import annotations

from collections.abc import Iterable

from uftrace_agent.engine.manifest import Manifest
from uftrace_agent.engine.tracepoint import Tracepoint


def begin(manifest: Manifest, tracepoints: Iterable[Tracepoint], lease: int) -> None:
    """These are about to be enabled, by this lease alone; 0: for good."""
    _set(manifest, [(tracepoint, lease) for tracepoint in tracepoints])


def extend(manifest: Manifest, tracepoints: Iterable[Tracepoint], lease: int) -> None:
    """These are enabled, and asked for by this lease too; 0: for good from now on."""
    _set(
        manifest,
        [
            (tracepoint, tracepoint.leases | lease if lease else 0)
            for tracepoint in tracepoints
            if tracepoint.leases
        ],
    )


def lapse(manifest: Manifest, tracepoints: Iterable[Tracepoint], alive: int) -> list[Tracepoint]:
    """Let go of leases that have ended.

    Args:
        manifest: The journal.
        tracepoints: Those that are enabled.
        alive: The bits of the leases that have not ended.

    Returns:
        What no lease holds any more, and is to be disabled.
    """
    leased = [tracepoint for tracepoint in tracepoints if tracepoint.leases]
    _set(manifest, [(one, one.leases & alive) for one in leased if one.leases & alive])
    return [one for one in leased if not one.leases & alive]


def _set(manifest: Manifest, changes: Iterable[tuple[Tracepoint, int]]) -> None:
    by_leases: dict[int, list[int]] = {}
    for tracepoint, leases in changes:
        if tracepoint.leases == leases:
            continue
        tracepoint.leases = leases
        if tracepoint.is_journaled:
            by_leases.setdefault(leases, []).extend(tracepoint.journal_indices())
    for leases, indices in by_leases.items():
        manifest.set_leases(sorted(indices), leases)
