# `record` of many processes: one trace for each of them, and what they have in common.
from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._patch_fleet import print_patch, print_refused, raise_failures
from uftrace_remote.cli._progress import clear_line, show_line
from uftrace_remote.cli._settings import Settings, run_until_interrupted
from uftrace_remote.cli._trace_metadata import (
    agent_metadata,
    outcome_metadata,
    recorded_by,
    trace_metadata,
)
from uftrace_remote.cli._traced_fleet import Sink, Traced, TracedFleet
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.errors import OutputError, UftraceError
from uftrace_remote.fleet.address import FleetTarget
from uftrace_remote.fleet.coordinated_patch import FleetPatch, PatchPlan
from uftrace_remote.fleet.fleet import Answers
from uftrace_remote.fleet.grouping import host_label
from uftrace_remote.fleet.inventory import Inventory
from uftrace_remote.fleet.member import Agent, Member
from uftrace_remote.trace.fleet_store import FleetWriter
from uftrace_remote.trace.store import TraceWriter

_PROGRESS_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """What to record.

    Attributes:
        plan: What to patch, and who may fail.
        duration_ns: For how long; None: until it is stopped.
        directory: Where to.
        force: Replace a recording that is there.
        inventory: The groups that its hosts are in.
    """

    plan: PatchPlan
    duration_ns: int | None
    directory: Path
    force: bool = False
    inventory: Inventory = field(default_factory=Inventory)


@dataclass(frozen=True, slots=True)
class MemberRecording:
    """What came of one process.

    Attributes:
        directory: Of its trace, inside of the recording's.
        error: Why its trace is not whole; None where it is.
    """

    name: str
    host: Endpoint
    pid: int
    directory: str
    seconds: float
    produced: int
    delivered: int
    lost: int
    losses: dict[str, int]
    exact: bool | None
    event_bytes: int
    end: str
    error: UftraceError | None


@dataclass(frozen=True, slots=True)
class FleetRecording:
    """What came of all.

    Attributes:
        patch: What became of the patch; nothing was recorded where it is not enabled.
        processes: Those that were recorded.
        left_out: Those that were not: where, and why.
        fatal: What ended the recording for all of them.
    """

    directory: Path
    patch: FleetPatch
    seconds: float
    processes: tuple[MemberRecording, ...] = ()
    left_out: _fleet.Failures = ()
    fatal: UftraceError | None = None


def record_fleet(settings: Settings, target: str, request: FleetRequest, *, as_json: bool) -> None:
    """Records every process of a fleet that TARGET means."""
    where = FleetTarget.parse(target)

    async def work(stop: asyncio.Event) -> FleetRecording:
        async with _fleet.open_fleet(settings, where) as fleet:
            show_line("asking who is there")
            found = await fleet.members(where.process)
            clear_line()
            return await record_members(found, request, stop)

    done = run_until_interrupted(work)
    if as_json:
        _output.print_json(_to_json(done))
    elif done.patch.is_enabled:
        _print(done, settings.color)
    else:
        print_patch(done.patch, len(request.plan.policy.waves(1)), settings.color)
    if not done.patch.is_enabled:
        raise_failures(done.patch)
        return
    if done.fatal is not None:
        raise done.fatal
    errors = [each.error for each in done.processes if each.error is not None]
    errors += [error for _, error in done.left_out]
    count = len(done.processes) + len(done.left_out)
    _fleet.raise_failures(errors, count, "processes")


async def record_members(
    found: Answers[Member], request: FleetRequest, stop: asyncio.Event
) -> FleetRecording:
    """Records processes until something ends it.

    Args:
        found: The processes, and hosts that could not name theirs.
        request: What to record.
        stop: Ends it.

    Raises:
        OutputError: The directory is in use or cannot be written from the start.
        UftraceError: There is no process at all.
    """
    if not found.values:
        _fleet.note_failures(found.failures)
        errors = [error for _, error in found.failures]
        _fleet.raise_failures(errors, len(errors), "hosts")
    recording = _Recording(found, request)
    try:
        return await recording.run(stop)
    finally:
        await recording.close()


