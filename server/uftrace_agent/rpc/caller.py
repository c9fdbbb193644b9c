"""Who makes the present call, for those below that write it down."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass

from uftrace_agent.trust.process_facts import ProcessFacts
from uftrace_agent.trust.roles import ANYONE, Identity


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and the process that the call is about, where that is known."""

    identity: Identity = ANYONE
    facts: ProcessFacts | None = None


# A call's task and the tasks that it starts share it.
_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


def set_caller(caller: Caller) -> None:
    """Say who makes the present call."""
    _caller.set(caller)


def present_caller() -> Caller:
    """Who makes the present call."""
    return _caller.get(Caller())
