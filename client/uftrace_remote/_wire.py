"""Between protobuf messages and the client's own values. Nothing else knows the wire."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final, TypeVar

from uftrace.agent.v1 import (
    agent_pb2,
    coordination_pb2,
    event_pb2,
    process_pb2,
    session_pb2,
    tracepoint_pb2,
)
from uftrace_remote.enums import (
    Architecture,
    EndReason,
    LimitKind,
    LossStage,
    PatchForm,
    PatchStatus,
    PatchWriter,
    RefusalReason,
    SiteKind,
    TracepointState,
)
from uftrace_remote.preparation import CommitResult, Preparation
from uftrace_remote.values import (
    AgentInfo,
    AttachResult,
    ClockAnchor,
    DetachResult,
    EventBatch,
    Function,
    FunctionInfo,
    FunctionResult,
    Lease,
    LeaseInfo,
    LeaseResult,
    Limits,
    LimitsResult,
    Loss,
    MappedModule,
    PatchResult,
    ProbeCost,
    Process,
    ProcessRef,
    Session,
    ThreadRecords,
    Throttle,
    TracedFunction,
    Tracepoint,
    UnpatchResult,
)

_Enum = TypeVar("_Enum", bound=IntEnum)


# A newer agent may know members that we do not: those become `unknown`. By a table,
# since an answer may have 100,000 functions with six of them each.
def _reader(unknown: _Enum) -> Callable[[int], _Enum]:
    members = {int(member): member for member in type(unknown)}
    return lambda number: members.get(number, unknown)


_architecture: Final = _reader(Architecture.UNKNOWN)
_end_reason: Final = _reader(EndReason.NONE)
_loss_stage: Final = _reader(LossStage.UNKNOWN)
_form: Final = _reader(PatchForm.NONE)
_writer: Final = _reader(PatchWriter.NONE)
_kind: Final = _reader(SiteKind.NONE)
_refusal: Final = _reader(RefusalReason.UNKNOWN)
_status: Final = _reader(PatchStatus.UNKNOWN)
_state: Final = _reader(TracepointState.UNKNOWN)
_limit_kind: Final = _reader(LimitKind.UNKNOWN)


def process_ref_to_wire(reference: ProcessRef) -> process_pb2.ProcessRef:
    """A process reference for a request."""
    return process_pb2.ProcessRef(
        pid=reference.pid,
        start_time_ticks=reference.start_time_ticks,
        boot_id=reference.boot_id,
    )


def process_from_wire(message: process_pb2.ProcessInfo) -> Process:
    """One process of a listing."""
    reference = message.process
    return Process(
        reference=ProcessRef(reference.pid, reference.start_time_ticks, reference.boot_id),
        command_name=message.command_name,
        command_line=tuple(message.command_line),
        executable=message.executable,
        uid=message.uid,
        thread_count=message.thread_count,
        resident_bytes=message.resident_bytes,
        attachable=message.attachable,
        refusal_reason=message.refusal_reason,
        session_id=message.session_id,
        build_id=message.build_id,
        cgroup=message.cgroup,
    )


def anchor_from_wire(message: event_pb2.ClockAnchor) -> ClockAnchor:
    """One clock reading."""
    return ClockAnchor(
        message.ticks, message.monotonic_nanos, message.realtime_nanos, message.ticks_per_second
    )


def info_from_wire(message: agent_pb2.GetAgentInfoResponse) -> AgentInfo:
    """What an agent says about itself."""
    return AgentInfo(
        version=message.version,
        hostname=message.hostname,
        architecture=_architecture(message.architecture),
        kernel_release=message.kernel_release,
        boot_id=message.boot_id,
        pid=message.pid,
        started_unix_ns=message.started_unix_nanos,
        session_count=message.session_count,
        now=anchor_from_wire(message.now) if message.HasField("now") else None,
        forms=tuple(_form(number) for number in message.forms),
        writers=tuple(_writer(number) for number in message.writers),
        probe_cost=ProbeCost(
            message.probe_cost.call_nanos,
            message.probe_cost.entry_nanos,
            message.probe_cost.measured,
            message.probe_cost.detail,
        ),
        limits=limits_from_wire(message.limits),
    )


def limits_to_wire(limits: Limits) -> session_pb2.Limits:
    """Limits for a request."""
    return session_pb2.Limits(cpu_share=limits.cpu, calls_per_second=limits.calls_per_second)


def limits_from_wire(message: session_pb2.Limits) -> Limits:
    """What is allowed."""
    return Limits(
        message.cpu_share if message.HasField("cpu_share") else None,
        message.calls_per_second if message.HasField("calls_per_second") else None,
    )


def throttle_from_wire(message: session_pb2.Throttle) -> Throttle:
    """Why a tracepoint is out."""
    return Throttle(
        function_id=message.function_id,
        function=message.function,
        module=message.module,
        calls_per_second=message.calls_per_second,
        cpu=message.cpu_share,
        limit=_limit_kind(message.limit),
        allowed=message.allowed,
        unix_ns=message.unix_nanos,
        raised=message.raised,
    )


def limits_result_from_wire(message: session_pb2.SetLimitsResponse) -> LimitsResult:
    """What setting limits did."""
    return LimitsResult(
        session_from_wire(message.session), message.function_count, message.raised_count
    )


def function_from_wire(message: tracepoint_pb2.Function) -> Function:
    """One function of a process."""
    return Function(
        name=message.name,
        linkage_name=message.linkage_name,
        module=message.module,
        address=message.address,
        size=message.size,
        aliases=tuple(message.aliases),
        file_address=message.file_address,
    )


def function_info_from_wire(message: tracepoint_pb2.FunctionInfo, match_count: int) -> FunctionInfo:
    """One function of a listing."""
    return FunctionInfo(
        function=function_from_wire(message.function),
        form=_form(message.form),
        writer=_writer(message.writer),
        refusal=_refusal(message.refusal),
        exit_refusal=_refusal(message.exit_refusal),
        detail=message.detail,
        enabled=message.enabled,
        match_count=match_count,
        kind=_kind(message.site_kind),
    )


def session_from_wire(message: session_pb2.Session) -> Session:
    """One session as it stands."""
    return Session(
        session_id=message.session_id,
        process=process_from_wire(message.process),
        owner=message.owner,
        attached_unix_ns=message.attached_unix_nanos,
        tracepoint_count=message.tracepoint_count,
        records_produced=message.records_produced,
        records_lost=message.records_lost,
        annex_bytes=message.annex_bytes,
        stream_count=message.stream_count,
        end_reason=message.end_reason,
        limits=limits_from_wire(message.limits),
        cpu=message.cpu_share,
        throttled=tuple(map(throttle_from_wire, message.throttled)),
        annex_limit_bytes=message.annex_limit_bytes,
        leases=tuple(
            LeaseInfo(lease.name, lease.remaining_nanos, lease.tracepoint_count)
            for lease in message.leases
        ),
        pending_patterns=tuple(message.pending_patterns),
    )


def lease_to_wire(lease: Lease | None) -> session_pb2.Lease | None:
    """A lease for a request."""
    if lease is None:
        return None
    return session_pb2.Lease(name=lease.name, duration_nanos=lease.duration_ns)


def lease_result_from_wire(message: session_pb2.ReleaseLeaseResponse) -> LeaseResult:
    """What became of a lease."""
    return LeaseResult(session_from_wire(message.session), message.tracepoint_count)


def attach_from_wire(message: session_pb2.AttachResponse) -> AttachResult:
    """What attaching did."""
    return AttachResult(
        session=session_from_wire(message.session),
        created=message.created,
        longest_pause_ns=message.longest_pause_nanos,
        restored_sites=message.restored_sites,
    )


def detach_from_wire(message: session_pb2.DetachResponse) -> DetachResult:
    """What detaching did."""
    return DetachResult(
        restored_sites=message.restored_sites,
        conflicting_sites=message.conflicting_sites,
        restored_frames=message.restored_frames,
        longest_pause_ns=message.longest_pause_nanos,
        records_produced=message.records_produced,
        records_lost=message.records_lost,
    )


def function_result_from_wire(message: tracepoint_pb2.PatchResult) -> FunctionResult:
    """What became of one function."""
    return FunctionResult(
        function=function_from_wire(message.function),
        status=_status(message.status),
        function_id=message.function_id,
        form=_form(message.form),
        writer=_writer(message.writer),
        refusal=_refusal(message.refusal),
        exit_refusal=_refusal(message.exit_refusal),
        detail=message.detail,
        kind=_kind(message.site_kind),
    )


def patch_from_wire(message: tracepoint_pb2.PatchResponse) -> PatchResult:
    """What became of all functions of a patch request."""
    return PatchResult(
        results=tuple(function_result_from_wire(result) for result in message.results),
        enabled_count=message.enabled_count,
        refused_count=message.refused_count,
        longest_pause_ns=message.longest_pause_nanos,
        longest_pause_tid=message.longest_pause_tid,
        elapsed_ns=message.elapsed_nanos,
        plan_ns=message.plan_nanos,
        writer_detail=message.writer_detail,
        pauses={pause.tid: pause.nanos for pause in message.pauses},
        pending_patterns=tuple(message.pending_patterns),
    )


def preparation_from_wire(
    session_id: str, message: coordination_pb2.PreparePatchResponse
) -> Preparation:
    """What is ready to be committed."""
    return Preparation(
        session_id, message.preparation_id, message.ready, patch_from_wire(message.plan)
    )


def commit_from_wire(message: coordination_pb2.AwaitPatchResponse) -> CommitResult:
    """What became of a commit."""
    return CommitResult(
        patch=patch_from_wire(message.patch),
        at_ns=message.at_monotonic_nanos,
        begun_ns=message.begun_monotonic_nanos,
        written_ns=message.written_monotonic_nanos,
    )


def unpatch_from_wire(message: tracepoint_pb2.UnpatchResponse) -> UnpatchResult:
    """What became of all functions of an unpatch request."""
    return UnpatchResult(
        results=tuple(function_result_from_wire(result) for result in message.results),
        disabled_count=message.disabled_count,
        longest_pause_ns=message.longest_pause_nanos,
        longest_pause_tid=message.longest_pause_tid,
        elapsed_ns=message.elapsed_nanos,
        writer_detail=message.writer_detail,
        pauses={pause.tid: pause.nanos for pause in message.pauses},
    )


def tracepoint_from_wire(message: tracepoint_pb2.Tracepoint) -> Tracepoint:
    """One function that is enabled or throttled."""
    return Tracepoint(
        patch=function_result_from_wire(message.patch),
        owner=message.owner,
        enabled_unix_ns=message.enabled_unix_nanos,
        # An agent that says nothing of it has only enabled ones.
        state=_state(message.state) or TracepointState.ENABLED,
        throttle=throttle_from_wire(message.throttle) if message.HasField("throttle") else None,
        limits=limits_from_wire(message.limits),
        calls_per_second=message.calls_per_second,
    )


def batch_from_wire(message: event_pb2.StreamEventsResponse) -> EventBatch:
    """One batch of events;."""
    return EventBatch(
        sequence=message.sequence,
        threads=tuple(
            ThreadRecords(thread.tid, thread.records, thread.name) for thread in message.threads
        ),
        watermark_ticks=message.watermark_ticks,
        functions=tuple(
            TracedFunction(
                function.function_id,
                function.name,
                function.linkage_name,
                function.module,
                function.address,
                function.size,
                function.has_exit,
            )
            for function in message.functions
        ),
        anchors=tuple(anchor_from_wire(anchor) for anchor in message.anchors),
        losses=tuple(
            Loss(_loss_stage(loss.stage), loss.records, loss.tid) for loss in message.losses
        ),
        records_total=message.records_total,
        lost_total=message.lost_total,
        modules=tuple(
            MappedModule(module.path, module.build_id, module.start, module.end, module.load_bias)
            for module in message.modules
        ),
        end=_end_reason(message.end),
        end_detail=message.end_detail,
        throttled=tuple(map(throttle_from_wire, message.throttled)),
    )
