"""What a session does about tracepoints that cost too much: it takes them out, says so,
and remembers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from uftrace_agent.engine.probe_cost import ProbeCost
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.recording.call_tally import CallTally
from uftrace_agent.recording.rings import RingReader
from uftrace_agent.session.budget import (
    NO_CHANGE,
    Budget,
    Excess,
    LimitChange,
    LimitKind,
    Limits,
    Numbers,
)
from uftrace_agent.session.budget_note import BudgetNote, NotedFunction
from uftrace_agent.session.function_names import function_ref
from uftrace_agent.session.types import Throttle

_LOOK_NS: Final = 45_000_000


@dataclass(frozen=True, slots=True)
class ThrottledFunction:
    """A function that must not be patched again; its tracepoint, unless that was
    another agent's."""

    function: ProgramFunction
    tracepoint: Tracepoint | None
    throttle: Throttle


class Throttling:
    """The budget of one session, and what is out because of it.

    Methods are called on the drain thread (`look`), on the session's worker and on the
    event loop.

    Args:
        rings: Where calls are counted.
        limits: What is allowed at first.
        cost: What a probe costs, as far as is known now.
        unpatch: Has tracepoints of these addresses taken out, soon, on the worker;
            afterwards `taken_out` is to be called.
        keep: Writes down what the next agent has to know; called on the worker.
    """

    def __init__(
        self,
        rings: RingReader,
        limits: Limits,
        cost: Callable[[], ProbeCost],
        unpatch: Callable[[Sequence[int]], None],
        keep: Callable[[bytes], None],
    ) -> None:
        self._rings = rings
        self._cost_now = cost
        self._cost = cost()
        self._unpatch = unpatch
        self._keep = keep
        self._budget = Budget(limits, self._cost.call_ns, self._cost.entry_ns)
        self._tally: CallTally | None = None
        self._looked_ns = 0
        self._lock = threading.RLock()
        # By live address.
        self._watched: dict[int, Tracepoint] = {}
        self._out: dict[int, ThrottledFunction] = {}
        self._own: dict[int, LimitChange] = {}
        self._judged: dict[int, Excess] = {}
        self._notices: list[Throttle] = []
        # By record id: the function that pays for it.
        self._payer: dict[int, int] = {}

    # -- on the drain thread -----------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing is limited, so that nobody has to look."""
        return self._budget.is_idle

    def look(self, now_ns: int) -> None:
        """See what was called since the last look, if that is long enough ago."""
        if now_ns - self._looked_ns < _LOOK_NS:
            return
        seconds = (now_ns - self._looked_ns) * 1e-9
        self._looked_ns = now_ns
        with self._lock:
            if self._budget.is_idle:
                self._tally = None
                return
            if self._tally is None:
                # What was before nobody knows the time of.
                self._tally = CallTally(self._rings)
                self._budget.restart()
                return
            self._follow_cost()
            excesses = self._budget.judge(seconds, self._by_function(self._tally.take()))
            by_id = {each.function_id: address for address, each in self._watched.items()}
            judged = {by_id[excess.function_id]: excess for excess in excesses}
            self._judged |= judged
        if judged:
            self._unpatch(list(judged))

    def _follow_cost(self) -> None:
        cost = self._cost_now()
        if cost != self._cost:
            self._cost = cost
            self._budget.set_costs(cost.call_ns, cost.entry_ns)

    # Events inside a function are its own.
    def _by_function(self, calls: Numbers) -> Numbers:
        for record_id, function_id in self._payer.items():
            if record_id < len(calls) and function_id < len(calls):
                calls[function_id] += calls[record_id]
                calls[record_id] = 0
        return calls

    @property
    def has_notices(self) -> bool:
        """Whether something was taken out that no reader knows of."""
        return bool(self._notices)

    def take_notices(self) -> list[Throttle]:
        """What was taken out since the last call."""
        with self._lock:
            notices, self._notices = self._notices, []
        return notices

    # -- on the worker -----------------------------------------------------

    def announce(self, tracepoints: Sequence[Tracepoint]) -> None:
        """These are about to record for the first time."""
        with self._lock:
            for tracepoint in tracepoints:
                events = {site.record_id for site in tracepoint.plan.others if site.record_id}
                for record_id in events - {tracepoint.function_id}:
                    self._payer[record_id] = tracepoint.function_id
                self._rings.make_room(max(events | {tracepoint.function_id}))

    def enabled(self, tracepoints: Collection[Tracepoint]) -> None:
        """These are patched, from now on or again."""
        with self._lock:
            was_out = False
            for tracepoint in tracepoints:
                address, function_id = tracepoint.function.address, tracepoint.function_id
                self._watched[address] = tracepoint
                was_out |= self._out.pop(address, None) is not None
                self._judged.pop(address, None)
                self._budget.set_own(function_id, self._own.get(address, NO_CHANGE))
                self._budget.watch(function_id, has_exit=tracepoint.plan.has_exit)
            if was_out:
                self._write_down()

    def disabled(self, tracepoints: Collection[Tracepoint]) -> None:
        """Somebody has unpatched these; what is out stays out."""
        with self._lock:
            self._budget.forget([each.function_id for each in tracepoints])
            for tracepoint in tracepoints:
                self._watched.pop(tracepoint.function.address, None)

    def taken_out(self, addresses: Sequence[int]) -> list[Throttle]:
        """The worker has done what `unpatch` asked for; what is still enabled could not
        be taken out and is looked at anew. What is out now."""
        out: list[Throttle] = []
        with self._lock:
            for address in addresses:
                tracepoint = self._watched.get(address)
                excess = self._judged.pop(address, None)
                if tracepoint is None or excess is None:
                    continue
                if tracepoint.enabled:
                    has_exit = tracepoint.plan.has_exit
                    self._budget.watch(tracepoint.function_id, has_exit=has_exit)
                    continue
                del self._watched[address]
                throttle = _throttle(tracepoint, excess)
                self._out[address] = ThrottledFunction(tracepoint.function, tracepoint, throttle)
                out.append(throttle)
            self._notices += out
            self._write_down()
        return out

    def set_limits(self, change: LimitChange) -> int:
        """Change the session's limits; how many throttled functions that lets in again."""
        with self._lock:
            self._budget.limits = self._budget.limits.changed(change)
            raised = self._raise(change, [a for a in self._out if a not in self._own])
            self._write_down()
        return raised

    def set_own(self, addresses: Collection[int], change: LimitChange) -> int:
        """Change the limits of some functions alone; how many throttled ones that lets in."""
        with self._lock:
            for address in addresses:
                self._own[address] = change.over(self._own.get(address, NO_CHANGE))
                tracepoint = self._watched.get(address)
                if tracepoint is not None:
                    self._budget.set_own(tracepoint.function_id, self._own[address])
            raised = self._raise(change, addresses)
            self._write_down()
        return raised

    def _raise(self, change: LimitChange, addresses: Collection[int]) -> int:
        raised = 0
        for address in addresses:
            out = self._out.get(address)
            if out is None:
                continue
            limit = out.throttle.limit
            allowed = change.cpu if limit is LimitKind.CPU else change.rate
            if allowed is not None and allowed > out.throttle.allowed:
                throttle = replace(out.throttle, raised=True)
                self._out[address] = replace(out, throttle=throttle)
                raised += 1
        return raised

    # -- anywhere ----------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """What the session may cost."""
        return self._budget.limits

    def cpu(self) -> float:
        """What it costs, as a share of one processor."""
        with self._lock:
            return self._budget.cpu()

    def rates(self) -> Numbers:
        """Calls per second by function id."""
        with self._lock:
            return self._budget.rates()

    def own_limits(self) -> Mapping[int, LimitChange]:
        """Limits of single functions, by address."""
        with self._lock:
            return dict(self._own)

    def throttled(self) -> list[ThrottledFunction]:
        """What is out."""
        with self._lock:
            return list(self._out.values())

    def throttle_of(self, function: ProgramFunction) -> Throttle | None:
        """Why a function is out; None where it is not."""
        out = self._out.get(function.address)
        # A module that came to the place of another has other functions there.
        if out is None or function_ref(out.function) != function_ref(function):
            return None
        return out.throttle

    # -- across agents -----------------------------------------------------

    def begin(self) -> None:
        """Write the first note."""
        with self._lock:
            self._write_down()

    # What is out comes first: a note holds some dozens.
    def _write_down(self) -> None:
        functions = [
            NotedFunction(address, self._own.get(address, NO_CHANGE), out.throttle)
            for address, out in self._out.items()
        ]
        functions += [
            NotedFunction(address, own)
            for address, own in self._own.items()
            if address not in self._out
        ]
        self._keep(BudgetNote(self.limits, tuple(functions)).pack())

    def resume(self, note: BudgetNote, find: Callable[[int], ProgramFunction | None]) -> None:
        """Go on as the agent before left it.

        Args:
            note: What it has written.
            find: The function that begins at a live address.
        """
        with self._lock:
            self._budget.limits = note.limits
            for noted in note.functions:
                if noted.own:
                    self._own[noted.address] = noted.own
                function = find(noted.address)
                if noted.throttle is None or function is None:
                    continue
                throttle = _named(noted.throttle, function)
                self._out[noted.address] = ThrottledFunction(function, None, throttle)


def _throttle(tracepoint: Tracepoint, excess: Excess) -> Throttle:
    return _named(
        Throttle(
            function_id=excess.function_id,
            calls_per_second=excess.calls_per_second,
            cpu=excess.cpu,
            limit=excess.limit,
            allowed=excess.allowed,
            unix_ns=time.time_ns(),
        ),
        tracepoint.function,
    )


def _named(throttle: Throttle, function: ProgramFunction) -> Throttle:
    ref = function_ref(function)
    return replace(throttle, function=ref.name, module=ref.module)
