"""How far an agent's clock is from ours, and how sure that is. No I/O.

The agent reads its clock somewhere between our sending the question and our
receiving the answer. Taking the middle is wrong by half of the round trip at
most, whatever the way there and the way back took; so the shortest round trip
gives the best estimate (RFC 5905 section 10, the clock filter).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from uftrace_remote.errors import ConnectionFailedError


@dataclass(frozen=True, slots=True)
class ClockSample:
    """One question and its answer, in nanoseconds.

    Attributes:
        sent_ns: Our clock when the question left.
        agent_ns: The agent's clock when it answered.
        received_ns: Our clock when the answer was here.
    """

    sent_ns: int
    agent_ns: int
    received_ns: int

    @property
    def round_trip_ns(self) -> int:
        """From sending to receiving."""
        return self.received_ns - self.sent_ns


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """The agent's clock minus ours, in nanoseconds.

    Attributes:
        offset_ns: The estimate; positive where the agent is ahead.
        bound_ns: The true offset is no further from it than this.
        round_trip_ns: Of the sample that it is from.
        sample_count: Samples that it was chosen from.
    """

    offset_ns: int
    bound_ns: int
    round_trip_ns: int
    sample_count: int = 1

    def to_agent(self, our_ns: int) -> int:
        """A moment of our clock on the agent's."""
        return our_ns + self.offset_ns

    def to_ours(self, agent_ns: int) -> int:
        """A moment of the agent's clock on ours."""
        return agent_ns - self.offset_ns


def estimate(samples: Iterable[ClockSample]) -> ClockOffset:
    """The best estimate of these samples; one during which our clock was set back does not count.

    Raises:
        ConnectionFailedError: No sample counts.
    """
    sound = [sample for sample in samples if sample.round_trip_ns >= 0]
    if not sound:
        raise ConnectionFailedError(
            "the clock offset could not be measured: no answer told the time, or this host's clock "
            "was set back meanwhile",
            reason="CLOCK_UNKNOWN",
            hint="try again; an agent of an older release may not tell the time",
        )
    best = min(sound, key=lambda sample: sample.round_trip_ns)
    # Rounded up: the middle of an odd round trip is half a nanosecond off.
    bound = (best.round_trip_ns + 1) // 2
    middle = (best.sent_ns + best.received_ns) // 2
    return ClockOffset(best.agent_ns - middle, bound, best.round_trip_ns, len(sound))
