"""Values that the client takes and gives. No protobuf, no grpc.

Times are integers in nanoseconds and end in `_ns`; ticks are those of the
target's counter (rdtsc, cntvct_el0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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

RECORD_BYTES = 16


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process, named for good. Zero and empty fields mean "whatever is there now"."""

    pid: int
    start_time_ticks: int = 0
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """One running process.

    Attributes:
        reference: Its name for good.
        command_name: `/proc/PID/comm`, at most 15 bytes.
        command_line: Arguments; empty for a kernel thread.
        executable: Path inside the process's own mount namespace.
        refusal_reason: Why it cannot be attached to, where `attachable` is false.
        session_id: The session that holds it, or empty.
        build_id: GNU build id of the executable in hex, or empty.
        cgroup: Its cgroup as the agent sees it, such as `/system.slice/nginx.service`.
    """

    reference: ProcessRef
    command_name: str = ""
    command_line: tuple[str, ...] = ()
    executable: str = ""
    uid: int = 0
    thread_count: int = 0
    resident_bytes: int = 0
    attachable: bool = True
    refusal_reason: str = ""
    session_id: str = ""
    build_id: str = ""
    cgroup: str = ""

    @property
    def pid(self) -> int:
        """The process id on the agent's host."""
        return self.reference.pid


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """One moment on the target's ticks and on its host's clocks."""

    ticks: int
    monotonic_ns: int
    realtime_ns: int
    ticks_per_second: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What tracing may cost. 0: no limit; None: as it is.

    Attributes:
        cpu: Share of one processor (0.05 is 5 %).
        calls_per_second: Of each function.
    """

    cpu: float | None = None
    calls_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Throttle:
    """A tracepoint that was taken out because it cost too much.

    Attributes:
        calls_per_second: When it was taken out.
        cpu: What that took of one processor.
        allowed: In the unit of the limit.
        raised: The limit was raised since: it may be patched again.
    """

    function_id: int
    function: str
    module: str
    calls_per_second: float
    cpu: float
    limit: LimitKind
    allowed: float
    unix_ns: int = 0
    raised: bool = False


@dataclass(frozen=True, slots=True)
class ProbeCost:
    """What a probe costs on the agent's host, in nanoseconds.

    Attributes:
        call_ns: An entry and its exit.
        entry_ns: An entry alone.
        measured: Whether the agent measured it; otherwise `detail` says why not.
    """

    call_ns: float = 0.0
    entry_ns: float = 0.0
    measured: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """What an agent says about itself; `now` serves for clock offsets."""

    version: str
    hostname: str
    architecture: Architecture
    kernel_release: str
    boot_id: str
    pid: int
    started_unix_ns: int
    session_count: int
    now: ClockAnchor | None
    forms: tuple[PatchForm, ...]
    writers: tuple[PatchWriter, ...]
    probe_cost: ProbeCost = ProbeCost()
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Function:
    """A function of a process. `address` is the live one, `file_address` that in its file (0:
    the agent is too old to say), `size` in bytes (0 unknown)."""

    name: str
    linkage_name: str = ""
    module: str = ""
    address: int = 0
    size: int = 0
    aliases: tuple[str, ...] = ()
    file_address: int = 0

    @property
    def qualified_name(self) -> str:
        """`module!name`, which names it in requests as well."""
        return f"{self.module}!{self.name}" if self.module else self.name


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """A function and, where it was asked for, what the engine would do with it."""

    function: Function
    form: PatchForm = PatchForm.NONE
    writer: PatchWriter = PatchWriter.NONE
    refusal: RefusalReason = RefusalReason.NONE
    exit_refusal: RefusalReason = RefusalReason.NONE
    detail: str = ""
    enabled: bool = False
    match_count: int = 0
    kind: SiteKind = SiteKind.NONE


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """Ring layout of a session: bytes per ring (a power of two) and rings; 0 is the default."""

    ring_bytes: int = 0
    ring_count: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """How long tracepoints are to last, unless that is said anew in time.

    Attributes:
        name: Unique in the session; the same name again is the same lease.
        duration_ns: From now on.
    """

    name: str
    duration_ns: int


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease as it stands now, with how many enabled tracepoints it holds."""

    name: str
    remaining_ns: int
    tracepoint_count: int


@dataclass(frozen=True, slots=True)
class Session:
    """An agent's hold on one process, as it stands now."""

    session_id: str
    process: Process
    owner: str = ""
    attached_unix_ns: int = 0
    tracepoint_count: int = 0
    records_produced: int = 0
    records_lost: int = 0
    annex_bytes: int = 0
    stream_count: int = 0
    end_reason: str = ""
    limits: Limits = Limits()
    cpu: float = 0.0
    throttled: tuple[Throttle, ...] = ()
    annex_limit_bytes: int = 0
    leases: tuple[LeaseInfo, ...] = ()
    pending_patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseResult:
    """The session after a lease has ended, and how many tracepoints went with it (or
    stay, if they were to be kept)."""

    session: Session
    tracepoint_count: int = 0


@dataclass(frozen=True, slots=True)
class LimitsResult:
    """What is allowed now; how many functions the patterns matched, and how many
    throttled ones `patch` takes again."""

    session: Session
    function_count: int = 0
    raised_count: int = 0


@dataclass(frozen=True, slots=True)
class AttachResult:
    """The session, and what attaching took. `created` is false where it was there already."""

    session: Session
    created: bool
    longest_pause_ns: int = 0
    restored_sites: int = 0


