"""Processes of many hosts that are traced for one command: held, read, patched, left again.

An agent that dies, freezes or is cut off loses its own process; the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._leases import renewing
from uftrace_remote.cli._progress import clear_line
from uftrace_remote.cli._reading import Reading
from uftrace_remote.cli._tracing import SILENCE_SECONDS, Hold, describe_end, end_error, release
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import (
    ConnectionFailedError,
    NoSuchSessionError,
    OutputError,
    UftraceError,
)
from uftrace_remote.fleet.agents import measure_clocks
from uftrace_remote.fleet.clock_rounds import few_at_a_time
from uftrace_remote.fleet.coordinated_patch import FleetPatch, PatchPlan, patch_members
from uftrace_remote.fleet.fan_out import fan_out
from uftrace_remote.fleet.fleet import Answers
from uftrace_remote.fleet.grouping import host_label
from uftrace_remote.fleet.member import Agent, Member
from uftrace_remote.trace.clock_track import ClockMeasurement
from uftrace_remote.trace.fleet_store import member_names
from uftrace_remote.values import EventBatch, PatchResult, Session

_TICK_SECONDS: Final = 0.2
_MEASURE_SECONDS: Final = 15.0
_ATTACH_SECONDS: Final = 60.0
# Unpatching thousands of functions and emptying the rings takes longer than an answer;
# one that has been silent before is not waited for.
_LEAVE_SECONDS: Final = 60.0
_SILENT_LEAVE_SECONDS: Final = 3.0

Sink = Callable[[EventBatch], None]


@dataclass(slots=True, eq=False)
class Traced:
    """One process.

    Attributes:
        member: The process and its agent.
        name: By which it is shown: its host, and its pid where that is needed.
        held: Its session, once it is held.
        reading: Its stream.
        error: Why it is out; None where it is not.
        clocks: How far its host's clock was from ours.
        is_silent: Whether nothing comes from its agent at the moment.
        seconds: How long it was traced.
        end: Why that ended.
    """

    member: Member
    name: str
    held: Hold | None = None
    reading: Reading | None = None
    error: UftraceError | None = None
    clocks: list[ClockMeasurement] = field(default_factory=list)
    is_silent: bool = False
    seconds: float = 0.0
    end: str = "stopped"
    _patched: PatchResult | None = None
    _is_left: bool = False

    @property
    def is_going(self) -> bool:
        """Whether it is held and has not failed."""
        return self.reading is not None and self.error is None


class TracedFleet:
    """All of them: `attach`, `patch`, `run`, `leave`; `close` whatever happens.

    Args:
        found: The processes, and hosts that could not name theirs.

    Attributes:
        traced: The processes.
        fatal: What ended it for all of them, such as a full disk.
    """

    def __init__(self, found: Answers[Member]) -> None:
        names = member_names(
            [(host_label(each.agent.endpoint), each.process.pid) for each in found.values]
        )
        self.traced = [
            Traced(member, name) for member, name in zip(found.values, names, strict=True)
        ]
        self.fatal: UftraceError | None = None
        self._unreached = list(found.failures)
        self._clocks: dict[Endpoint, list[ClockMeasurement]] = {}
        for each in self.traced:
            each.clocks = self._clocks.setdefault(each.member.agent.endpoint, [])
        self._plan: PatchPlan | None = None
        self._measured_at = 0.0
        self._looked_at = 0.0

    @property
    def going(self) -> list[Traced]:
        """Those that are held and have not failed."""
        return [each for each in self.traced if each.is_going]

    @property
    def unreached(self) -> _fleet.Failures:
        """Hosts that could not name their processes, and why."""
        return self._unreached

    async def attach(self, open_sink: Callable[[Traced], Sink], *, join_only: bool = False) -> None:
        """Holds every process and begins to read it.

        Args:
            open_sink: Says what takes the batches of a process.
            join_only: Join sessions that are there, and fail where there is none.

        Raises:
            UftraceError: A sink could not be opened.
        """

        async def attach_one(traced: Traced) -> Hold:
            client, process = traced.member.agent.client, traced.member.process
            if join_only and not _is_held(await client.sessions(), process.pid):
                raise NoSuchSessionError(
                    f"nothing of {process.pid} is traced there", hint="name functions to patch"
                )
            attached = await client.attach(process.reference)
            return Hold(client, process, attached.session, attached.created)

        outcomes = await fan_out(self.traced, attach_one, deadline=_ATTACH_SECONDS, name=_agent_of)
        for traced, outcome in zip(self.traced, outcomes, strict=True):
            traced.error = outcome.error
            traced.held = outcome.value
        for traced in self.traced:
            if traced.held is not None:
                # What a reading says by itself does not say whose it is.
                sink = open_sink(traced)
                traced.reading = Reading(traced.held, sink, traced.name, lambda: None)
        await asyncio.gather(*(each.reading.begin() for each in self.going if each.reading))

    async def patch(self, plan: PatchPlan, progress: Callable[[str], None]) -> FleetPatch:
        """Patches every process at one moment. Who is left out is let go at the end."""
        self._plan = plan
        failed = [
            (each.member.agent.endpoint, each.error)
            for each in self.traced
            if each.error is not None
        ]
        done = await patch_members(
            [each.member for each in self.going], plan, progress, (*self._unreached, *failed)
        )
        by_member = {id(each.member): each for each in self.traced}
        for outcome in done.members:
            traced = by_member[id(outcome.member)]
            if done.is_enabled and outcome.error is None and outcome.member.commit is not None:
                traced._patched = outcome.member.commit.patch
            else:
                traced.error = outcome.error
        return done

    async def run(
        self, stop: asyncio.Event, deadline: float | None, tick: Callable[[], None]
    ) -> None:
        """Reads all until something ends it; what goes wrong with one is said when it does.

        Args:
            stop: Ends it.
            deadline: Ends it, in seconds of `time.monotonic()`.
            tick: Called some times a second.
        """
        await self._measure()
        self._looked_at = time.monotonic()
        pending = {asyncio.create_task(self._collect(each, stop, deadline)) for each in self.going}
        measuring: asyncio.Task[None] | None = None
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=_TICK_SECONDS)
                for task in done:
                    task.result()
                self._look_for_silence()
                if time.monotonic() - self._measured_at > _MEASURE_SECONDS:
                    self._measured_at = time.monotonic()
                    measuring = asyncio.create_task(self._measure())
                tick()
        finally:
            clear_line()
            for rest in (*pending, *([measuring] if measuring else [])):
                await _cancelled(rest)

    async def leave(self) -> None:
        """Unpatches every process, reads what its rings still hold, and lets it go."""
        await self._measure()
        left = [each for each in self.traced if each.reading is not None and not each._is_left]
        outcomes = await fan_out(left, self._leave_one, deadline=2 * _LEAVE_SECONDS, name=_agent_of)
        for outcome in outcomes:
            if isinstance(outcome.error, OutputError):
                self.fatal = self.fatal or outcome.error
            elif outcome.host.error is None:
                outcome.host.error = outcome.error

    async def close(self) -> None:
        """Lets go whom `leave` did not, and ends the streams."""
        await asyncio.shield(self._close())

    # -- one of them -------------------------------------------------------

    async def _collect(self, traced: Traced, stop: asyncio.Event, deadline: float | None) -> None:
        assert traced.reading is not None
        held = traced.reading.held
        started = time.monotonic()
        lease = self._plan.options.lease if self._plan else None
        try:
            async with renewing(held.agent, held.session_id, lease, traced.name):
                await traced.reading.collect(stop, deadline)
        except OutputError as error:
            # The disk is everybody's.
            self.fatal = self.fatal or error
            stop.set()
        except UftraceError as error:
            traced.error, traced.end = error, "its stream broke"
            self._say(traced, f"{error.message}; the others go on")
        last = traced.reading.last
        if last is not None:
            traced.end = describe_end(last)
            traced.error = end_error(last)
            self._say(traced, traced.end)
        traced.is_silent = traced.is_silent and traced.error is None
        traced.seconds = time.monotonic() - started

    async def _leave_one(self, traced: Traced) -> None:
        reading = traced.reading
        assert reading is not None
        traced._is_left = True
        is_slow = traced.is_silent or traced.error is not None
        limit = asyncio.timeout(_SILENT_LEAVE_SECONDS if is_slow else _LEAVE_SECONDS)
        try:
            async with limit:
                if traced.error is not None and reading.last is None:
                    with contextlib.suppress(UftraceError):
                        await release(reading.held, traced._patched)
                else:
                    await reading.leave(traced._patched)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ConnectionFailedError(
                "its agent does not answer",
                reason="DEADLINE_EXCEEDED",
                hint="what is patched there ends with its lease, within 30 s of its waking up",
            ) from None
        finally:
            await reading.close()

    async def _close(self) -> None:
        left = [each for each in self.traced if each.held is not None and not each._is_left]

        async def let_go(traced: Traced) -> None:
            assert traced.held is not None
            traced._is_left = True
            if traced.reading is not None:
                await traced.reading.close()
            await release(traced.held, traced._patched)

        await fan_out(left, let_go, deadline=_SILENT_LEAVE_SECONDS)

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        # For as long as we ourselves stood still, nobody could be heard.
        limit = SILENCE_SECONDS + max(now - self._looked_at - _TICK_SECONDS, 0.0)
        self._looked_at = now
        for each in self.going:
            assert each.reading is not None
            is_broken = each.reading.is_broken
            silent = is_broken or each.reading.silent_seconds > limit
            silent = silent and not each.seconds
            if silent and not each.is_silent:
                what = "the connection broke; trying to get it back"
                if not is_broken:
                    what = "nothing from its agent for some seconds; waiting for it"
                self._say(each, what)
            elif each.is_silent and not silent and not each.seconds:
                self._say(each, "its agent is back")
            each.is_silent = silent or (each.is_silent and bool(each.seconds))

    def _say(self, traced: Traced, what: str) -> None:
        clear_line()
        _output.note(f"# {traced.name}: {what}")

    # -- clocks ------------------------------------------------------------

    async def _measure(self) -> None:
        self._measured_at = time.monotonic()
        agents = {each.member.agent.endpoint: each.member.agent for each in self.going}
        silent = {each.member.agent.endpoint for each in self.going if each.is_silent}

        async def measure(agent: Agent) -> None:
            clocks = await measure_clocks(agent.client)
            now, offset = time.monotonic_ns(), clocks.monotonic
            self._clocks[agent.endpoint].append(
                ClockMeasurement(now, offset.offset_ns, offset.bound_ns)
            )

        asked = [agent for endpoint, agent in agents.items() if endpoint not in silent]
        # Who does not answer keeps what was measured before.
        await fan_out(asked, measure, deadline=_SILENT_LEAVE_SECONDS)
        await few_at_a_time(asked, measure)


def _agent_of(traced: Traced) -> Agent:
    return traced.member.agent


def _is_held(sessions: Sequence[Session], pid: int) -> bool:
    return any(each.process.pid == pid for each in sessions)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
