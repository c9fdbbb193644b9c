"""All sessions of an agent: one a process, found by id or by process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import structlog

from uftrace_agent.engine.exit_rules import ProcessTraits
from uftrace_agent.engine.model import Writer
from uftrace_agent.engine.native import native_architecture, scratch_layout
from uftrace_agent.engine.neighbours import other_tracer
from uftrace_agent.engine.planner import Planned, Planner, PlanOptions
from uftrace_agent.engine.probe_cost import ASSUMED, ProbeCost, measure_probe_cost
from uftrace_agent.engine.program import Program, ProgramFunction
from uftrace_agent.engine.unwinder import find_unwinders
from uftrace_agent.engine.writer_choice import WriterChoice
from uftrace_agent.errors import (
    AgentError,
    AlreadyHeldError,
    BusyTargetError,
    NoSuchSessionError,
)
from uftrace_agent.process.identity import ProcessId, is_running, resolve
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.shadow_stack import has_shadow_stack
from uftrace_agent.session.attaching import Attachment, adopt, attach, check_attachable
from uftrace_agent.session.budget import NO_CHANGE, LimitChange, Limits
from uftrace_agent.session.coordination import Coordination
from uftrace_agent.session.function_names import function_ref
from uftrace_agent.session.restoring import instrumented_processes, restore_orphan
from uftrace_agent.session.session import END_SHUTDOWN, Session
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
    RecordingOptions,
    SessionInfo,
    TracepointInfo,
)
from uftrace_agent.symbols.cache import ImageCache

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_SHUTDOWN_TRIES: Final = 5


class SessionManager:
    """The sessions of one agent.

    Args:
        state_dir: The agent's state directory; indices of symbols are cached in it.
        limits: What a session may cost, unless somebody says otherwise.
    """

    def __init__(self, state_dir: Path, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._cost = ASSUMED
        self._measuring: asyncio.Task[None] | None = None
        self._images = ImageCache(str(state_dir / "symbols"))
        self._sessions: dict[str, Session] = {}
        # Detached processes that still have the annex: it serves again (and keeps
        # its plans), so that attaching a thousand times adds nothing.
        self._parked: dict[ProcessId, tuple[RecordingOptions, Attachment]] = {}
        # One attach per process at a time: a second one waits and joins.
        self._attaching: dict[int, asyncio.Lock] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def attach(
        self,
        process: ProcessId,
        owner: str,
        options: RecordingOptions,
        limits: LimitChange = NO_CHANGE,
    ) -> AttachOutcome:
        """Hold a process, or join the session that holds it already."""
        named = resolve(process)
        lock = self._attaching.setdefault(named.pid, asyncio.Lock())
        async with lock:
            known = self._find(named)
            if known is not None and known.is_ending:
                await self._watchers[known.session_id]
                known = None
            if known is not None:
                return AttachOutcome(known.info(), False, 0, 0)
            attachment = await self._attachment(named, options)
            allowed = self.limits.changed(limits)
            session = Session.of(named, owner, attachment, allowed, lambda: self._cost)
            self._keep(session, options)
        return AttachOutcome(session.info(), True, session.attach_pause_ns, session.restored_sites)

    def _keep(self, session: Session, options: RecordingOptions) -> None:
        self._sessions[session.session_id] = session
        watcher = asyncio.create_task(self._forget_when_ended(session, options))
        self._watchers[session.session_id] = watcher

    async def adopt(self) -> None:
        """Go on with the sessions that an agent which died has left on this host; where
        that cannot be, set back what it patched. The cost of a probe is measured
        meanwhile, and beyond."""
        self._measuring = asyncio.create_task(self._measure())
        for process in await asyncio.to_thread(instrumented_processes):
            try:
                await self._adopt(process)
            except AlreadyHeldError as error:
                _log.info("a process belongs to another agent", pid=process.pid, why=error.message)
            except (AgentError, OSError) as error:
                _log.error(
                    "a process stays as a dead agent left it",
                    pid=process.pid,
                    reason=error.reason if isinstance(error, AgentError) else "IO_ERROR",
                    error=str(error),
                    hint=error.hint if isinstance(error, AgentError) else "",
                )

    async def _measure(self) -> None:
        self._cost = await asyncio.to_thread(measure_probe_cost)
        if not self._cost.measured:
            _log.warning("the cost of a probe is assumed", why=self._cost.detail)

    async def probe_cost(self) -> ProbeCost:
        """What a probe costs on this host; measured once, at the start."""
        if self._measuring is not None:
            await asyncio.shield(self._measuring)
        return self._cost

    async def _adopt(self, process: ProcessId) -> None:
        attachment = await asyncio.to_thread(adopt, process, self._images)
        if attachment is not None and attachment.manifest.session.session_id in self._sessions:
            # The process can write its journal too: two sessions have one name.
            attachment.park()
            attachment.close()
            attachment = None
        if attachment is None:
            restored = await asyncio.to_thread(restore_orphan, process)
            if restored:
                _log.warning("restored what a dead agent left", pid=process.pid, sites=restored)
            return
        session = Session.adopted(process, attachment, self.limits, lambda: self._cost)
        rings = attachment.annex.ring_options
        self._keep(session, RecordingOptions(rings.ring_bytes, rings.ring_count - 1))
        _log.warning(
            "took over the session of an agent that died",
            pid=process.pid,
            session=session.session_id,
            owner=session.owner,
            tracepoints=len(session.enabled_addresses()),
            undone_sites=attachment.restored_sites,
        )

    async def _attachment(self, process: ProcessId, options: RecordingOptions) -> Attachment:
        for other in [known for known in self._parked if not is_running(known)]:
            self._parked.pop(other)[1].close()
        parked = self._parked.pop(process, None)
        if parked is not None:
            if parked[0] == options and parked[1].is_intact():
                try:
                    await asyncio.to_thread(parked[1].resume, process)
                except AgentError:
                    self._parked[process] = parked
                    raise
                return parked[1]
            parked[1].close()
        return await asyncio.to_thread(attach, process, options, self._images)

    async def _forget_when_ended(self, session: Session, options: RecordingOptions) -> None:
        await session.ended
        self._sessions.pop(session.session_id, None)
        attachment = session.parked()
        if attachment is not None:
            attachment.park()
            self._parked[session.process] = (options, attachment)
        attaching = self._attaching.get(session.process.pid)
        if attaching is not None and not attaching.locked():
            del self._attaching[session.process.pid]
        self._watchers.pop(session.session_id)
        _log.info(
            "session ended",
            session=session.session_id,
            pid=session.process.pid,
            reason=session.end_detail,
        )

    def is_used(self, session_id: str) -> bool:
        """Whether a tracepoint is enabled, a patch prepared, or a stream open."""
        session = self._get(session_id)
        info = session.info()
        return bool(info.tracepoint_count or info.stream_count or session.coordination.is_busy)

    async def detach(self, session_id: str) -> DetachOutcome:
        """Leave the process as it was."""
        return await self._get(session_id).detach()

    async def patch(
        self, session_id: str, order: PatchOrder, answer: Callable[[PatchOutcome], _T]
    ) -> _T:
        """Enable tracepoints; `answer` makes the reply, on the session's own thread."""
        return await self._get(session_id).patch(order, answer)

    async def unpatch(
        self,
        session_id: str,
        patterns: Sequence[str],
        writer: Writer,
        answer: Callable[[PatchOutcome], _T],
    ) -> _T:
        """Disable tracepoints; no patterns means all. `answer` as for `patch`."""
        return await self._get(session_id).unpatch(patterns, writer, answer)

    def coordination(self, session_id: str) -> Coordination:
        """Where a session's patches are prepared and committed."""
        return self._get(session_id).coordination

    async def set_limits(
        self, session_id: str, change: LimitChange, patterns: Sequence[str]
    ) -> LimitsOutcome:
        """Change what a session may cost, or, with patterns, what these functions may."""
        return await self._get(session_id).set_limits(change, patterns)

    async def renew_lease(self, session_id: str, lease: LeaseOrder) -> SessionInfo:
        """Have a lease end that long from now."""
        return await self._get(session_id).renew_lease(lease)

    async def release_lease(self, session_id: str, name: str, keep: bool) -> LeaseOutcome:
        """End a lease now; with `keep`, what it holds stays."""
        return await self._get(session_id).release_lease(name, keep)

    async def list_functions(
        self, process: ProcessId, patterns: Sequence[str], plan: PlanOptions | None, limit: int
    ) -> tuple[int, Sequence[FunctionPlan]]:
        """How many functions match, and those within the limit (0: all); with options, also
        how each would be patched.

        Nothing of the process is touched, attached or not.
        """
        named = resolve(process)
        session = self._find(named)
        enabled = session.enabled_addresses() if session else set()
        return await asyncio.to_thread(
            self._list_functions, named, patterns or ["*"], plan, limit, enabled
        )

    def _list_functions(
        self,
        process: ProcessId,
        patterns: Sequence[str],
        plan: PlanOptions | None,
        limit: int,
        enabled: set[int],
    ) -> tuple[int, Sequence[FunctionPlan]]:
        check_attachable(process.pid)
        with ProcessMemory(process.pid) as memory:
            program = Program(memory, self._images)
            program.refresh()
            found = program.select(patterns)
            chosen = found[:limit] if limit else found
            if plan is None:
                return len(found), [
                    FunctionPlan(function_ref(f), enabled=f.address in enabled) for f in chosen
                ]
            has_trap = native_architecture().has_trap_writer
            choice = WriterChoice(process.pid, program.modules, plan.writer, has_trap=has_trap)
            return len(found), [
                _explained(planned, choice, enabled)
                for planned in _plan(program, process.pid, chosen, plan)
            ]

    def sessions(self) -> list[SessionInfo]:
        """The sessions, oldest first."""
        return [session.info() for session in self._sessions.values()]

    def session_of(self, pid: int) -> str:
        """The session that holds a process, or an empty string."""
        for session in self._sessions.values():
            if session.process.pid == pid:
                return session.session_id
        return ""

    def process_of(self, session_id: str) -> ProcessId | None:
        """The process of a session, or None where there is no such session."""
        session = self._sessions.get(session_id)
        return session.process if session is not None else None

    def tracepoints(self, session_id: str) -> list[TracepointInfo]:
        """The functions that are enabled or throttled, by rising function id."""
        return self._get(session_id).tracepoints()

    def stream(
        self, session_id: str, after_sequence: int, include_buffered: bool
    ) -> AsyncIterator[EventBatch]:
        """The session's batches, until it ends."""
        return self._get(session_id).stream(after_sequence, include_buffered)

    async def shutdown(self) -> None:
        """Detach every session; streams end with their last batch."""
        await asyncio.gather(*(self._leave(s) for s in list(self._sessions.values())))
        await asyncio.gather(*self._watchers.values())
        if self._measuring is not None:
            await self._measuring
        for _, attachment in self._parked.values():
            attachment.close()
        self._parked.clear()

    async def _leave(self, session: Session) -> None:
        for attempt in range(_SHUTDOWN_TRIES):
            try:
                await session.detach(END_SHUTDOWN)
                return
            except BusyTargetError as error:
                _log.warning(
                    "a process did not stop in time",
                    pid=session.process.pid,
                    attempt=attempt + 1,
                    error=error.message,
                )
            except AgentError as error:
                _log.error("could not detach", pid=session.process.pid, error=error.message)
                return

    def _find(self, process: ProcessId) -> Session | None:
        for session in self._sessions.values():
            if session.process == process:
                return session
        return None

    def _get(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise NoSuchSessionError(
                f"there is no session {session_id!r}",
                hint="it ended, or belongs to another agent: attach again",
            )
        return session


def _plan(
    program: Program, pid: int, functions: Sequence[ProgramFunction], options: PlanOptions
) -> list[Planned]:
    architecture = native_architecture()
    layout = scratch_layout(pid, architecture)
    unwinders = find_unwinders(program.modules)
    traits = ProcessTraits(has_shadow_stack(pid), unwinders.unhookable)
    reserved = frozenset(unwinder.address for unwinder in unwinders.hookable)
    planner = Planner(
        architecture, layout, traits, reserved, program.memory, other_tracer(program.modules)
    )
    return planner.plan(functions, 1, options)


def _explained(planned: Planned, choice: WriterChoice, enabled: set[int]) -> FunctionPlan:
    plan, unsuitable = planned.plan, choice.refusal(planned.function)
    if plan is not None and unsuitable is not None:
        return FunctionPlan(
            function=function_ref(planned.function),
            refusal=unsuitable.refusal,
            detail=unsuitable.detail,
            enabled=planned.function.address in enabled,
            kind=plan.kind,
        )
    return FunctionPlan(
        function=function_ref(planned.function),
        form=plan.form if plan else None,
        writer=choice.of_function(planned.function, plan) if plan else None,
        refusal=planned.refusal,
        exit_refusal=plan.exit_refusal if plan else None,
        detail=plan.detail if plan else planned.detail,
        enabled=planned.function.address in enabled,
        kind=plan.kind if plan else planned.kind,
    )
