"""What the service asks of the session layer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

from uftrace_agent.engine.model import Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.probe_cost import ProbeCost
from uftrace_agent.session.budget import NO_CHANGE, LimitChange, Limits
from uftrace_agent.session.coordination import Coordination
from uftrace_agent.session.types import (
    AttachOutcome,
    DetachOutcome,
    EventBatch,
    FunctionPlan,
    LeaseOrder,
    LeaseOutcome,
    LimitsOutcome,
    PatchOrder,
    PatchOutcome,
    ProcessId,
    RecordingOptions,
    SessionInfo,
    TracepointInfo,
)

_T = TypeVar("_T")


class SessionLayer(Protocol):
    """`session.manager.SessionManager`, as far as the service knows it.

    Every method may raise an `AgentError`, which becomes the RPC's status.
    """

    @property
    def limits(self) -> Limits:
        """What a session may cost, unless somebody says otherwise."""
        ...

    async def probe_cost(self) -> ProbeCost:
        """What a probe costs on this host."""
        ...

    async def attach(
        self,
        process: ProcessId,
        owner: str,
        options: RecordingOptions,
        limits: LimitChange = NO_CHANGE,
    ) -> AttachOutcome:
        """Hold a process, or join the session that holds it."""
        ...

    def is_used(self, session_id: str) -> bool:
        """Whether a tracepoint is enabled, a patch prepared, or a stream open."""
        ...

    async def detach(self, session_id: str) -> DetachOutcome:
        """Leave the process as it was."""
        ...

    async def patch(
        self, session_id: str, order: PatchOrder, answer: Callable[[PatchOutcome], _T]
    ) -> _T:
        """Enable tracepoints; `answer` makes the reply, on the session's own thread."""
        ...

    async def unpatch(
        self,
        session_id: str,
        patterns: Sequence[str],
        writer: Writer,
        answer: Callable[[PatchOutcome], _T],
    ) -> _T:
        """Disable tracepoints; no patterns means all. `answer` as for `patch`."""
        ...

    def coordination(self, session_id: str) -> Coordination:
        """Where a session's patches are prepared and committed."""
        ...

    async def set_limits(
        self, session_id: str, change: LimitChange, patterns: Sequence[str]
    ) -> LimitsOutcome:
        """Change what a session may cost, or, with patterns, what these functions may."""
        ...

    async def renew_lease(self, session_id: str, lease: LeaseOrder) -> SessionInfo:
        """Have a lease end that long from now."""
        ...

    async def release_lease(self, session_id: str, name: str, keep: bool) -> LeaseOutcome:
        """End a lease now; with `keep`, what it holds stays."""
        ...

    async def list_functions(
        self, process: ProcessId, patterns: Sequence[str], plan: PlanOptions | None, limit: int
    ) -> tuple[int, Sequence[FunctionPlan]]:
        """Return how many functions match, and those within the limit (0: all); with options,
        also how each would be patched."""
        ...

    def sessions(self) -> list[SessionInfo]:
        """The sessions, oldest first."""
        ...

    def session_of(self, pid: int) -> str:
        """The session that holds a process, or an empty string."""
        ...

    def process_of(self, session_id: str) -> ProcessId | None:
        """The process of a session, or None where there is no such session."""
        ...

    def tracepoints(self, session_id: str) -> list[TracepointInfo]:
        """The functions that are enabled or throttled, by rising function id."""
        ...

    def stream(
        self, session_id: str, after_sequence: int, include_buffered: bool
    ) -> AsyncIterator[EventBatch]:
        """The session's batches, until it ends."""
        ...

    async def adopt(self) -> None:
        """Go on with the sessions of an agent that died; before anything is served."""
        ...

    async def shutdown(self) -> None:
        """Detach every session; streams end with their last batch."""
        ...
