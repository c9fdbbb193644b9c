"""What a stream of many agents says about itself. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from uftrace_remote.enums import EndReason
from uftrace_remote.errors import UftraceError
from uftrace_remote.fleet.member import Member
from uftrace_remote.fleet.merge import LATE_AFTER_NS, MOST_AT_ONCE, MOST_RECORDS
from uftrace_remote.fleet.merged_events import Certainty, MergedEvents, SourceCounts
from uftrace_remote.values import Throttle, TracedFunction

# The stage of losses that are this client's own, beside those of `LossStage`.
MERGE: Final = "merge"


class SourceState(Enum):
    """How it is with the stream of one process."""

    # Nothing has come yet.
    WAITING = auto()
    LIVE = auto()
    # What comes is so old that nobody waits for it.
    SLOW = auto()
    # Not even heartbeats come.
    SILENT = auto()
    # The connection broke; it is being made again.
    BROKEN = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One process of a merged stream, as it stands now.

    Attributes:
        number: As in `MergedEvents.source`.
        member: The process.
        state: How it is.
        since_ns: Since when, on our CLOCK_MONOTONIC; of a silent one, when it was heard
            of last.
        watermark_ns: Up to where it has come.
        bound_ns: How far its times may be from the truth.
        counts: What became of its events here.
        records: Records that came, with those that are no events (`markers`).
        losses: Records lost since the stream began, by stage: the lower-case names of
            `LossStage`, and `MERGE`.
        end: Why the stream ended, where the agent said so.
        detail: A sentence about the state; may be empty.
        error: What a broken stream broke of, or what ended it.
    """

    number: int
    member: Member
    state: SourceState = SourceState.WAITING
    since_ns: int = 0
    watermark_ns: int = 0
    bound_ns: int = 0
    counts: SourceCounts = field(default_factory=SourceCounts)
    records: int = 0
    markers: int = 0
    losses: Mapping[str, int] = field(default_factory=dict)
    end: EndReason = EndReason.NONE
    detail: str = ""
    error: UftraceError | None = None

    @property
    def lost(self) -> int:
        """Records lost at all stages."""
        return sum(self.losses.values())


@dataclass(frozen=True, slots=True)
class MergedBatch:
    """What a stream of many agents gives at a time.

    Attributes:
        events: In order; may be none.
        certainty: Up to where all is here.
        sources: Each process, by its number in the columns.
        throttled: Tracepoints that were taken out because they cost too much, with the
            number of the source.
    """

    events: MergedEvents
    certainty: Certainty
    sources: tuple[SourceStatus, ...]
    throttled: tuple[tuple[int, Throttle], ...] = ()


@dataclass(frozen=True, slots=True)
class SourceNames:
    """What numbers in the columns of one source mean; both grow while the stream runs.

    Attributes:
        functions: By function id.
        threads: Names of threads and goroutines by tid.
    """

    functions: Mapping[int, TracedFunction]
    threads: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How many streams become one.

    Attributes:
        include_buffered: Begin with what the rings hold from before; None: of processes
            that were attached for this.
        reconnect_seconds: How long to try to get a broken stream back.
        silent_seconds: Who is not heard of for so long is silent.
        late_after_ns: Who is so far behind the others is not waited for.
        most_records: So many may wait for the consumer; more are dropped, and counted.
        most_at_once: So many events are given at a time, at most.
        interval_seconds: Between two batches, unless more waits.
        clock_seconds: Between two measurements of a host's clock.
    """

    include_buffered: bool | None = None
    reconnect_seconds: float = 30.0
    silent_seconds: float = 2.0
    late_after_ns: int = LATE_AFTER_NS
    most_records: int = MOST_RECORDS
    most_at_once: int = MOST_AT_ONCE
    interval_seconds: float = 0.05
    clock_seconds: float = 10.0
