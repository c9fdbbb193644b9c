"""Which members of a fleet go on, and when all go back. No I/O.

A change of many processes goes through the same steps on each of them. This keeps count
of who has come how far, and says what a failure means: by default one is enough for
everything to be rolled back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

from uftrace_remote.errors import UftraceError, UsageError


class Step(IntEnum):
    """How far a member has come: through this one."""

    NONE = 0
    ATTACHED = 1
    PREPARED = 2
    ARMED = 3
    ENABLED = 4
    CONFIRMED = 5


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """How a change goes through a fleet.

    Attributes:
        most_failures: So many members may fail and are left out; None: any number, as
            long as one is left.
        canary: So many members are changed first, and watched; 0: none.
        canary_share: The same as a share of all members, 0 to 1; the larger counts.
        batch: So many at a time after that; 0: all.
        watch_seconds: How long members are watched before the next ones are changed.
    """

    most_failures: int | None = 0
    canary: int = 0
    canary_share: float = 0.0
    batch: int = 0
    watch_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.most_failures is not None and self.most_failures < 0:
            raise _wrong(f"{self.most_failures} members cannot fail")
        if self.canary < 0 or self.batch < 0 or not 0 <= self.canary_share <= 1:
            raise _wrong("canary and batch are numbers of members, or a share of 100% at most")
        if not 0 <= self.watch_seconds <= 3600:
            raise _wrong(f"members cannot be watched for {self.watch_seconds:g} seconds")

    def waves(self, count: int) -> list[range]:
        """Members by place, in the order in which they are changed."""
        first = min(count, max(self.canary, -int(-self.canary_share * count // 1)))
        size = self.batch or max(count, 1)
        edges = [0, *([first] if first else []), *range(first + size, count, size), count]
        return [range(begin, end) for begin, end in pairwise(edges) if end > begin]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a member is out, and what it had come through."""

    place: int
    step: Step
    error: UftraceError


@dataclass(slots=True)
class Rollout:
    """One change of `count` members.

    Attributes:
        policy: What failures mean.
        steps: What each member has come through.
        failures: Those that are out, in the order in which they failed.
    """

    policy: RolloutPolicy
    count: int
    steps: list[Step] = field(default_factory=list)
    failures: dict[int, Failure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = [Step.NONE] * self.count

    def passed(self, place: int, step: Step) -> None:
        """A member has come through a step.

        Raises:
            ValueError: It is out, or left a step out.
        """
        if place in self.failures or step != self.steps[place] + 1:
            raise ValueError(
                f"member {place} is at {self.steps[place].name}: {step.name} is not next"
            )
        self.steps[place] = step

    def failed(self, place: int, error: UftraceError) -> None:
        """A member is out; only the first reason counts."""
        self.failures.setdefault(place, Failure(place, self.steps[place], error))

    def going(self, step: Step = Step.NONE) -> Iterator[int]:
        """The members that are not out and have come through a step."""
        return (
            place
            for place, reached in enumerate(self.steps)
            if reached >= step and place not in self.failures
        )

    @property
    def goes_on(self) -> bool:
        """Whether the change goes on; otherwise everything is rolled back."""
        if len(self.failures) == self.count:
            return False
        most = self.policy.most_failures
        return most is None or len(self.failures) <= most

    @property
    def is_done(self) -> bool:
        """Whether everyone who is not out has been confirmed."""
        return self.goes_on and all(self.steps[place] is Step.CONFIRMED for place in self.going())


def uneven_refusals(
    ready: Sequence[frozenset[str]], refused: Sequence[frozenset[str]]
) -> list[frozenset[str]]:
    """What is refused on one member and ready on another: tracing it here and not there
    would compare what cannot be compared. What is refused everywhere is no failure of
    any member.

    Args:
        ready: The functions of each member that can be enabled.
        refused: Those that cannot.
    """
    anywhere = frozenset().union(*ready) if ready else frozenset()
    return [frozenset(names & anywhere) for names in refused]


def _wrong(what: str) -> UsageError:
    return UsageError(what, reason="BAD_POLICY")
