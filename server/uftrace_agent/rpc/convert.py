"""Between the API's messages and the session layer's values.

Enumerations have the same numbers on both sides (tests hold them to it), so
that they pass through as integers.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, Literal

from uftrace.agent.v1 import coordination_pb2, event_pb2, process_pb2, session_pb2, tracepoint_pb2
from uftrace_agent.engine.model import Status, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.errors import InvalidRequestError
from uftrace_agent.process.listing import ProcessDescription
from uftrace_agent.session.budget import LimitChange, Limits
from uftrace_agent.session.types import (
    AttachOutcome,
    ClockAnchor,
    CommitOutcome,
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
    Throttle,
    TracepointInfo,
)

# Requests ---------------------------------------------------------------------


def process_id(message: process_pb2.ProcessRef) -> ProcessId:
    """Read which process is meant.

    Raises:
        InvalidRequestError: No pid is given.
    """
    if message.pid <= 0:
        raise InvalidRequestError(
            "the request names no process", hint="set process.pid to a positive number"
        )
    return ProcessId(message.pid, message.start_time_ticks, message.boot_id)


def recording_options(message: session_pb2.RecordingOptions) -> RecordingOptions:
    """Read ring sizes; what is 0 takes the default."""
    default = RecordingOptions()
    return RecordingOptions(
        ring_bytes=message.ring_bytes or default.ring_bytes,
        ring_count=message.ring_count or default.ring_count,
    )


def writer(number: int) -> Writer:
    """Read a writer; unspecified means AUTO.

    Raises:
        InvalidRequestError: A number that this agent does not know.
    """
    try:
        return Writer(number or Writer.AUTO)
    except ValueError as error:
        raise InvalidRequestError(
            f"this agent knows no writer {number}", reason="WRITER_UNKNOWN"
        ) from error


def limit_change(message: session_pb2.Limits) -> LimitChange:
    """Read what is to be allowed; 0 is no limit.

    Raises:
        InvalidRequestError: A limit is negative or no number.
    """

    def limit(field: Literal["cpu_share", "calls_per_second"]) -> float | None:
        if not message.HasField(field):
            return None
        value = float(getattr(message, field))
        if not 0 <= value < math.inf:
            raise InvalidRequestError(
                f"{field} cannot be {value}",
                reason="BAD_LIMIT",
                hint="a positive number, or 0 for no limit",
            )
        return value or math.inf

    return LimitChange(limit("cpu_share"), limit("calls_per_second"))


def plan_options(message: tracepoint_pb2.ListFunctionsRequest) -> PlanOptions | None:
    """Read how functions are to be planned; None: not at all.

    Raises:
        InvalidRequestError: The writer is unknown.
    """
    if not message.explain:
        return None
    return PlanOptions(writer(message.writer), message.entry_only, message.allow_multi)


def patch_order(message: tracepoint_pb2.PatchRequest, owner: str) -> PatchOrder:
    """Read what to enable, on behalf of `owner`.

    Raises:
        InvalidRequestError: No pattern is given, or the writer is unknown.
    """
    if not message.patterns:
        raise InvalidRequestError(
            "the request names no function",
            reason="NO_PATTERNS",
            hint="name functions or patterns; * means all of the main executable",
        )
    return PatchOrder(
        patterns=tuple(message.patterns),
        owner=owner,
        writer=writer(message.writer),
        entry_only=message.entry_only,
        allow_multi=message.allow_multi,
        all_or_nothing=message.all_or_nothing,
        dry_run=message.dry_run,
        stop_deadline_ns=message.stop_deadline_nanos,
        limits=limit_change(message.limits),
        lease=lease_order(message.lease) if message.HasField("lease") else None,
        pending=message.pending,
    )


def lease_order(message: session_pb2.Lease) -> LeaseOrder:
    """Read how long something is to last."""
    return LeaseOrder(message.name, message.duration_nanos)


# Processes and sessions -------------------------------------------------------


def process_ref(process: ProcessId) -> process_pb2.ProcessRef:
    """Write a process's full name."""
    return process_pb2.ProcessRef(
        pid=process.pid, start_time_ticks=process.start_time_ticks, boot_id=process.boot_id
    )


def process_info(description: ProcessDescription, session_id: str) -> process_pb2.ProcessInfo:
    """Write a process as `ps` shows it."""
    return process_pb2.ProcessInfo(
        process=process_ref(description.process),
        command_name=description.command_name,
        command_line=description.command_line,
        executable=description.executable,
        uid=description.uid,
        thread_count=description.thread_count,
        resident_bytes=description.resident_bytes,
        attachable=description.attachable,
        refusal_reason=description.refusal_reason,
        session_id=session_id,
        build_id=description.build_id,
        cgroup=description.cgroup,
    )