class _Recording:
    def __init__(self, found: Answers[Member], request: FleetRequest) -> None:
        self._request = request
        self._fleet = TracedFleet(found)
        self._traces: dict[Traced, TraceWriter] = {}
        self._places: dict[Traced, str] = {}
        self._writer = FleetWriter(
            request.directory,
            {
                "recorded_by": recorded_by(),
                "recorded_unix_ns": time.time_ns(),
                "recorded_monotonic_ns": time.monotonic_ns(),
                "patterns": list(request.plan.patterns),
            },
            force=request.force,
        )
        self._started = time.monotonic()
        self._seconds = 0.0
        self._progress = (self._started, 0)

    async def run(self, stop: asyncio.Event) -> FleetRecording:
        fleet, plan = self._fleet, self._request.plan
        await fleet.attach(self._open_trace)
        self._save()
        patch = await fleet.patch(plan, show_line)
        clear_line()
        if not patch.is_enabled:
            return FleetRecording(self._request.directory, patch, 0.0)
        print_refused(patch)
        self._discard([each for each in fleet.traced if each.error is not None])
        going = len(fleet.going)
        _output.note(
            f"recording {going:,} {'process' if going == 1 else 'processes'}; Ctrl-C stops"
        )
        self._started = time.monotonic()
        limit = self._request.duration_ns
        deadline = None if limit is None else self._started + limit / 1e9
        await fleet.run(stop, deadline, self._show_progress)
        self._seconds = time.monotonic() - self._started
        await fleet.leave()
        return self._finish(patch)

    async def close(self) -> None:
        """Lets everything go; what holds nothing is removed."""
        await self._fleet.close()
        self._discard([each for each in self._fleet.traced if each in self._traces])
        if not any(self._writer.directory.glob("*/events.bin")):
            self._writer.discard()

    def _open_trace(self, traced: Traced) -> Sink:
        agent, process = traced.member.agent, traced.member.process
        assert agent.info is not None
        place = self._writer.place(host_label(agent.endpoint), process.reference.pid)
        patterns = self._request.plan.patterns
        metadata = trace_metadata(agent.info, process, agent.endpoint, patterns)
        self._traces[traced] = trace = TraceWriter(place, metadata)
        self._places[traced] = place.name
        return trace.write

    # Traces of those that were never patched, or whose recording ended with an error.
    def _discard(self, those: Sequence[Traced]) -> None:
        for each in those:
            trace = self._traces.pop(each, None)
            if trace is None:
                continue
            trace.close()
            if not trace.record_count:
                trace.discard()
                del self._places[each]

    def _finish(self, patch: FleetPatch) -> FleetRecording:
        fleet = self._fleet
        recorded = [each for each in fleet.traced if each in self._traces]
        done = []
        for each in recorded:
            assert each.reading is not None
            trace = self._traces.pop(each)
            counts = each.reading.counts
            if each.error is not None and each.end == "stopped":
                each.end = each.error.message
            try:
                trace.finish(outcome_metadata(counts, each.seconds, each.end))
            except OutputError as error:
                fleet.fatal = fleet.fatal or error
            finally:
                trace.close()
            done.append(
                MemberRecording(
                    name=each.name,
                    host=each.member.agent.endpoint,
                    pid=each.member.process.reference.pid,
                    directory=trace.directory.name,
                    seconds=round(each.seconds, 3),
                    produced=counts.produced,
                    delivered=counts.delivered,
                    lost=counts.lost,
                    losses=counts.losses,
                    exact=counts.exact,
                    event_bytes=trace.bytes_written,
                    end=each.end,
                    error=each.error,
                )
            )
        failed = [
            (each.member.agent.endpoint, each.error)
            for each in fleet.traced
            if each not in recorded and each.error is not None
        ]
        left_out = (*fleet.unreached, *failed)
        try:
            self._save(done, left_out)
        except OutputError as error:
            fleet.fatal = fleet.fatal or error
        return FleetRecording(
            self._request.directory, patch, self._seconds, tuple(done), left_out, fleet.fatal
        )

    def _save(
        self, done: Sequence[MemberRecording] | None = None, left_out: _fleet.Failures = ()
    ) -> None:
        outcomes = {each.directory: each for each in done or ()}
        members = []
        for each, place in self._places.items():
            agent = each.member.agent
            assert agent.info is not None
            members.append(
                {
                    "directory": place,
                    "name": each.name,
                    "host": str(agent.endpoint),
                    "origins": list(agent.origins),
                    "groups": self._groups(agent),
                    "agent": agent_metadata(agent.info, agent.endpoint),
                    "process": _output.to_json(each.member.process),
                    "clocks": _output.to_json(each.clocks),
                    "outcome": _outcome_json(outcomes.get(place)),
                }
            )
        news: dict[str, Any] = {"members": members}
        if done is not None:
            news |= {
                "complete": True,
                "seconds": round(self._seconds, 3),
                "left_out": _failures_json(left_out),
            }
        self._writer.save(news)

    # With those that stand above the group that named it.
    def _groups(self, agent: Agent) -> list[str]:
        inventory = self._request.inventory
        named = {origin.split(" ")[0][1:] for origin in agent.origins if origin.startswith("@")}
        return [
            name
            for name in inventory.groups
            if named & {group.name for group in inventory.members(name)}
        ]

    def _show_progress(self) -> None:
        now, (then, before) = time.monotonic(), self._progress
        if now - then < _PROGRESS_SECONDS:
            return
        counts = [each.reading.counts for each in self._fleet.traced if each.reading is not None]
        count = sum(each.delivered for each in counts)
        self._progress = now, count
        silent = sum(each.is_silent for each in self._fleet.going)
        show_line(
            f"recording {now - self._started:.1f} s: {len(self._fleet.going):,} processes, "
            f"{_output.plural(count, 'record')} ({(count - before) / (now - then):,.0f}/s), "
            f"{sum(each.lost for each in counts):,} lost" + (f", {silent} silent" if silent else "")
        )


