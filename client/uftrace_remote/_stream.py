"""Reading the events of a session, across broken connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc

from uftrace.agent.v1 import event_pb2
from uftrace_remote import _grpc_errors, _wire
from uftrace_remote.enums import EndReason, LossStage
from uftrace_remote.errors import (
    ConnectionFailedError,
    NoSuchSessionError,
    StreamBrokenError,
    UftraceError,
)
from uftrace_remote.values import EventBatch, Loss

# The agent sends a heartbeat every second.
_SILENCE_SECONDS = 30.0
_RETRY_SECONDS = 0.25

_EXPIRED = "SEQUENCE_EXPIRED"
_AT_RINGS = (LossStage.RING, LossStage.SHARED_RING)


# Makes a grpc.aio unary-stream call; generated stubs have no types.
OpenStream = Callable[[event_pb2.StreamEventsRequest], Any]

# Told when a connection breaks, and why; the stream is then tried to be got back.
OnBreak = Callable[[UftraceError], None]


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """Which events to read.

    Attributes:
        after_sequence: Go on after this batch of an earlier stream; 0 begins
            with what comes next.
        include_buffered: Begin with what the rings hold from before.
        reconnect_seconds: How long to try to get a broken stream back.
        on_break: Told when the connection breaks, and again when a try fails.
    """

    session_id: str
    after_sequence: int = 0
    include_buffered: bool = False
    reconnect_seconds: float = 10.0
    on_break: OnBreak | None = None


# The agent counts losses from the beginning of each stream; we go on counting
# from where the one before it broke.
class _Losses:
    def __init__(self) -> None:
        self._before: dict[tuple[LossStage, int], int] = {}
        self._now: dict[tuple[LossStage, int], int] = {}
        self._last: EventBatch | None = None
        self._has_gap = False

    def begin_anew(self) -> None:
        """The next batch is not the one behind the last."""
        self._has_gap = self._last is not None

    def carry_on(self, batch: EventBatch) -> EventBatch:
        if self._has_gap and self._last is not None:
            self._bridge(self._last, batch)
        self._has_gap = False
        self._last = batch
        for loss in batch.losses:
            place = (loss.stage, loss.tid)
            self._now[place] = self._before.get(place, 0) + loss.records
        if not self._before:
            return batch
        whole = self._before | self._now
        losses = tuple(Loss(stage, count, tid) for (stage, tid), count in whole.items())
        return replace(batch, losses=losses)

    # What was taken out of the rings, or lost at them, while nobody told us: all
    # totals are the session's, and another agent goes on with them.
    def _bridge(self, last: EventBatch, batch: EventBatch) -> None:
        told = sum(loss.records for loss in batch.losses if loss.stage in _AT_RINGS)
        taken = batch.records_total - batch.record_count - last.records_total
        lost = batch.lost_total - last.lost_total - told
        for stage, count in ((LossStage.AGENT, taken), (LossStage.RING, lost)):
            if count > 0:
                self._before[stage, 0] = self._before.get((stage, 0), 0) + count

    def stream_ended(self) -> None:
        self._before |= self._now


async def read_events(
    open_stream: OpenStream, request: StreamRequest, address: str
) -> AsyncIterator[EventBatch]:
    """Yields batches until one says why the stream ends, or the agent closes it.

    Batches that a resumed stream sends twice are passed over.

    Raises:
        StreamBrokenError: The agent went away and did not come back in time,
            or came back without the session.
        UftraceError: The stream could not be opened.
    """
    sequence = request.after_sequence
    resume_at = sequence
    started = False
    losses = _Losses()
    deadline = 0.0
    while True:
        call = open_stream(
            event_pb2.StreamEventsRequest(
                session_id=request.session_id,
                after_sequence=resume_at,
                include_buffered=request.include_buffered or (started and not resume_at),
            )
        )
        try:
            while True:
                # Not wait_for(): of Python 3.11 that loses a cancellation which
                # comes together with a message.
                async with asyncio.timeout(_SILENCE_SECONDS):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    return
                assert isinstance(message, event_pb2.StreamEventsResponse)
                started = True
                deadline = 0.0
                if sequence and message.sequence <= sequence:
                    continue
                sequence = resume_at = message.sequence
                batch = losses.carry_on(_wire.batch_from_wire(message))
                yield batch
                if batch.end is not EndReason.NONE:
                    return
        except grpc.aio.AioRpcError as error:
            failure = _grpc_errors.from_rpc_error(error, address)
        except TimeoutError:
            failure = ConnectionFailedError(
                f"the agent at {address} was silent for {_SILENCE_SECONDS:.0f} s",
                reason="SILENT",
            )
        finally:
            call.cancel()
        if not started:
            raise failure
        losses.stream_ended()
        if failure.reason == _EXPIRED and resume_at:
            # The agent no longer has what came meanwhile: go on with what it has.
            resume_at = 0
            losses.begin_anew()
            continue
        now = time.monotonic()
        deadline = deadline or now + request.reconnect_seconds
        if not isinstance(failure, ConnectionFailedError) or now >= deadline:
            raise _broken(failure, address) from failure
        if request.on_break is not None:
            request.on_break(failure)
        await asyncio.sleep(_RETRY_SECONDS)


def _broken(failure: UftraceError, address: str) -> UftraceError:
    hint = "start the agent again: it goes on with its sessions, or restores what it had patched"
    if isinstance(failure, NoSuchSessionError):
        return StreamBrokenError(
            f"the agent at {address} no longer knows the session",
            reason="SESSION_LOST",
            hint=hint,
        )
    if isinstance(failure, ConnectionFailedError):
        return StreamBrokenError(
            f"the agent at {address} went away in the middle of the stream", hint=hint
        )
    return failure
