"""One patch on many processes at one moment, or on none.

    attach -> prepare -> (everyone is ready?) -> commit at T -> (everyone was changed?)
           -> watch -> next wave ... -> confirm

Until it is confirmed, what is enabled hangs on a lease (of 30 s) that the agents enforce:
a client that dies at any step leaves nothing enabled for longer. The moment T is told to
each agent on its own clock, well before it comes: so it does not matter how long a
request takes to get there, as long as all have got it by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import PatchStatus
from uftrace_remote.errors import (
    BusyTargetError,
    ConflictError,
    NotFoundError,
    PartialFailureError,
    TargetGoneError,
    UftraceError,
)
from uftrace_remote.fleet.fan_out import Outcome, fan_out
from uftrace_remote.fleet.member import Agent, Member
from uftrace_remote.fleet.rollout import Rollout, RolloutPolicy, Step, uneven_refusals
from uftrace_remote.preparation import CommitResult, Preparation
from uftrace_remote.values import FunctionResult, Lease, PatchOptions

# From the first commit request on its way to the moment itself. Busy hosts answer late:
# the moment waits for them, for each member a quarter longer than to have it prepare, and
# once more for as long as the slowest took to attach.
_MARGIN_SECONDS: Final = 0.1
_LEAD_SECONDS: Final = 1.0
_LEAD_PER_PACE: Final = 1.25
_LEAD_PER_MEMBER: Final = 0.003
_MOST_LEAD_FOR_SLOW: Final = 5.0
_MOST_LATE_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0
_TRIES: Final = 3

_CONTENTION: Final = ("PREPARED_BY_ANOTHER", "NO_SUCH_SESSION")

Progress = Callable[[str], None]
_ACTIVE = (PatchStatus.ENABLED, PatchStatus.ALREADY_ENABLED)


@dataclass(frozen=True, slots=True)
class PatchPlan:
    """What is to be enabled, and how it goes through the fleet.

    Attributes:
        patterns: Functions.
        options: How they are patched. Their lease is what they are to hang on in the
            end; None: they stay.
        policy: What a failure means, and who comes first.
        patience_seconds: How long to try again while others are about to patch some of
            the processes.
        probation_seconds: For how long after the client's last word what is prepared, or
            enabled and not confirmed yet, stays so. Longer than it takes to reach all.
        request_seconds: How long a member may take to attach, to plan, or to set back.
    """

    patterns: tuple[str, ...]
    options: PatchOptions = field(default_factory=PatchOptions)
    policy: RolloutPolicy = field(default_factory=RolloutPolicy)
    patience_seconds: float = 10.0
    probation_seconds: float = 30.0
    request_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class MemberOutcome:
    """What became of one process.

    Attributes:
        member: The process, with its plan and its commit.
        step: What it has come through.
        error: Why it is out; None where it is not.
        written_ns: When its code had been changed, on our CLOCK_MONOTONIC; 0: it was not.
        bound_ns: How far that may be from the truth.
        left_over: Why it could not be rolled back: it stays enabled until its lease
            ends; empty where nothing is left.
    """

    member: Member
    step: Step
    error: UftraceError | None = None
    written_ns: int = 0
    bound_ns: int = 0
    left_over: str = ""


Unreached = tuple[tuple[Endpoint, UftraceError], ...]


@dataclass(frozen=True, slots=True)
class FleetPatch:
    """What became of a patch of many processes.

    Attributes:
        members: Each process, by host and pid.
        is_enabled: Whether it stands; otherwise it was rolled back everywhere.
        lease: What the tracepoints hang on; None: they stay.
        unreached: Hosts that could not name their processes, and why.
    """

    members: tuple[MemberOutcome, ...]
    is_enabled: bool
    lease: Lease | None
    unreached: Unreached = ()

    @property
    def enabled(self) -> tuple[MemberOutcome, ...]:
        """Those whose code is changed now."""
        return tuple(m for m in self.members if self.is_enabled and m.error is None)

    @property
    def failed(self) -> tuple[MemberOutcome, ...]:
        """Those that are out."""
        return tuple(each for each in self.members if each.error is not None)

    @property
    def skew_ns(self) -> int:
        """From the first change to the last; clock errors add to it."""
        times = [each.written_ns for each in self.enabled if each.written_ns]
        return max(times) - min(times) if times else 0


async def patch_members(
    members: Sequence[Member],
    plan: PatchPlan,
    progress: Progress = lambda words: None,
    unreached: Unreached = (),
) -> FleetPatch:
    """Patch processes, all at one moment (of each wave) or none.

    Args:
        members: The processes; the clocks of their agents have been measured.
        plan: What is to be done.
        progress: Told what is being done.
        unreached: Hosts that could not name their processes: failures from the start.

    Returns:
        What became of it; also where it was rolled back.
    """
    most = plan.policy.most_failures
    if not members or (most is not None and len(unreached) > most):
        nothing = tuple(MemberOutcome(member, Step.NONE) for member in members)
        return FleetPatch(nothing, False, plan.options.lease, unreached)
    if most is not None:
        plan = replace(plan, policy=replace(plan.policy, most_failures=most - len(unreached)))
    until = time.monotonic() + plan.patience_seconds
    ordered = sorted(members, key=lambda member: member.key)
    while True:
        change = _Change(ordered, plan, progress)
        done = await change.run()
        # Their session, which we joined, may also have ended with their request.
        is_contended = any(
            each.error is not None and each.error.reason in _CONTENTION for each in done.failed
        )
        if done.is_enabled or not is_contended or time.monotonic() > until:
            return replace(done, unreached=unreached)
        progress("others are about to patch some of the processes: trying again")
        # Two that try again at the same intervals would meet again.
        await asyncio.sleep(random.uniform(0.1, 0.6))


class _Change:
    """One try."""

    def __init__(self, members: Sequence[Member], plan: PatchPlan, progress: Progress) -> None:
        self._members = members
        self._plan = plan
        self._progress = progress
        self._rollout = Rollout(plan.policy, len(members))
        self._left_over: dict[int, str] = {}
        self._pace = _LEAD_PER_MEMBER
        self._slowest_seconds = 0.0
        wanted = plan.options.lease
        name = wanted.name if wanted else f"fleet-{secrets.token_hex(4)}"
        self._probation = Lease(name, int(plan.probation_seconds * 1e9))
        # How long a lease of that name, which holds something else, would have lasted.
        self._before_ns: dict[tuple[str, int], int] = {}
        # The last wave waits for all others.
        waves = len(plan.policy.waves(len(members)))
        later = (waves - 1) * (plan.policy.watch_seconds + 5)
        self._hold_seconds = plan.probation_seconds + later

    async def run(self) -> FleetPatch:
        is_done = False
        try:
            is_done = await self._forward()
        finally:
            if not is_done:
                # Also where the user has had enough: nothing may stay half done.
                await asyncio.shield(self._roll_back(range(len(self._members))))
        return self._result(is_done)

    async def _forward(self) -> bool:
        if not await self._all(range(len(self._members)), "attaching", self._attach, Step.ATTACHED):
            return False
        if not await self._prepare():
            return False
        # Who is out already takes no place in a wave.
        going = list(self._rollout.going(Step.PREPARED))
        waves = self._plan.policy.waves(len(going))
        for number, wave in enumerate(waves):
            places = [going[at] for at in wave]
            if not await self._commit(places):
                return False
            if number + 1 < len(waves) and not await self._watch():
                return False
        return await self._all(
            list(self._rollout.going(Step.ENABLED)), "confirming", self._confirm, Step.CONFIRMED
        )

    # -- the steps ---------------------------------------------------------

    async def _attach(self, member: Member) -> None:
        attached = await member.agent.client.attach(member.process.reference)
        member.session_id = attached.session.session_id
        member.created = attached.created
        for held in attached.session.leases:
            if held.name == self._probation.name:
                self._before_ns[member.key] = held.remaining_ns

    # What hangs on a lease of that name already must not end sooner for our sake.
    def _lease(self, member: Member) -> Lease:
        before_ns = self._before_ns.get(member.key, 0)
        return replace(self._probation, duration_ns=max(self._probation.duration_ns, before_ns))

    # The first alone: of two clients that want the same processes one is through with
    # it before the other, who has nothing prepared then that the first would meet.
    async def _prepare(self) -> bool:
        places = list(self._rollout.going(Step.ATTACHED))
        for group in (places[:1], places[1:]):
            begun = time.monotonic()
            if not await self._all(group, "preparing", self._prepare_one, Step.PREPARED):
                return False
            # A commit request is less work than this was, for us as for them.
            if len(group) > 1:
                pace = (time.monotonic() - begun) / len(group)
                self._pace = min(pace, _LEAD_PER_MEMBER)
        going = list(self._rollout.going(Step.PREPARED))
        results = [_planned(self._members[place]) for place in going]
        uneven = uneven_refusals(
            [_names(each, _can_be_enabled) for each in results],
            [_names(each, lambda r: r.status is PatchStatus.REFUSED) for each in results],
        )
        for place, names in zip(going, uneven, strict=True):
            if names:
                self._rollout.failed(place, _refused_here(names))
        await self._leave_out()
        return self._rollout.goes_on

    async def _prepare_one(self, member: Member) -> None:
        options = replace(self._plan.options, lease=self._lease(member))
        wanted = self._plan.options.lease
        preparation = await member.agent.client.prepare_patch(
            member.session_id,
            self._plan.patterns,
            options,
            self._hold_seconds,
            last_lease=wanted,
            keep=wanted is None,
        )
        member.preparation = preparation
        if not preparation.ready or not _names(preparation.plan.results, _can_be_enabled):
            raise PartialFailureError(
                f"{preparation.plan.refused_count:,} functions are refused",
                hint="uftrace-remote functions --explain says why",
            )

    async def _commit(self, places: Sequence[int]) -> bool:
        self._progress(f"committing on {len(places):,}")
        members = [self._members[place] for place in places]
        lead = max(_LEAD_SECONDS, _LEAD_PER_PACE * self._pace * len(places))
        lead += 2 * _slowest_trip(members) + min(self._slowest_seconds, _MOST_LEAD_FOR_SLOW)
        at_ns = time.monotonic_ns() + int((lead + _MARGIN_SECONDS) * 1e9)

        async def arm(member: Member) -> None:
            assert member.preparation is not None and member.agent.clock is not None
            moment = member.agent.clock.to_agent(at_ns)
            client = member.agent.client
            await client.commit_patch(member.preparation, moment, _MOST_LATE_SECONDS)
            answers[member.key] = asyncio.create_task(client.await_patch(member.preparation))

        # Asked for while the moment is waited for, when there is nothing else to do.
        answers: dict[tuple[str, int], asyncio.Task[CommitResult]] = {}
        try:
            # Who has not answered by then may come too late, or be armed: it is given up.
            if not await self._each(places, arm, Step.ARMED, lead):
                return False
            left = max(at_ns - time.monotonic_ns(), 0) / 1e9
            deadline = left + _MOST_LATE_SECONDS + _ANSWER_SECONDS
            return await self._each(
                [p for p in places if self._rollout.steps[p] is Step.ARMED],
                lambda member: self._look_at_commit(member, answers[member.key]),
                Step.ENABLED,
                deadline,
            )
        finally:
            for answer in answers.values():
                answer.cancel()
            await asyncio.gather(*answers.values(), return_exceptions=True)

    async def _look_at_commit(self, member: Member, answer: asyncio.Task[CommitResult]) -> None:
        assert member.preparation is not None
        member.commit = done = await answer
        wanted = _names(member.preparation.plan.results, _can_be_enabled)
        missing = wanted - _names(done.patch.results, lambda r: r.status in _ACTIVE)
        if not missing:
            return
        if not done.is_written:
            raise BusyTargetError(
                "it came too late for the moment", reason="COMMIT_TOO_LATE", hint="try again"
            )
        raise PartialFailureError(
            f"{len(missing):,} functions could not be changed: {', '.join(sorted(missing)[:3])}"
        )

    # The lease is renewed meanwhile, and nothing may have gone wrong in the end.
    async def _watch(self) -> bool:
        until = time.monotonic() + self._plan.policy.watch_seconds
        self._progress(f"watching for {self._plan.policy.watch_seconds:g} s")
        while True:
            left = until - time.monotonic()
            await asyncio.sleep(max(min(left, self._plan.probation_seconds / 3), 0))
            places = list(self._rollout.going(Step.ENABLED))
            if not await self._each(places, self._look, None, self._plan.request_seconds):
                return False
            if time.monotonic() >= until:
                return True

    async def _look(self, member: Member) -> None:
        lease = self._lease(member)
        session = await member.agent.client.renew_lease(member.session_id, lease)
        if session.throttled:
            first = session.throttled[0]
            raise ConflictError(
                f"{first.function} cost too much and was taken out",
                reason="OVER_BUDGET",
                hint="raise its budget, or trace something that is called less often",
            )

    async def _confirm(self, member: Member) -> None:
        client, wanted = member.agent.client, self._plan.options.lease
        if wanted is not None:
            await client.renew_lease(member.session_id, wanted)
        else:
            await client.release_lease(member.session_id, self._probation.name, keep=True)

    # -- going back --------------------------------------------------------

    # Who is out is set back at once, where the others go on.
    async def _leave_out(self) -> None:
        if self._rollout.goes_on:
            await self._roll_back(sorted(self._rollout.failures))

    async def _roll_back(self, places: Sequence[int]) -> None:
        left = [p for p in places if self._members[p].session_id and p not in self._left_over]
        if not left:
            return
        # What goes wrong with telling it must not keep us from it.
        with contextlib.suppress(Exception):
            self._progress(f"rolling back on {len(left):,}")
        outcomes = await fan_out(
            left,
            lambda place: self._set_back(self._members[place]),
            deadline=self._plan.request_seconds / 4,
            name=self._agent_at,
        )
        for outcome in outcomes:
            if outcome.error is not None:
                self._left_over[outcome.host] = outcome.error.message
            else:
                self._members[outcome.host].session_id = ""

    async def _set_back(self, member: Member) -> None:
        client = member.agent.client
        for attempt in range(_TRIES):
            try:
                if member.preparation is not None:
                    await self._abort(member, member.preparation)
                if member.created:
                    # Others may have joined the session meanwhile.
                    await client.detach(member.session_id, if_unused=True)
                return
            except (NotFoundError, TargetGoneError):
                return  # nothing of it is left
            except BusyTargetError:
                if attempt + 1 == _TRIES:
                    raise

    async def _abort(self, member: Member, preparation: Preparation) -> None:
        try:
            await member.agent.client.abort_patch(preparation)
        except NotFoundError:
            # Somebody else's preparation, after our commit, has taken the place of ours.
            if member.key not in self._before_ns:
                with contextlib.suppress(NotFoundError):
                    await member.agent.client.release_lease(member.session_id, self._probation.name)

    # -- many at once ------------------------------------------------------

    async def _all(
        self,
        places: Sequence[int],
        what: str,
        ask: Callable[[Member], Awaitable[None]],
        step: Step,
    ) -> bool:
        if places:
            self._progress(f"{what} {len(places):,}")
        return await self._each(places, ask, step, self._plan.request_seconds)

    async def _each(
        self,
        places: Sequence[int],
        ask: Callable[[Member], Awaitable[None]],
        step: Step | None,
        deadline: float,
    ) -> bool:
        def note(outcome: Outcome[int, None]) -> None:
            if outcome.error is not None:
                self._rollout.failed(outcome.host, outcome.error)
            elif step is not None:
                self._rollout.passed(outcome.host, step)
            if step is Step.ATTACHED:
                self._slowest_seconds = max(self._slowest_seconds, outcome.seconds)

        await fan_out(
            places,
            lambda place: ask(self._members[place]),
            deadline=deadline,
            name=self._agent_at,
            on_outcome=note,
        )
        await self._leave_out()
        return self._rollout.goes_on

    def _agent_at(self, place: int) -> Agent:
        return self._members[place].agent

    def _result(self, is_done: bool) -> FleetPatch:
        outcomes = []
        for place, member in enumerate(self._members):
            failure = self._rollout.failures.get(place)
            written, clock = member.commit.written_ns if member.commit else 0, member.agent.clock
            outcomes.append(
                MemberOutcome(
                    member,
                    self._rollout.steps[place],
                    failure.error if failure else None,
                    clock.to_ours(written) if clock and written else 0,
                    clock.bound_ns if clock else 0,
                    self._left_over.get(place, ""),
                )
            )
        return FleetPatch(tuple(outcomes), is_done, self._plan.options.lease)


def _planned(member: Member) -> Sequence[FunctionResult]:
    return member.preparation.plan.results if member.preparation is not None else ()


def _names(
    results: Sequence[FunctionResult], wanted: Callable[[FunctionResult], bool]
) -> frozenset[str]:
    return frozenset(each.function.qualified_name for each in results if wanted(each))


def _can_be_enabled(result: FunctionResult) -> bool:
    return result.status in (*_ACTIVE, PatchStatus.NOT_ENABLED)


def _refused_here(names: frozenset[str]) -> PartialFailureError:
    some = ", ".join(sorted(names)[:3])
    return PartialFailureError(
        f"{len(names):,} functions are refused that others can enable: {some}",
        hint="is it the same program? uftrace-remote functions --explain says why; "
        "--best-effort goes on without this process",
    )


def _slowest_trip(members: Sequence[Member]) -> float:
    trips = [m.agent.clock.round_trip_ns for m in members if m.agent.clock is not None]
    return max(trips, default=0) / 1e9
