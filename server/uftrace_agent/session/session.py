"""One attached process: its tracepoints, its records, its end.

Every operation runs on the session's one worker thread, so operations never
overlap; the rings are drained by a thread of their own.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from uftrace_agent.engine.manifest import SessionRecord
from uftrace_agent.engine.model import Status, Writer
from uftrace_agent.engine.probe_cost import ProbeCost
from uftrace_agent.engine.report import (
    EngineReport,
)
from uftrace_agent.errors import AgentError, BusyTargetError, InvalidRequestError, TargetGoneError
from uftrace_agent.process.address_space import executable_files
from uftrace_agent.recording.clock import TickClock
from uftrace_agent.recording.rings import RingReader
from uftrace_agent.session.attaching import Attachment
from uftrace_agent.session.budget import LimitChange, Limits
from uftrace_agent.session.budget_note import BudgetNote
from uftrace_agent.session.coordination import Coordination
from uftrace_agent.session.drainer import Drainer, Resumed
from uftrace_agent.session.feed import Feed
from uftrace_agent.session.leases import Leases
from uftrace_agent.session.process_end import exit_detail
from uftrace_agent.session.throttling import Throttling
from uftrace_agent.session.tracepoint_set import TracepointSet
from uftrace_agent.session.types import (
    DetachOutcome,
    EventBatch,
    LeaseOrder,
    LeaseOutcome,
    LimitsOutcome,
    MappedModule,
    PatchOrder,
    PatchOutcome,
    ProcessId,
    SessionInfo,
    TracepointInfo,
)
from uftrace_agent.session.worker import Worker, prefer_this_thread

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_BUFFER_BYTES: Final = 256 << 10
_GENERATION_SHIFT: Final = 40

END_DETACHED: Final = 1
END_EXITED: Final = 2
END_EXECUTED: Final = 3
END_SHUTDOWN: Final = 4


class Session:
    """A hold on one process.

    Use `Session.open`; all methods belong to the event loop that opened it.
    """

    def __init__(
        self,
        process: ProcessId,
        attachment: Attachment,
        record: SessionRecord,
        limits: Limits,
        cost: Callable[[], ProbeCost],
    ) -> None:
        self.session_id = record.session_id
        self.process = process
        self.owner = record.owner
        self.restored_sites = attachment.restored_sites
        self.attach_pause_ns = attachment.pauses.longest_ns
        self._attached_unix_ns = record.since_unix_ns
        self._attachment = attachment
        self._worker = Worker(f"session-{process.pid}", prefer_this_thread)
        self._loop = asyncio.get_running_loop()
        options = attachment.annex.ring_options
        self._rings = RingReader(
            attachment.annex.ring_fd,
            options.data_offset,
            options.ring_bytes,
            options.ring_count,
            _BUFFER_BYTES,
        )
        self.feed = Feed()
        self._throttling = Throttling(
            self._rings, limits, cost, self._take_out_soon, attachment.manifest.keep_note
        )
        resumed = self._resume(record)
        leases = Leases(attachment.leases if record.generation else ())
        self._tracepoints = TracepointSet(
            attachment, self._throttling, leases, self._worker.breathe
        )
        self.coordination = Coordination(process.pid, self._tracepoints, self._run, self._worker)
        self._drainer = Drainer(
            process.pid,
            self._rings,
            TickClock(),
            self.feed,
            self._loop,
            self._tracepoints.new_functions,
            self._look_after,
            resumed,
            self._throttling,
        )
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._process_ended)
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self.end_detail = ""
        self._closing = False
        self._loaded = executable_files(process.pid)
        self._tasks: set[asyncio.Task[None]] = set()
        self._drainer.start()

    @classmethod
    def of(
        cls,
        process: ProcessId,
        owner: str,
        attachment: Attachment,
        limits: Limits,
        cost: Callable[[], ProbeCost],
    ) -> Session:
        """A session of an attached process, and what it may cost.

        Raises:
            TargetGoneError: It ended meanwhile.
        """
        record = SessionRecord(uuid.uuid4().hex[:12], owner, 0, time.time_ns())
        return cls._of(process, attachment, record, limits, cost)

    @classmethod
    def adopted(
        cls,
        process: ProcessId,
        attachment: Attachment,
        limits: Limits,
        cost: Callable[[], ProbeCost],
    ) -> Session:
        """The session that another agent left, gone on with; `limits` where that has left
        none.

        Raises:
            TargetGoneError: The process ended meanwhile.
        """
        record = attachment.manifest.session
        record = replace(record, generation=record.generation + 1)
        return cls._of(process, attachment, record, limits, cost)

    @classmethod
    def _of(
        cls,
        process: ProcessId,
        attachment: Attachment,
        record: SessionRecord,
        limits: Limits,
        cost: Callable[[], ProbeCost],
    ) -> Session:
        try:
            return cls(process, attachment, record, limits, cost)
        except BaseException as error:
            attachment.close()
            if isinstance(error, ProcessLookupError):
                raise TargetGoneError(f"process {process.pid} is gone") from error
            raise

    # What the next agent has to know is in the process before the first tracepoint is.
    def _resume(self, record: SessionRecord) -> Resumed:
        rings, manifest = self._rings, self._attachment.manifest
        if not record.generation:
            before = replace(record, taken_before=rings.taken_ever, lost_before=rings.lost_ever)
            self._throttling.begin()
            manifest.begin_session(before)
            return Resumed()
        note = BudgetNote.unpack(manifest.read_note())
        if note is not None:
            self._throttling.resume(note, self._attachment.program.function_at)
        self._throttling.begin()
        rings.count_losses_since(record.lost_before)
        manifest.begin_session(record)
        # Above all numbers of the agents before.
        sequence = record.generation << _GENERATION_SHIFT
        self.feed.sequence = sequence
        return Resumed(sequence, max(rings.taken_ever - record.taken_before, 0))

    @property
    def is_ending(self) -> bool:
        """Whether it has begun to end: nothing can be asked of it any more."""
        return self._closing

    def parked(self) -> Attachment | None:
        """What of an ended session can be used again; None where the process is gone."""
        return self._attachment if self.ended.result() == END_DETACHED else None

    # -- tracepoints -------------------------------------------------------

    async def patch(self, order: PatchOrder, answer: Callable[[PatchOutcome], _T]) -> _T:
        """Enable the functions that the patterns mean.

        Args:
            order: Which, and how.
            answer: What to make of the outcome, on the session's own thread: with many
                functions it takes a while.
        """
        if not order.patterns:
            raise InvalidRequestError("no function is named", hint="give a name or a pattern")
        self.coordination.check_free()
        return await self._run(lambda: answer(self._tracepoints.patch(order)))

    async def set_limits(self, change: LimitChange, patterns: Sequence[str]) -> LimitsOutcome:
        """Change what the session may cost, or, with patterns, what these functions may."""
        count, raised = await self._run(lambda: self._tracepoints.set_limits(change, patterns))
        return LimitsOutcome(self.info(), count, raised)

    # On the drain thread. The worker does it before all that waits, and in the middle of
    # what takes long.
    def _take_out_soon(self, addresses: Sequence[int]) -> None:
        with suppress(RuntimeError):  # the session ends
            self._worker.submit(lambda: self._tracepoints.take_out(addresses), urgent=True)

    async def renew_lease(self, lease: LeaseOrder) -> SessionInfo:
        """Have a lease end that long from now."""
        await self._run(lambda: self._tracepoints.renew(lease.name, lease.duration_ns))
        return self.info()

    async def release_lease(self, name: str, keep: bool) -> LeaseOutcome:
        """End a lease now: what it alone holds goes, or (`keep`) stays for good."""
        tracepoints = self._tracepoints
        count = await self._run(lambda: (tracepoints.keep if keep else tracepoints.release)(name))
        return LeaseOutcome(self.info(), count)

    async def unpatch(
        self, patterns: Sequence[str], writer: Writer, answer: Callable[[PatchOutcome], _T]
    ) -> _T:
        """Disable the functions that the patterns mean; all, where there are none.

        Args:
            patterns: Which.
            writer: How.
            answer: As for `patch`.
        """
        self.coordination.check_free()
        return await self._run(lambda: answer(self._tracepoints.unpatch(patterns, writer)))

    def tracepoints(self) -> list[TracepointInfo]:
        """The functions that are enabled or throttled, by rising id."""
        return self._tracepoints.infos(self.owner)

    def enabled_addresses(self) -> set[int]:
        """Live addresses of the enabled functions."""
        return self._tracepoints.enabled_addresses()

    # -- records -----------------------------------------------------------

    async def stream(
        self, after_sequence: int, include_buffered: bool
    ) -> AsyncIterator[EventBatch]:
        """The batches behind `after_sequence`, or from now on; the last has `end` set.

        Raises:
            InvalidRequestError: Batches after that sequence are gone by now.
            TargetGoneError: The session has ended, and is about to be forgotten.
        """
        if self.ended.done():
            raise TargetGoneError(f"the session of process {self.process.pid} has ended")
        subscription, complete = self.feed.subscribe(after_sequence)
        if not complete:
            self.feed.unsubscribe(subscription)
            raise InvalidRequestError(
                f"the batches behind {after_sequence} are not kept any more",
                reason="SEQUENCE_EXPIRED",
                hint="open a new stream",
            )
        wakeup = self._drainer.subscribed(
            subscription,
            fresh=not include_buffered and not after_sequence,
            known_losses=self.feed.losses_at(after_sequence) if after_sequence else None,
        )
        first = True
        try:
            while True:
                batch = subscription.take()
                if batch is None:
                    if subscription.is_closed:
                        return
                    await wakeup.wait()
                    wakeup.clear()
                    continue
                yield self._drainer.complete(batch, subscription, first, self.modules)
                first = False
                if batch.end:
                    return
        finally:
            self.feed.unsubscribe(subscription)
            self._drainer.unsubscribed(subscription)

    def modules(self) -> list[MappedModule]:
        """The files that the process has mapped as code."""
        return [
            MappedModule(
                view.loaded.path,
                view.loaded.build_id,
                view.loaded.start,
                view.loaded.end,
                view.loaded.load_bias,
            )
            for view in self._attachment.program.modules
        ]

    # -- state -------------------------------------------------------------

    def info(self) -> SessionInfo:
        """The session as it stands now."""
        lost = self._rings.lost_total() if not self._closing else self._drainer.final_lost
        return SessionInfo(
            session_id=self.session_id,
            process=self.process,
            owner=self.owner,
            attached_unix_ns=self._attached_unix_ns,
            tracepoint_count=len(self.enabled_addresses()),
            records_produced=self._drainer.records_total + lost,
            records_lost=lost,
            annex_bytes=self._attachment.annex.mapped_bytes,
            stream_count=len(self.feed.subscriptions),
            end_reason=self.end_detail,
            limits=self._throttling.limits,
            cpu=self._throttling.cpu(),
            throttled=[out.throttle for out in self._throttling.throttled()],
            annex_limit_bytes=self._attachment.annex.limit_bytes,
            leases=self._tracepoints.leases(),
            pending_patterns=self._tracepoints.pending_patterns(),
        )

    # -- the end -----------------------------------------------------------

    async def detach(self, end: int = END_DETACHED) -> DetachOutcome:
        """Leave the process as it was, and end all streams.

        What the process keeps of the engine (`parked`) serves the next session.

        Raises:
            BusyTargetError: The threads did not stop in time: the session goes on.
        """
        self.coordination.give_up()
        try:
            report = await self._run(self._attachment.engine.leave)
        except TargetGoneError:
            report = EngineReport([])
            end = END_EXITED
        await self._close(end, "detached" if end == END_DETACHED else "")
        statuses = [outcome.status for outcome in report.outcomes]
        return DetachOutcome(
            restored_sites=statuses.count(Status.DISABLED),
            conflicting_sites=statuses.count(Status.CONFLICT),
            restored_frames=report.frames,
            longest_pause_ns=report.pauses.longest_ns,
            records_produced=self._drainer.records_total + self._drainer.final_lost,
            records_lost=self._drainer.final_lost,
        )

    # On the drain thread, some times a second: no descriptor tells of an exec,
    # which leaves the pid and takes the memory, nor of a library that is loaded.
    def _look_after(self) -> None:
        memory = self._attachment.memory
        if not memory.read_some(self._attachment.annex.data.control, 1):
            if os.path.exists(f"/proc/{self.process.pid}/maps"):
                self._loop.call_soon_threadsafe(self._program_executed)
            return
        if self._tracepoints.is_lease_due():
            with suppress(RuntimeError):  # the session ends
                self._worker.submit(self._lapse)
        loaded = executable_files(self.process.pid)
        if (loaded != self._loaded and loaded) or self._tracepoints.has_lost_module():
            self._loaded = loaded
            self._loop.call_soon_threadsafe(self._modules_changed)

    def _lapse(self) -> None:
        if not self._tracepoints.is_lease_due():
            return
        try:
            count = self._tracepoints.lapse()
        except (AgentError, OSError) as error:
            _log.warning("leases not ended yet", pid=self.process.pid, error=str(error))
            return
        _log.info("leases ended", pid=self.process.pid, disabled=count)

    def _modules_changed(self) -> None:
        if not self._closing:
            task = self._loop.create_task(self._follow_modules())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow_modules(self) -> None:
        try:
            await self._run(self._tracepoints.modules_changed)
        except BusyTargetError:
            self._loaded = frozenset()  # look again, and try again
        except AgentError as error:
            _log.warning("modules not followed", pid=self.process.pid, error=error.message)

    def _program_executed(self) -> None:
        if not self._closing:
            self._loop.create_task(self._close(END_EXECUTED, "executed another program"))

    def _process_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if not self._closing:
            detail = exit_detail(self.process.pid)
            self._loop.create_task(self._close(END_EXITED, detail))

    async def _close(self, end: int, detail: str) -> None:
        if self._closing:
            return
        self._closing = True
        self.coordination.give_up()
        self._loop.remove_reader(self._pidfd)
        self.end_detail = detail or "ended"
        await asyncio.to_thread(self._drainer.stop, end, detail)
        await asyncio.to_thread(self._worker.shutdown)
        os.close(self._pidfd)
        self._rings.close()
        if end != END_DETACHED:
            self._attachment.close()
        if not self.ended.done():
            self.ended.set_result(end)

    async def _run(self, operation: Callable[[], _T]) -> _T:
        if self._closing:
            raise TargetGoneError(f"the session of process {self.process.pid} has ended")
        try:
            return await asyncio.wrap_future(self._worker.submit(operation))
        except OSError as error:
            # The memory went away between two looks, or there is a bug.
            if not os.path.exists(f"/proc/{self.process.pid}/maps"):
                raise TargetGoneError(f"process {self.process.pid} ended meanwhile") from error
            raise
