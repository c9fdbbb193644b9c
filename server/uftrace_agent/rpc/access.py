"""Who may make which call: proof, role, policy, in this order, before anything else.

Works on the fields that requests of one kind share (`process`, `session_id`,
`limits`, `lease`, ...), so that a new RPC is under the policy without a line
here. Changes that are not allowed are in the audit trail too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Protocol

from google.protobuf.message import Message

from uftrace.agent.v1 import coordination_pb2
from uftrace_agent.errors import AgentError, ForbiddenError, NotFoundError
from uftrace_agent.rpc import convert
from uftrace_agent.rpc.audit_trail import AuditTrail
from uftrace_agent.rpc.auth import Authenticate
from uftrace_agent.rpc.caller import Caller, set_caller
from uftrace_agent.rpc.handlers import Context, Guard, GuardInterceptor
from uftrace_agent.rpc.rights import is_open, right_of
from uftrace_agent.session.budget import Limits
from uftrace_agent.session.types import ProcessId
from uftrace_agent.trust.policy import Asked, Maxima, Policy
from uftrace_agent.trust.process_facts import ProcessFacts, process_facts
from uftrace_agent.trust.roles import Identity, Role


class Processes(Protocol):
    """What is asked of the session layer."""

    @property
    def limits(self) -> Limits:
        """What a session may cost, unless somebody says otherwise."""
        ...

    def process_of(self, session_id: str) -> ProcessId | None:
        """The process of a session, or None where there is none."""
        ...


class Access:
    """Lets calls pass, or not.

    Args:
        authenticate: Finds out who calls.
        policy: Gives the rules as they stand now; None where there are none.
        processes: Knows which process a session is of.
        trail: Where changes that are not allowed are written down.
    """

    def __init__(
        self,
        authenticate: Authenticate,
        policy: Callable[[], Policy] | None,
        processes: Processes,
        trail: AuditTrail,
    ) -> None:
        self._authenticate = authenticate
        self._policy = policy
        self._processes = processes
        self._trail = trail

    def interceptor(self) -> GuardInterceptor:
        """Make the interceptor that asks this for every call."""
        return GuardInterceptor(self._guard_of)

    def _guard_of(self, method: str) -> Guard | None:
        if is_open(method):
            return None
        needed = right_of(method)
        name = method.rpartition("/")[2]

        @contextlib.asynccontextmanager
        async def guard(context: Context, message: Any) -> AsyncIterator[None]:
            request, last = _wrapped(message)
            identity = self._authenticate(context)
            caller = Caller(identity)
            try:
                if identity.role < needed:
                    raise _too_low(identity, needed, name)
                facts = self._facts(request, change=needed > Role.VIEW)
                caller = Caller(identity, facts)
                if facts is not None and self._policy is not None:
                    change = needed > Role.VIEW
                    self._apply_policy(identity, facts, request, last, change=change)
            except AgentError as error:
                if needed > Role.VIEW:
                    line = self._trail.line(context, message, _target(request), caller)
                    line.failed(error, denied=True)
                raise
            set_caller(caller)
            yield

        return guard

    # Of a request that names no process or session there is nothing to know, nor
    # of one whose process is gone: the service itself says so, or knows the
    # answer that this very request had before.
    def _facts(self, request: Any, *, change: bool) -> ProcessFacts | None:
        if not isinstance(request, Message) or not (change or self._policy):
            return None
        names = request.DESCRIPTOR.fields_by_name
        if "process" in names:
            return self._named_process(request)
        process = self._processes.process_of(_text(request, "session_id"))
        if process is None:
            return None
        try:
            return process_facts(process)
        except NotFoundError:
            return None

    def _named_process(self, request: Any) -> ProcessFacts | None:
        reference = request.process
        if reference.pid <= 0:
            return None
        try:
            facts = process_facts(convert.process_id(reference))
        except NotFoundError:
            # Without a policy the service says the same. With one, nothing may
            # pass: the pid could be somebody's a moment later.
            if self._policy is not None:
                raise
            return None
        if self._policy is not None:
            # What was looked at is what is meant, whoever gets the pid next.
            reference.CopyFrom(convert.process_ref(facts.process))
        return facts

    def _apply_policy(
        self, identity: Identity, facts: ProcessFacts, request: Any, last: Any, *, change: bool
    ) -> None:
        assert self._policy is not None
        asked = _asked(request, change=change)
        if last is not None:
            asked = _in_the_end(asked, last)
        maxima = self._policy().check(identity, facts, asked)
        # Elsewhere, what is not said is "as it was".
        if "process" in request.DESCRIPTOR.fields_by_name and change:
            _lower_defaults(request, maxima, self._processes.limits)


def _too_low(identity: Identity, needed: Role, call: str) -> ForbiddenError:
    return ForbiddenError(
        f"{call} wants the role {needed.word}, and {identity.name} has {identity.role.word}",
        reason="ROLE_TOO_LOW",
        hint=f"log in with a token or a certificate of the role {needed.word}",
        metadata={"role": identity.role.word, "needed": needed.word, "rule": "roles"},
    )


# What a preparation prepares has the fields that count; it says itself what is to become
# of it.
def _wrapped(request: Any) -> tuple[Any, coordination_pb2.PreparePatchRequest | None]:
    if isinstance(request, coordination_pb2.PreparePatchRequest):
        return request.patch, request
    return request, None


def _target(request: Any) -> str:
    if session_id := _text(request, "session_id"):
        return f"session {session_id}"
    process = getattr(request, "process", None)
    return f"pid {process.pid}" if process is not None else ""


def _text(request: Any, name: str) -> str:
    return str(getattr(request, name, ""))


def _has(request: Any, name: str) -> bool:
    return name in request.DESCRIPTOR.fields_by_name and request.HasField(name)


# What a request asks for, by the names that its fields have in all requests.
def _asked(request: Any, *, change: bool) -> Asked:
    names = request.DESCRIPTOR.fields_by_name
    dry_run = getattr(request, "dry_run", False)
    budget = rate = None
    if _has(request, "limits"):
        wanted = convert.limit_change(request.limits)
        budget, rate = wanted.cpu, wanted.rate
    leased = _has(request, "lease")
    enables = "patterns" in names and "lease" in names
    return Asked(
        change=change,
        budget=budget,
        rate=rate,
        # Limits beside patterns are of those functions alone.
        own=bool(getattr(request, "patterns", ())),
        lease_ns=request.lease.duration_nanos if leased else None,
        lasting=(enables and not leased and not dry_run) or bool(getattr(request, "keep", False)),
    )


# The lease of a preparation lasts until everybody has changed.
def _in_the_end(asked: Asked, last: coordination_pb2.PreparePatchRequest) -> Asked:
    lease_ns = asked.lease_ns
    if last.HasField("last_lease"):
        lease_ns = max(lease_ns or 0, last.last_lease.duration_nanos)
    return replace(asked, lease_ns=lease_ns, lasting=asked.lasting or last.keep)


# Whoever says nothing gets what is allowed, and is not refused for the agent's default.
def _lower_defaults(request: Any, maxima: Maxima, default: Limits) -> None:
    if "limits" not in request.DESCRIPTOR.fields_by_name:
        return
    limits = request.limits
    if not limits.HasField("cpu_share") and default.cpu > maxima.budget < math.inf:
        limits.cpu_share = maxima.budget
    if not limits.HasField("calls_per_second") and default.rate > maxima.rate < math.inf:
        limits.calls_per_second = maxima.rate
