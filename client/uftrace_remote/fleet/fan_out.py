"""One question to many hosts at once, bounded, with a deadline for each of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from uftrace_remote.errors import ConnectionFailedError, SomeHostsFailedError, UftraceError

# Enough to hide round trips. Every further one costs memory here, and a burst
# of handshakes makes all of them late.
MOST_AT_ONCE = 64

_Host = TypeVar("_Host")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[_Host, _Value]):
    """What one host answered: a value, or an error.

    Attributes:
        host: Which one.
        value: Its answer; None where there is an error.
        error: Why there is none.
        seconds: How long it took, without waiting for its turn.
    """

    host: _Host
    value: _Value | None
    error: UftraceError | None
    seconds: float


async def fan_out(
    hosts: Sequence[_Host],
    ask: Callable[[_Host], Awaitable[_Value]],
    *,
    deadline: float,
    most_at_once: int = MOST_AT_ONCE,
    name: Callable[[_Host], object] = str,
    on_outcome: Callable[[Outcome[_Host, _Value]], None] | None = None,
) -> tuple[Outcome[_Host, _Value], ...]:
    """Asks every host, and waits for all answers.

    A host that is slow or frozen keeps its place among those that are asked
    at once until its deadline; nobody else waits for it.

    Args:
        hosts: Whom to ask.
        ask: Asks one of them. What it raises of `UftraceError` is that host's
            outcome; anything else ends the whole.
        deadline: Seconds that each has, from its own turn on.
        most_at_once: How many are asked at the same time.
        name: What errors call a host.
        on_outcome: Told about each outcome as it comes.

    Returns:
        The outcomes, in the order of `hosts`.
    """
    outcomes: list[Outcome[_Host, _Value] | None] = [None] * len(hosts)
    turns = iter(enumerate(hosts))

    async def work() -> None:
        for place, host in turns:
            outcome = await _ask_one(host, ask, deadline, name)
            outcomes[place] = outcome
            if on_outcome is not None:
                on_outcome(outcome)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(most_at_once, len(hosts))):
                workers.create_task(work())
    except BaseExceptionGroup as errors:
        # One bug is as good as several, and a traceback of one can be read.
        raise errors.exceptions[0] from None
    return tuple(outcome for outcome in outcomes if outcome is not None)


def failure_of(outcomes: Sequence[Outcome[_Host, _Value]]) -> UftraceError | None:
    """What failures mean for the whole.

    Returns:
        None where every host answered; `SomeHostsFailedError` where some did;
        else the error that most of them had, about all.
    """
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if not errors:
        return None
    if len(errors) < len(outcomes):
        return SomeHostsFailedError(
            f"{len(errors):,} of {len(outcomes):,} hosts failed",
            hint="the others answered; each failure is shown with its host",
        )
    if len(errors) == 1:
        return errors[0]
    kinds = Counter((type(error), error.reason) for error in errors)
    kind, reason = kinds.most_common(1)[0][0]
    return kind(
        f"all {len(errors):,} hosts failed",
        reason=reason,
        hint="each failure is shown with its host",
    )


async def _ask_one(
    host: _Host,
    ask: Callable[[_Host], Awaitable[_Value]],
    deadline: float,
    name: Callable[[_Host], object],
) -> Outcome[_Host, _Value]:
    start = time.monotonic()
    value: _Value | None = None
    failed: UftraceError | None = None
    limit = asyncio.timeout(deadline)
    try:
        async with limit:
            value = await ask(host)
    except UftraceError as error:
        failed = error
    except TimeoutError:
        # Not every TimeoutError is ours: one from inside of `ask` is a bug there.
        if not limit.expired():
            raise
        failed = ConnectionFailedError(
            f"the agent at {name(host)} did not answer in {deadline:.3g} s",
            reason="DEADLINE_EXCEEDED",
            hint="is the agent frozen, or a firewall in between? --timeout waits longer",
        )
    return Outcome(host, value, failed, time.monotonic() - start)