@dataclass(frozen=True, slots=True)
class DetachResult:
    """What detaching did; the record counts are those of the whole session."""

    restored_sites: int
    conflicting_sites: int
    restored_frames: int
    longest_pause_ns: int
    records_produced: int
    records_lost: int


@dataclass(frozen=True, slots=True)
class PatchOptions:
    """How to enable tracepoints.

    Attributes:
        writer: How bytes are changed.
        entry_only: Trace entries alone.
        all_or_nothing: Refuse everything where one function is refused.
        dry_run: Plan and answer, but change nothing.
        stop_deadline_ns: Longest time that threads may be stopped; 0 is the agent's default.
        allow_multi: Move several instructions at once where no other form fits.
        limits: What these functions alone may cost.
        lease: What holds the tracepoints; None: they stay until they are unpatched.
        pending: Also in modules that are loaded later; a pattern that matches nothing
            yet is no error.
    """

    writer: PatchWriter = PatchWriter.AUTO
    entry_only: bool = False
    all_or_nothing: bool = False
    dry_run: bool = False
    stop_deadline_ns: int = 0
    allow_multi: bool = False
    limits: Limits = Limits()
    lease: Lease | None = None
    pending: bool = False


@dataclass(frozen=True, slots=True)
class FunctionResult:
    """What became of one function of a request."""

    function: Function
    status: PatchStatus
    function_id: int = 0
    form: PatchForm = PatchForm.NONE
    writer: PatchWriter = PatchWriter.NONE
    refusal: RefusalReason = RefusalReason.NONE
    exit_refusal: RefusalReason = RefusalReason.NONE
    detail: str = ""
    kind: SiteKind = SiteKind.NONE


@dataclass(frozen=True, slots=True)
class PatchResult:
    """What became of all functions of a patch request.

    Attributes:
        results: One a function.
        enabled_count: How many are enabled now.
        refused_count: How many were refused.
        longest_pause_ns: The longest time that one thread stood still.
        longest_pause_tid: Which.
        elapsed_ns: The whole operation.
        plan_ns: Its planning part.
        writer_detail: Why threads had to be stopped; empty where none had.
        pauses: Nanoseconds by thread id, of all threads that stood still.
        pending_patterns: Those that match nothing yet.
    """

    results: tuple[FunctionResult, ...]
    enabled_count: int = 0
    refused_count: int = 0
    longest_pause_ns: int = 0
    longest_pause_tid: int = 0
    elapsed_ns: int = 0
    plan_ns: int = 0
    writer_detail: str = ""
    pauses: Mapping[int, int] = field(default_factory=dict)
    pending_patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnpatchResult:
    """What became of all functions of an unpatch request; as `PatchResult`."""

    results: tuple[FunctionResult, ...]
    disabled_count: int = 0
    longest_pause_ns: int = 0
    longest_pause_tid: int = 0
    elapsed_ns: int = 0
    writer_detail: str = ""
    pauses: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tracepoint:
    """One function of a session that is enabled, or throttled.

    Attributes:
        throttle: Why it is out, where it is throttled.
        limits: Its own, where it has some.
        calls_per_second: Lately; 0 where nothing is limited.
    """

    patch: FunctionResult
    owner: str
    enabled_unix_ns: int
    state: TracepointState = TracepointState.ENABLED
    throttle: Throttle | None = None
    limits: Limits = Limits()
    calls_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class TracedFunction:
    """The function behind an id of the records; `has_exit` is false for entry-only ones."""

    function_id: int
    name: str
    linkage_name: str = ""
    module: str = ""
    address: int = 0
    size: int = 0
    has_exit: bool = True


@dataclass(frozen=True, slots=True)
class MappedModule:
    """A mapped file of the target. An address minus `load_bias` is the file's own."""

    path: str
    build_id: str
    start: int
    end: int
    load_bias: int


@dataclass(frozen=True, slots=True)
class ThreadRecords:
    """Packed 16-byte records of one thread, in the order in which it wrote them."""

    tid: int
    records: bytes
    name: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """Records lost at one stage since the stream began, in all; `tid` 0 is unknown."""

    stage: LossStage
    records: int
    tid: int = 0


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Some records of a session.

    Attributes:
        sequence: Rises by one in a session.
        watermark_ticks: All records up to here have been sent; 0 is unknown.
        functions: Functions first named now.
        anchors: Clock readings; at least one in the first batch.
        losses: Cumulative counts.
        records_total: Records in all batches of the session up to this one.
        lost_total: Records lost at the rings since the session began.
        modules: In the first batch, and whenever they changed.
        end: Why the stream ends, in the last batch.
        end_detail: A sentence beside it.
        throttled: Tracepoints that were taken out because they cost too much; in the
            first batch, all that are out.
    """

    sequence: int
    threads: Sequence[ThreadRecords] = ()
    watermark_ticks: int = 0
    functions: Sequence[TracedFunction] = ()
    anchors: Sequence[ClockAnchor] = ()
    losses: Sequence[Loss] = ()
    records_total: int = 0
    lost_total: int = 0
    modules: Sequence[MappedModule] = ()
    end: EndReason = EndReason.NONE
    end_detail: str = ""
    throttled: Sequence[Throttle] = ()

    @property
    def record_count(self) -> int:
        """How many records this batch holds."""
        return sum(len(thread.records) for thread in self.threads) // RECORD_BYTES
