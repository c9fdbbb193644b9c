"""A session layer that touches no process: for what is the service's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from uftrace_agent.engine.model import Form, Refusal, Status, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.probe_cost import ProbeCost
from uftrace_agent.errors import NoSuchPreparationError, NoSuchSessionError
from uftrace_agent.session.budget import NO_CHANGE, LimitChange, Limits
from uftrace_agent.session.coordination import Coordination
from uftrace_agent.session.types import (
    AttachOutcome,
    DetachOutcome,
    EventBatch,
    FunctionPlan,
    FunctionRef,
    LeaseOrder,
    LeaseOutcome,
    LimitsOutcome,
    PatchOrder,
    PatchOutcome,
    PatchResult,
    ProcessId,
    RecordingOptions,
    SessionInfo,
    TracepointInfo,
)

_T = TypeVar("_T")

WORK = FunctionRef("work", "_Z4workv", "app", 0x401000, 64, ("toil",), 0x1000)


def session_info(session_id: str, process: ProcessId, owner: str) -> SessionInfo:
    return SessionInfo(
        session_id=session_id,
        process=process,
        owner=owner,
        attached_unix_ns=1,
        tracepoint_count=0,
        records_produced=0,
        records_lost=0,
        annex_bytes=4096,
        stream_count=0,
    )


@dataclass
class ScriptedSessions:
    """Answers at once, or when `may_finish` is set; raises `failure` where there is one."""

    held: dict[str, SessionInfo] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    plans: Sequence[FunctionPlan] = ()
    batches: Sequence[EventBatch] = ()
    failure: BaseException | None = None
    may_finish: asyncio.Event = field(default_factory=asyncio.Event)
    open_streams: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.may_finish.set()

    async def _called(self, *call: object) -> None:
        self.calls.append(call)
        await self.may_finish.wait()
        if self.failure is not None:
            raise self.failure

    async def probe_cost(self) -> ProbeCost:
        return ProbeCost(31.0, 15.0)

    async def set_limits(
        self, session_id: str, change: LimitChange, patterns: Sequence[str]
    ) -> LimitsOutcome:
        await self._called("set_limits", session_id, change, tuple(patterns))
        return LimitsOutcome(self._find(session_id), len(patterns), 0)

    async def renew_lease(self, session_id: str, lease: LeaseOrder) -> SessionInfo:
        await self._called("renew_lease", session_id, lease)
        return self._find(session_id)

    async def release_lease(self, session_id: str, name: str, keep: bool) -> LeaseOutcome:
        await self._called("release_lease", session_id, name, keep)
        return LeaseOutcome(self._find(session_id), 1)

    async def attach(
        self,
        process: ProcessId,
        owner: str,
        options: RecordingOptions,
        limits: LimitChange = NO_CHANGE,
    ) -> AttachOutcome:
        await self._called("attach", process, owner, options)
        session_id = f"s{len(self.held) + 1}"
        self.held[session_id] = session_info(session_id, process, owner)
        return AttachOutcome(self.held[session_id], True, 1000, 0)

    def is_used(self, session_id: str) -> bool:
        self._find(session_id)
        return False

    async def detach(self, session_id: str) -> DetachOutcome:
        await self._called("detach", session_id)
        self._find(session_id)
        del self.held[session_id]
        return DetachOutcome(3, 0, 1, 2000, 10, 0)

    async def patch(
        self, session_id: str, order: PatchOrder, answer: Callable[[PatchOutcome], _T]
    ) -> _T:
        await self._called("patch", session_id, order)
        self._find(session_id)
        outcome = PatchOutcome(
            [
                PatchResult(WORK, 1, Status.ENABLED, Form.PUN, Writer.BYTE),
                PatchResult(WORK, 2, Status.REFUSED, refusal=Refusal.TOO_SHORT, detail="1 byte"),
            ],
            longest_pause_ns=5,
            longest_pause_tid=7,
            elapsed_ns=9,
            plan_ns=4,
        )
        return answer(outcome)

    async def unpatch(
        self,
        session_id: str,
        patterns: Sequence[str],
        writer: Writer,
        answer: Callable[[PatchOutcome], _T],
    ) -> _T:
        await self._called("unpatch", session_id, tuple(patterns), writer)
        return answer(PatchOutcome([PatchResult(WORK, 1, Status.DISABLED)]))

    async def list_functions(
        self, process: ProcessId, patterns: Sequence[str], plan: PlanOptions | None, limit: int
    ) -> tuple[int, Sequence[FunctionPlan]]:
        await self._called("list_functions", process, tuple(patterns), plan, limit)
        return len(self.plans), self.plans

    def sessions(self) -> list[SessionInfo]:
        return list(self.held.values())

    def session_of(self, pid: int) -> str:
        return next((s.session_id for s in self.held.values() if s.process.pid == pid), "")

    def process_of(self, session_id: str) -> ProcessId | None:
        return self.held[session_id].process if session_id in self.held else None

    def tracepoints(self, session_id: str) -> list[TracepointInfo]:
        self._find(session_id)
        return [TracepointInfo(PatchResult(WORK, 1, Status.ENABLED, Form.PUN), "ann", 77)]

    async def stream(
        self, session_id: str, after_sequence: int, include_buffered: bool
    ) -> AsyncIterator[EventBatch]:
        self._find(session_id)
        self.open_streams += 1
        try:
            for batch in self.batches:
                if batch.sequence > after_sequence:
                    yield batch
            await self.ended.wait()
            yield EventBatch(sequence=999, end=4, end_detail="agent ends")
        finally:
            self.open_streams -= 1

    async def adopt(self) -> None:
        self.calls.append(("adopt",))

    async def shutdown(self) -> None:
        self.calls.append(("shutdown",))
        self.ended.set()

    def coordination(self, session_id: str) -> Coordination:
        self._find(session_id)
        raise NoSuchPreparationError("nothing is ever prepared here")

    def _find(self, session_id: str) -> SessionInfo:
        if session_id not in self.held:
            raise NoSuchSessionError(f"there is no session {session_id}")
        return self.held[session_id]