def session(info: SessionInfo, description: ProcessDescription | None) -> session_pb2.Session:
    """Write a session; `description` is None where its process has ended."""
    return session_pb2.Session(
        session_id=info.session_id,
        process=process_pb2.ProcessInfo(
            process=process_ref(info.process), session_id=info.session_id
        )
        if description is None
        else process_info(description, info.session_id),
        owner=info.owner,
        attached_unix_nanos=info.attached_unix_ns,
        tracepoint_count=info.tracepoint_count,
        records_produced=info.records_produced,
        records_lost=info.records_lost,
        annex_bytes=info.annex_bytes,
        stream_count=info.stream_count,
        end_reason=info.end_reason,
        limits=limits(info.limits),
        cpu_share=info.cpu,
        throttled=map(throttle, info.throttled),
        annex_limit_bytes=info.annex_limit_bytes,
        leases=(
            session_pb2.LeaseInfo(
                name=lease.name,
                remaining_nanos=lease.remaining_ns,
                tracepoint_count=lease.tracepoint_count,
            )
            for lease in info.leases
        ),
        pending_patterns=info.pending_patterns,
    )


def limits(value: Limits | LimitChange) -> session_pb2.Limits:
    """Write what is allowed."""
    return session_pb2.Limits(cpu_share=_limit(value.cpu), calls_per_second=_limit(value.rate))


def _limit(value: float | None) -> float | None:
    return 0.0 if value == math.inf else value


def throttle(value: Throttle) -> session_pb2.Throttle:
    """Write why a tracepoint is out."""
    return session_pb2.Throttle(
        function_id=value.function_id,
        function=value.function,
        module=value.module,
        calls_per_second=value.calls_per_second,
        cpu_share=value.cpu,
        limit=_number(value.limit),
        allowed=value.allowed,
        unix_nanos=value.unix_ns,
        raised=value.raised,
    )


def limits_response(
    outcome: LimitsOutcome, description: ProcessDescription | None
) -> session_pb2.SetLimitsResponse:
    """Write what is allowed now."""
    return session_pb2.SetLimitsResponse(
        session=session(outcome.session, description),
        function_count=outcome.function_count,
        raised_count=outcome.raised_count,
    )


def release_response(
    outcome: LeaseOutcome, description: ProcessDescription | None
) -> session_pb2.ReleaseLeaseResponse:
    """Write what became of a lease."""
    return session_pb2.ReleaseLeaseResponse(
        session=session(outcome.session, description),
        tracepoint_count=outcome.tracepoint_count,
    )


def attach_response(
    outcome: AttachOutcome, description: ProcessDescription | None
) -> session_pb2.AttachResponse:
    """Write what attaching took."""
    return session_pb2.AttachResponse(
        session=session(outcome.session, description),
        created=outcome.created,
        longest_pause_nanos=outcome.longest_pause_ns,
        restored_sites=outcome.restored_sites,
    )


def detach_response(outcome: DetachOutcome) -> session_pb2.DetachResponse:
    """Write what detaching did."""
    return session_pb2.DetachResponse(
        restored_sites=outcome.restored_sites,
        conflicting_sites=outcome.conflicting_sites,
        restored_frames=outcome.restored_frames,
        longest_pause_nanos=outcome.longest_pause_ns,
        records_produced=outcome.records_produced,
        records_lost=outcome.records_lost,
    )


# Functions and tracepoints ----------------------------------------------------


def function(ref: FunctionRef) -> tracepoint_pb2.Function:
    """Write a function."""
    return tracepoint_pb2.Function(
        name=ref.name,
        linkage_name=ref.linkage_name if ref.linkage_name != ref.name else "",
        module=ref.module,
        address=ref.address,
        size=ref.size,
        aliases=ref.aliases,
        file_address=ref.file_address,
    )


def function_info(plan: FunctionPlan) -> tracepoint_pb2.FunctionInfo:
    """Write a function and what the engine would do with it."""
    return tracepoint_pb2.FunctionInfo(
        function=function(plan.function),
        form=_number(plan.form),
        writer=_number(plan.writer),
        refusal=_number(plan.refusal),
        exit_refusal=_number(plan.exit_refusal),
        detail=plan.detail,
        enabled=plan.enabled,
        site_kind=_number(plan.kind),
    )


def patch_result(result: PatchResult) -> tracepoint_pb2.PatchResult:
    """Write what became of one function."""
    return tracepoint_pb2.PatchResult(
        function=function(result.function),
        function_id=result.function_id,
        status=_number(result.status),
        form=_number(result.form),
        writer=_number(result.writer),
        refusal=_number(result.refusal),
        exit_refusal=_number(result.exit_refusal),
        detail=result.detail,
        site_kind=_number(result.kind),
    )


