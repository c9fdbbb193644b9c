"""Patching in two steps, so that many agents can do the second one at the same moment.

    prepare -> PREPARED -> commit -> ARMED -> (the moment) -> DONE
                  |                    |
                  +------ abort -------+----> ABORTED

One session has one preparation at a time: whoever comes second is told so at once, and
waits for nobody, so that two clients that want the same processes cannot block each
other. What is prepared and not committed in time is dropped.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol, TypeVar

from uftrace_agent.engine.model import Status
from uftrace_agent.errors import ConflictError, InvalidRequestError, NoSuchPreparationError
from uftrace_agent.session.punctuality import before_others
from uftrace_agent.session.tracepoint_set import PreparedOrder, TracepointSet
from uftrace_agent.session.types import CommitOutcome, PatchOrder, PatchOutcome

_T = TypeVar("_T")

DEFAULT_HOLD_NS: Final = 30 * 10**9
LONGEST_HOLD_NS: Final = 600 * 10**9
DEFAULT_LATENESS_NS: Final = 10**9
_LONGEST_WAIT_NS: Final = 60 * 10**9
# Nothing else is begun so shortly before the moment.
_QUIET_NS: Final = 40_000_000
# So many functions are changed before others have their turn: it is short.
_FEW: Final = 64


class Runner(Protocol):
    """Has something done on the one thread that changes the process."""

    def __call__(self, operation: Callable[[], _T], /) -> Coroutine[None, None, _T]: ...


class Resting(Protocol):
    """How a thread waits in the middle of a change."""

    def rest(self, until_ns: int) -> None:
        """Do what is urgent and nothing else, until a moment (CLOCK_MONOTONIC) or `wake`;
        may return before."""

    def wake(self) -> None:
        """End it. From any thread."""


class Stage(Enum):
    """How far a preparation has come."""

    PREPARED = "prepared"
    ARMED = "armed"
    DONE = "done"
    ABORTED = "aborted"


@dataclass(slots=True)
class _Held:
    owner: str
    prepared: PreparedOrder
    ends_ns: int
    preparation_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    stage: Stage = Stage.PREPARED
    at_ns: int = 0
    most_late_ns: int = 0
    given_up: threading.Event = field(default_factory=threading.Event)
    outcome: asyncio.Future[CommitOutcome] | None = None

    def is_open(self, now_ns: int) -> bool:
        """Whether it stands in the way of others."""
        return self.stage is Stage.ARMED or (self.stage is Stage.PREPARED and now_ns < self.ends_ns)


class Coordination:
    """The preparations of one session. Belongs to the event loop.

    Args:
        pid: The process, for messages.
        tracepoints: The session's.
        run: Has changes made.
        resting: Of the thread that changes the process.
    """

    def __init__(
        self,
        pid: int,
        tracepoints: TracepointSet,
        run: Runner,
        resting: Resting,
    ) -> None:
        self._pid = pid
        self._tracepoints = tracepoints
        self._run = run
        self._resting = resting
        self._held: _Held | None = None
        self._is_preparing = False

    @property
    def is_busy(self) -> bool:
        """Whether something is prepared, or about to be."""
        held = self._held
        return self._is_preparing or (held is not None and held.is_open(time.monotonic_ns()))

    def check_free(self) -> None:
        """Refuse what would change a prepared process.

        Raises:
            ConflictError: Somebody is about to patch it.
        """
        if self.is_busy:
            held = self._held
            left_ns = held.ends_ns - time.monotonic_ns() if held is not None else 0
            owner = held.owner if held is not None else ""
            raise ConflictError(
                f"{owner or 'somebody'} is about to patch process {self._pid}",
                reason="PREPARED_BY_ANOTHER",
                hint="try again when that is done or given up"
                + (f", in {left_ns / 1e9:.0f} s at the latest" if left_ns > 0 else ""),
                metadata={"owner": owner},
            )

    async def prepare(
        self, order: PatchOrder, hold_ns: int, answer: Callable[[str, bool, PatchOutcome], _T]
    ) -> _T:
        """Make everything ready for an order.

        Args:
            order: What.
            hold_ns: For how long; 0 takes the default.
            answer: What to make of the preparation's id, of whether there is anything to
                commit, and of what would become of each function; on the worker.

        Raises:
            ConflictError: Somebody else has prepared something.
            AgentError: As for a patch.
        """
        if not 0 <= hold_ns <= LONGEST_HOLD_NS:
            raise InvalidRequestError(
                f"nothing is kept ready for {hold_ns / 1e9:g} seconds",
                hint=f"at most {LONGEST_HOLD_NS // 10**9}",
            )
        self.check_free()
        self._is_preparing = True

        def prepare() -> tuple[_Held, _T]:
            prepared, outcome = self._tracepoints.prepare(order)
            ends_ns = time.monotonic_ns() + (hold_ns or DEFAULT_HOLD_NS)
            held = _Held(order.owner, prepared, ends_ns)
            stands = prepared.preparation.stands
            return held, answer(held.preparation_id, stands, outcome)

        try:
            held, answered = await self._run(prepare)
        finally:
            self._is_preparing = False
        if held.prepared.preparation.stands:
            self._held = held
        return answered

    def commit(self, preparation_id: str, at_ns: int, most_late_ns: int) -> int:
        """Have the code changed at a moment; how long it is until then.

        Args:
            preparation_id: What.
            at_ns: The moment, on this host's CLOCK_MONOTONIC.
            most_late_ns: Nothing is changed if it cannot be by so long after the moment;
                0 takes the default.

        Raises:
            NoSuchPreparationError: It was given up, or not committed in time.
            InvalidRequestError: The moment is over, or too far away.
        """
        held, now_ns = self._get(preparation_id), time.monotonic_ns()
        in_ns = at_ns - now_ns
        if held.stage is not Stage.PREPARED:
            if (held.stage, held.at_ns) == (Stage.ARMED, at_ns):
                return in_ns
            raise ConflictError(f"preparation {preparation_id} is {held.stage.value} already")
        if now_ns >= held.ends_ns:
            raise _gone(preparation_id)
        most_late_ns = most_late_ns or DEFAULT_LATENESS_NS
        if not -most_late_ns <= in_ns <= _LONGEST_WAIT_NS:
            raise InvalidRequestError(
                f"the moment {'is over' if in_ns < 0 else 'is too far away'}: "
                f"it is {in_ns / 1e9:+.3f} seconds from now",
                reason="BAD_MOMENT",
                hint="prepare again, and give the agent's CLOCK_MONOTONIC: GetAgentInfo has it",
            )
        held.stage, held.at_ns, held.most_late_ns = Stage.ARMED, at_ns, most_late_ns
        held.outcome = asyncio.ensure_future(self._run(lambda: self._carry_out(held)))
        held.outcome.add_done_callback(lambda done: _settle(held, done))
        return max(in_ns, 0)

    # On the worker.
    def _carry_out(self, held: _Held) -> CommitOutcome:
        in_ns = max(held.at_ns - time.monotonic_ns(), 0)
        passed_ns = 0

        @contextmanager
        def barrier() -> Iterator[bool]:
            nonlocal passed_ns
            while held.at_ns - time.monotonic_ns() > _QUIET_NS and not held.given_up.is_set():
                self._resting.rest(held.at_ns - _QUIET_NS)
            with ExitStack() as turn:
                turn.enter_context(before_others())
                held.given_up.wait(max(held.at_ns - time.monotonic_ns(), 0) / 1e9)
                passed_ns = time.monotonic_ns()
                if len(held.prepared.preparation.tracepoints) > _FEW:
                    turn.close()
                is_late = passed_ns - held.at_ns > held.most_late_ns
                yield not (is_late or held.given_up.is_set())

        outcome, written_ns = self._tracepoints.commit(held.prepared, in_ns, barrier)
        return CommitOutcome(outcome, held.at_ns, passed_ns, written_ns)

    async def outcome(self, preparation_id: str) -> CommitOutcome:
        """What became of a commit, once it is there.

        Raises:
            NoSuchPreparationError: There is no such preparation, or it was given up.
            InvalidRequestError: It was not committed.
            AgentError: What went wrong.
        """
        held = self._get(preparation_id)
        if held.outcome is None:
            raise InvalidRequestError(
                f"preparation {preparation_id} has not been committed", hint="commit it first"
            )
        return await asyncio.shield(held.outcome)

    async def written(self, preparation_id: str) -> None:
        """Wait until a commit has changed the code.

        Raises:
            ConflictError: It was given up, or would have come too late.
            AgentError: As from `outcome`.
        """
        if not (await self.outcome(preparation_id)).written_ns:
            raise ConflictError(
                "given up, or too late for the moment that was agreed on", reason="NOT_COMMITTED"
            )

    async def abort(self, preparation_id: str) -> int:
        """Give a preparation up; what it has enabled is disabled again. How many that were.

        Raises:
            NoSuchPreparationError: There is none, and nothing to be undone.
            AgentError: The threads did not stop in time: try again.
        """
        held = self._get(preparation_id)
        held.given_up.set()
        self._resting.wake()
        count = 0
        if held.outcome is not None:
            done = await asyncio.shield(held.outcome)
            enabled = [
                result.function.address
                for result in done.patch.results
                if result.status is Status.ENABLED
            ]
            if enabled and held.stage is not Stage.ABORTED:
                count = await self._run(lambda: self._tracepoints.take_back(enabled))
        held.stage = Stage.ABORTED
        return count

    def give_up(self) -> None:
        """The session ends: nothing is waited for any more."""
        if self._held is not None:
            self._held.given_up.set()
            self._resting.wake()

    def _get(self, preparation_id: str) -> _Held:
        if self._held is None or self._held.preparation_id != preparation_id:
            raise _gone(preparation_id)
        return self._held


def _settle(held: _Held, done: asyncio.Future[CommitOutcome]) -> None:
    if held.stage is Stage.ARMED:
        held.stage = Stage.DONE
    # Nobody may ask for it.
    if not done.cancelled():
        done.exception()


def _gone(preparation_id: str) -> NoSuchPreparationError:
    return NoSuchPreparationError(
        f"there is no preparation {preparation_id!r}",
        hint="it was given up, or not committed in time: prepare again",
    )
