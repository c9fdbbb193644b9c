# Tracepoints that cost too much, and limits, in words.
from __future__ import annotations

from uftrace_remote.cli import _output
from uftrace_remote.enums import LimitKind
from uftrace_remote.values import EventBatch, Limits, ProbeCost, Throttle


def share(value: float) -> str:
    """A share of one processor in percent; 0.0512 is 5.1%."""
    return f"{value * 100:.3g}%" if value < 1 else f"{value * 100:,.0f}%"


def describe_limits(limits: Limits) -> str:
    """What is allowed."""
    cpu = f"{share(limits.cpu)} of a processor" if limits.cpu else "any processor time"
    rate = limits.calls_per_second
    return f"{cpu}, {f'{rate:,.0f}' if rate else 'any number of'} calls/s per function"


def describe_cost(cost: ProbeCost) -> str:
    """What a probe costs on a host."""
    how = "measured" if cost.measured else f"assumed: {cost.detail}"
    return f"a traced call costs {cost.call_ns:.0f} ns, an entry {cost.entry_ns:.0f} ns ({how})"


def describe_throttle(throttle: Throttle) -> str:
    """What a function did and what was allowed."""
    did = f"{throttle.calls_per_second:,.0f} calls/s, {share(throttle.cpu)} of a processor"
    if throttle.limit is LimitKind.RATE:
        return f"{did}; allowed: {throttle.allowed:,.0f} calls/s"
    return f"{did}; allowed: {share(throttle.allowed)}"


def advice(throttle: Throttle, target: str) -> str:
    """What to do about it."""
    if throttle.raised:
        return "its limit was raised: patch it again"
    command = f"uftrace-remote budget {target} '{throttle.function}' --cpu off --rate off"
    return f"{command}, then patch again"


class ThrottleNotes:
    """Says of each function once that it was taken out.

    Args:
        target: What was traced, as the user named it.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._known: set[tuple[int, int]] = set()

    def show(self, batch: EventBatch) -> None:
        """One line on stderr for each function that went out with this batch."""
        for throttle in batch.throttled:
            key = throttle.function_id, throttle.unix_ns
            if key in self._known:
                continue
            self._known.add(key)
            _output.note(
                f"# {throttle.function} taken out, it cost too much: "
                f"{describe_throttle(throttle)} ({advice(throttle, self._target)})"
            )
