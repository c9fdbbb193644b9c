"""The last stop of a session: what only a look at every stack can set back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.annex import Annex
from uftrace_agent.engine.site import Patch, SitePlan
from uftrace_agent.engine.writer import FrameRepair, StopOrder, write_stopped
from uftrace_agent.errors import BusyTargetError
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.runtime.host_library import SiteStatus

_ATTEMPTS_AT_REST: Final = 4


@dataclass(frozen=True, slots=True)
class Rest:
    """What was set back.

    Attributes:
        tails_are_back: Whether padding is as it was.
        frames: How many return addresses on stacks were set back.
        hooks_are_out: Whether the unwinders are as they were: not where a return address
            is signed and could not be signed anew.
        is_idle: No thread was in our code, or is to go on there after a signal handler:
            what is in it may be something else from now on.
    """

    tails_are_back: bool
    frames: int
    hooks_are_out: bool
    is_idle: bool


def set_back_at_rest(
    memory: ProcessMemory,
    annex: Annex,
    hooks: Sequence[Patch],
    parked: Sequence[SitePlan],
    deadline_ns: int,
    pauses: Pauses,
) -> Rest:
    """Set back hooks, tails in padding, and return addresses on stacks, at a moment at
    which no thread is in our code.

    Args:
        memory: The process's.
        annex: Its annex; the probes are off.
        hooks: Ways back of the unwinders' hooks.
        parked: Sites whose tails wait for being set back.
        deadline_ns: Of one stop.
        pauses: Gets how long threads stood still.

    Raises:
        BusyTargetError: The threads did not stop in time.
        TargetGoneError: The process ended.
    """
    repair = FrameRepair.read(memory, annex.thunks, annex.data.slots, sorted(annex.code_ranges))
    tails = [plan.tail.reversed() for plan in parked if plan.tail is not None]
    spans = [(tail.address, tail.end) for tail in tails]
    everywhere = sorted([*annex.code_ranges, *spans])
    stubs = sorted(one for one in annex.code_ranges if not one[0] <= annex.thunks < one[1])
    orders = [
        # Some handler may have interrupted a probe, and last (H67).
        StopOrder(
            tails,
            deadline_ns,
            everywhere,
            repair,
            attempts=_ATTEMPTS_AT_REST,
            watched=spans,
            resumed=stubs,
            hooks=hooks,
        ),
        StopOrder(tails, deadline_ns, everywhere, repair, watched=spans, hooks=hooks),
        # Some thread never leaves our code (starved, or stopped in it): that is no
        # danger, since the code stays.
        StopOrder(tails, 10 * deadline_ns, spans, repair, watched=spans, hooks=hooks),
    ]
    if tails:
        # Some stack holds an address in padding: then that stays as it is.
        orders.append(StopOrder((), 10 * deadline_ns, (), repair, hooks=hooks))
    for order in orders[:-1]:
        try:
            statuses, frames = write_stopped(memory, order, pauses)
        except BusyTargetError:
            continue
        return Rest(True, frames, _all_looked_at(statuses), order is orders[0])
    statuses, frames = write_stopped(memory, orders[-1], pauses)
    return Rest(not tails, frames, _all_looked_at(statuses), False)


def _all_looked_at(statuses: Sequence[SiteStatus]) -> bool:
    return SiteStatus.UNTOUCHED not in statuses
