"""Values that the session layer takes and gives. No protobuf, no grpc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from uftrace_agent.engine.model import Form, Refusal, SiteKind, Status, Writer
from uftrace_agent.process.identity import ProcessId as ProcessId
from uftrace_agent.session.budget import NO_CHANGE, NO_LIMITS, LimitChange, LimitKind, Limits


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """Ring sizes: bytes of one thread's ring (a power of two) and how many rings."""

    ring_bytes: int = 4 << 20
    ring_count: int = 64


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A function of the process. `address` is the live one, `file_address` that in its file,
    `size` in bytes (0 unknown)."""

    name: str
    linkage_name: str
    module: str
    address: int
    size: int
    aliases: tuple[str, ...] = ()
    file_address: int = 0


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """A function and what the engine would do with it."""

    function: FunctionRef
    form: Form | None = None
    writer: Writer | None = None
    refusal: Refusal | None = None
    exit_refusal: Refusal | None = None
    detail: str = ""
    enabled: bool = False
    kind: SiteKind | None = None


@dataclass(frozen=True, slots=True)
class LeaseOrder:
    """How long something is to last from now, under a name by which that can be renewed."""

    name: str
    duration_ns: int


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease: its name, how long it lasts from now, how many tracepoints it holds."""

    name: str
    remaining_ns: int
    tracepoint_count: int


@dataclass(frozen=True, slots=True)
class PatchOrder:
    """What a Patch request asks for. `stop_deadline_ns` 0 takes the default; `pending`:
    also in modules that are loaded later."""

    patterns: Sequence[str]
    owner: str = ""
    writer: Writer = Writer.AUTO
    entry_only: bool = False
    all_or_nothing: bool = False
    dry_run: bool = False
    stop_deadline_ns: int = 0
    allow_multi: bool = False
    limits: LimitChange = NO_CHANGE
    lease: LeaseOrder | None = None
    pending: bool = False


@dataclass(frozen=True, slots=True)
class PatchResult:
    """What became of one function."""

    function: FunctionRef
    function_id: int
    status: Status
    form: Form | None = None
    writer: Writer | None = None
    refusal: Refusal | None = None
    exit_refusal: Refusal | None = None
    detail: str = ""
    kind: SiteKind | None = None


@dataclass(frozen=True, slots=True)
class PatchOutcome:
    """What became of all functions of a request; times in nanoseconds.

    `pauses` has the longest stop of each thread that was stopped, by thread id;
    `pending` the patterns that match nothing yet.
    """

    results: Sequence[PatchResult]
    longest_pause_ns: int = 0
    longest_pause_tid: int = 0
    elapsed_ns: int = 0
    plan_ns: int = 0
    writer_detail: str = ""
    pauses: Mapping[int, int] = field(default_factory=dict)
    pending: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CommitOutcome:
    """What became of a commit; CLOCK_MONOTONIC of the host.

    Attributes:
        patch: What became of each function.
        at_ns: The moment that was asked for.
        passed_ns: When the change began; 0: it was given up.
        written_ns: When the code had been changed; 0: it was not.
    """

    patch: PatchOutcome
    at_ns: int
    passed_ns: int
    written_ns: int


@dataclass(frozen=True, slots=True)
class Throttle:
    """A function that was taken out because it cost too much: what it did when it was,
    and what was allowed (in the unit of the limit).

    Attributes:
        cpu: Share of one processor.
        raised: The limit was raised since: it may be patched again.
    """

    function_id: int
    calls_per_second: float
    cpu: float
    limit: LimitKind
    allowed: float
    unix_ns: int
    raised: bool = False
    function: str = ""
    module: str = ""

    def words(self) -> str:
        """What it did and what was allowed, for people."""
        did = f"{self.calls_per_second:,.0f} calls/s took {self.cpu:.0%} of a processor"
        if self.limit is LimitKind.CPU:
            return f"{did}; {self.allowed * 100:.3g}% are allowed"
        return f"{did}; {self.allowed:,.0f} calls/s are allowed"


@dataclass(frozen=True, slots=True)
class TracepointInfo:
    """One function of a session that is enabled, or out (`throttle` says why).

    `calls_per_second` are those of late; 0 where nothing is limited.
    """

    patch: PatchResult
    owner: str
    enabled_unix_ns: int
    throttle: Throttle | None = None
    limits: LimitChange = NO_CHANGE
    calls_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as it stands now."""

    session_id: str
    process: ProcessId
    owner: str
    attached_unix_ns: int
    tracepoint_count: int
    records_produced: int
    records_lost: int
    annex_bytes: int
    stream_count: int
    end_reason: str = ""
    limits: Limits = NO_LIMITS
    cpu: float = 0.0
    throttled: Sequence[Throttle] = ()
    annex_limit_bytes: int = 0
    leases: Sequence[LeaseInfo] = ()
    pending_patterns: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class AttachOutcome:
    """The session, and what attaching took."""

    session: SessionInfo
    created: bool
    longest_pause_ns: int
    restored_sites: int


@dataclass(frozen=True, slots=True)
class LeaseOutcome:
    """The session after a lease was ended, and how many tracepoints went or stay."""

    session: SessionInfo
    tracepoint_count: int


@dataclass(frozen=True, slots=True)
class DetachOutcome:
    """What detaching did."""

    restored_sites: int
    conflicting_sites: int
    restored_frames: int
    longest_pause_ns: int
    records_produced: int
    records_lost: int


@dataclass(frozen=True, slots=True)
class LimitsOutcome:
    """What is allowed now; how many functions the patterns matched, and how many
    throttled ones may be patched again."""

    session: SessionInfo
    function_count: int
    raised_count: int


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """One moment on the target's ticks and on its host's clocks (nanoseconds)."""

    ticks: int
    monotonic_ns: int
    realtime_ns: int
    ticks_per_second: float


@dataclass(frozen=True, slots=True)
class TracedFunction:
    """The function behind an id of the records."""

    function_id: int
    function: FunctionRef
    has_exit: bool


@dataclass(frozen=True, slots=True)
class MappedModule:
    """A mapped file. `load_bias` + link-time address = live address."""

    path: str
    build_id: str
    start: int
    end: int
    load_bias: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Records lost since the stream began at one stage (numbers as in the API)."""

    stage: int
    records: int
    tid: int = 0


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Some records of a session; fields as in StreamEventsResponse.

    `threads` holds (tid, thread name, packed 16-byte records).
    """

    sequence: int
    threads: Sequence[tuple[int, str, bytes]] = ()
    watermark_ticks: int = 0
    functions: Sequence[TracedFunction] = ()
    anchors: Sequence[ClockAnchor] = ()
    losses: Sequence[Loss] = ()
    records_total: int = 0
    lost_total: int = 0
    modules: Sequence[MappedModule] = ()
    end: int = 0
    end_detail: str = ""
    record_count: int = field(default=0)
    throttled: Sequence[Throttle] = ()