# -- what came of it -----------------------------------------------------------


def _print(done: FleetRecording, color: bool | None) -> None:
    groups: dict[tuple[str, str], list[MemberRecording]] = {}
    for each in done.processes:
        groups.setdefault((_state(each), _checked(each)), []).append(each)
    rows = [
        (
            f"{len(those):,}",
            f"{sum(each.delivered for each in those):,}",
            f"{sum(each.lost for each in those):,}",
            _output.size(sum(each.event_bytes for each in those)),
            checked,
            those[0].name if len(those) == 1 else _fleet.fold(each.host for each in those),
            state,
        )
        for (state, checked), those in sorted(groups.items(), key=lambda each: -len(each[1]))
    ]
    rows += [
        ("1", "-", "-", "-", "-", host_label(host), f"left out: {_fleet.brief(error, host)}")
        for host, error in done.left_out
    ]
    _output.print_table(
        [
            ("PROCESSES", "right"),
            ("RECORDS", "right"),
            ("LOST", "right"),
            ("SIZE", "right"),
            ("CHECKED", "left"),
            ("ON", "left"),
            ("STATE", "left"),
        ],
        rows,
        color=color,
    )
    delivered = sum(each.delivered for each in done.processes)
    lost = sum(each.lost for each in done.processes)
    count = len(done.processes)
    click.echo(
        f"recorded {_output.plural(delivered, 'record')} of {count:,} "
        f"{'process' if count == 1 else 'processes'} in {done.seconds:.1f} s, "
        f"{lost:,} lost, {_output.size(sum(each.event_bytes for each in done.processes))} "
        f"in {done.directory}"
    )
    for each in done.processes:
        if each.exact is False:
            _output.note(
                f"warning: {each.name}: {each.produced:,} produced is not {each.delivered:,} "
                f"delivered + {each.lost:,} lost; please report this"
            )
    for hint in dict.fromkeys(each.error.hint for each in done.processes if each.error):
        if hint:
            _output.note(f"hint: {hint}")


def _state(each: MemberRecording) -> str:
    if each.error is not None:
        return f"failed: {_fleet.brief(each.error, each.host)}"
    return each.end


def _checked(each: MemberRecording) -> str:
    return {True: "yes", False: "NO", None: "-"}[each.exact]


def _outcome_json(each: MemberRecording | None) -> dict[str, Any] | None:
    if each is None:
        return None
    return {
        "seconds": each.seconds,
        "produced": each.produced,
        "delivered": each.delivered,
        "lost": each.lost,
        "losses": each.losses,
        "exact": each.exact,
        "event_bytes": each.event_bytes,
        "end": each.end,
        "error": _fleet.error_json(each.error),
    }


def _failures_json(failures: _fleet.Failures) -> list[dict[str, Any]]:
    return [{"host": str(host), "error": _fleet.error_json(error)} for host, error in failures]


def _to_json(done: FleetRecording) -> dict[str, Any]:
    left_out = done.left_out if done.patch.is_enabled else done.patch.unreached
    return {
        "directory": str(done.directory),
        "enabled": done.patch.is_enabled,
        "seconds": round(done.seconds, 3),
        "skew_ns": done.patch.skew_ns,
        "processes": [
            {
                "name": each.name,
                "host": str(each.host),
                "pid": each.pid,
                "directory": each.directory,
                **(_outcome_json(each) or {}),
            }
            for each in done.processes
        ],
        "left_out": _failures_json(left_out),
    }