def patch_response(outcome: PatchOutcome) -> tracepoint_pb2.PatchResponse:
    """Write what became of the functions to enable."""
    enabled = (Status.ENABLED, Status.ALREADY_ENABLED)
    return tracepoint_pb2.PatchResponse(
        results=map(patch_result, outcome.results),
        enabled_count=sum(result.status in enabled for result in outcome.results),
        refused_count=sum(result.status is Status.REFUSED for result in outcome.results),
        longest_pause_nanos=outcome.longest_pause_ns,
        longest_pause_tid=outcome.longest_pause_tid,
        elapsed_nanos=outcome.elapsed_ns,
        plan_nanos=outcome.plan_ns,
        writer_detail=outcome.writer_detail,
        pauses=_pauses(outcome),
        pending_patterns=outcome.pending,
    )


def prepare_response(
    preparation_id: str, ready: bool, outcome: PatchOutcome
) -> coordination_pb2.PreparePatchResponse:
    """Write what would become of the functions."""
    return coordination_pb2.PreparePatchResponse(
        preparation_id=preparation_id, ready=ready, plan=patch_response(outcome)
    )


def commit_outcome(outcome: CommitOutcome) -> coordination_pb2.AwaitPatchResponse:
    """Write what became of a commit."""
    return coordination_pb2.AwaitPatchResponse(
        patch=patch_response(outcome.patch),
        at_monotonic_nanos=outcome.at_ns,
        begun_monotonic_nanos=outcome.passed_ns,
        written_monotonic_nanos=outcome.written_ns,
    )


def unpatch_response(outcome: PatchOutcome) -> tracepoint_pb2.UnpatchResponse:
    """Write what became of the functions to disable."""
    return tracepoint_pb2.UnpatchResponse(
        results=map(patch_result, outcome.results),
        disabled_count=sum(result.status is Status.DISABLED for result in outcome.results),
        longest_pause_nanos=outcome.longest_pause_ns,
        longest_pause_tid=outcome.longest_pause_tid,
        elapsed_nanos=outcome.elapsed_ns,
        writer_detail=outcome.writer_detail,
        pauses=_pauses(outcome),
    )


def _pauses(outcome: PatchOutcome) -> list[tracepoint_pb2.ThreadPause]:
    return [
        tracepoint_pb2.ThreadPause(tid=tid, nanos=nanoseconds)
        for tid, nanoseconds in sorted(outcome.pauses.items())
    ]


def tracepoint(info: TracepointInfo) -> tracepoint_pb2.Tracepoint:
    """Write a function that is enabled, or out."""
    out = info.throttle
    states = tracepoint_pb2.TracepointState
    return tracepoint_pb2.Tracepoint(
        patch=patch_result(info.patch),
        owner=info.owner,
        enabled_unix_nanos=info.enabled_unix_ns,
        state=states.TRACEPOINT_STATE_THROTTLED if out else states.TRACEPOINT_STATE_ENABLED,
        throttle=throttle(out) if out else None,
        limits=limits(info.limits) if info.limits else None,
        calls_per_second=info.calls_per_second,
    )


# Events -----------------------------------------------------------------------


def clock_anchor(anchor: ClockAnchor) -> event_pb2.ClockAnchor:
    """Write a moment on all clocks."""
    return event_pb2.ClockAnchor(
        ticks=anchor.ticks,
        monotonic_nanos=anchor.monotonic_ns,
        realtime_nanos=anchor.realtime_ns,
        ticks_per_second=anchor.ticks_per_second,
    )


def events(batch: EventBatch) -> event_pb2.StreamEventsResponse:
    """Write a batch. The packed records are copied once, and never looked at."""
    return event_pb2.StreamEventsResponse(
        sequence=batch.sequence,
        threads=[
            event_pb2.ThreadRecords(tid=tid, name=name, records=records)
            for tid, name, records in batch.threads
        ],
        watermark_ticks=batch.watermark_ticks,
        functions=[
            event_pb2.TracedFunction(
                function_id=traced.function_id,
                name=traced.function.name,
                linkage_name=traced.function.linkage_name,
                module=traced.function.module,
                address=traced.function.address,
                size=traced.function.size,
                has_exit=traced.has_exit,
            )
            for traced in batch.functions
        ],
        anchors=map(clock_anchor, batch.anchors),
        losses=[
            event_pb2.Loss(
                stage=_number(loss.stage),
                records=loss.records,
                tid=loss.tid,
            )
            for loss in batch.losses
        ],
        records_total=batch.records_total,
        lost_total=batch.lost_total,
        modules=[
            event_pb2.MappedModule(
                path=module.path,
                build_id=module.build_id,
                start=module.start,
                end=module.end,
                load_bias=module.load_bias,
            )
            for module in batch.modules
        ],
        end=_number(batch.end),
        end_detail=batch.end_detail,
        throttled=map(throttle, batch.throttled),
    )


# The stubs want the enumeration's own type, which exists for type checkers only.
def _number(value: IntEnum | int | None) -> Any:
    return int(value or 0)
