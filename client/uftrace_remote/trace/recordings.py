"""What people name to read: a trace, a recording of a fleet, or a part of one.

DIR                 a trace directory, or that of a recording of many processes
DIR:web1            what was recorded on a host; web1:1234 where that is several processes
DIR:@web            on the hosts of a group
DIR:build-id=5fd3   of the processes of one build
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uftrace_remote.errors import OutputError, UsageError
from uftrace_remote.trace.clock_track import ClockMeasurement, ClockTrack
from uftrace_remote.trace.fleet_store import is_fleet_recording, load_fleet_file
from uftrace_remote.trace.store import TraceReader

_LISTED = 8


@dataclass(frozen=True, slots=True, eq=False)
class MemberTrace:
    """The trace of one process.

    Attributes:
        name: By which it is shown: its host, and its pid where that is needed.
        host: `HOST:PORT` of its agent.
        pid: The process.
        groups: Groups of the inventory that its host was in.
        build_id: Of its program, as hex, or empty.
        trace: What was recorded.
        clock: From its host's clock to that of the one who recorded.
        problem: Why its trace is not whole; empty where it is.
    """

    name: str
    host: str
    pid: int
    groups: frozenset[str]
    build_id: str
    trace: TraceReader
    clock: ClockTrack
    problem: str = ""

    def fits(self, part: str) -> bool:
        """Whether it is in a part of a recording, as people write that."""
        if part.startswith("@"):
            return part[1:] in self.groups or part == "@all"
        if part.startswith("build-id="):
            wanted = part.removeprefix("build-id=").lower()
            return bool(wanted) and self.build_id.startswith(wanted)
        host = self.host.removesuffix(":50051")
        names = {self.name, self.host, host, self.host.rpartition(":")[0]}
        return part in names or part in {f"{each}:{self.pid}" for each in names}

    @property
    def hostname(self) -> str:
        """What its host calls itself; several may do so alike."""
        return str(self.trace.metadata.get("agent", {}).get("hostname", ""))


@dataclass(frozen=True, slots=True)
class Recording:
    """Traces that are read together.

    Attributes:
        title: What the user called it.
        members: One trace for each process.
        is_fleet: Whether it is of a recording of many processes, also if it is one of them.
        left_out: Hosts that were to be recorded and were not, with the reason.
    """

    title: str
    members: tuple[MemberTrace, ...]
    is_fleet: bool
    left_out: tuple[str, ...] = ()

    @property
    def bound_ns(self) -> int:
        """How far times of different hosts may be from each other, in nanoseconds: the sum
        of the two largest bounds."""
        bounds: dict[str, int] = {}
        for each in self.members:
            clock, summary = each.clock, each.trace.summary
            last = clock.moment(summary.clock.nanosecond(summary.last_ticks))
            measured = clock.measurements
            bounds[each.host] = clock.bound_ns(measured[0].at_ns if measured else last, last)
        return sum(sorted(bounds.values())[-2:]) if len(bounds) > 1 else 0


def open_recording(text: str) -> Recording:
    """Finds what `DIR` or `DIR:PART` means.

    Raises:
        OutputError: It is no recording.
        UsageError: No process of the recording is in that part.
    """
    directory, part = split_part(text)
    if not is_fleet_recording(directory):
        return Recording(text, (_alone(directory),), is_fleet=False)
    told = load_fleet_file(directory)
    members = [_member(directory, each) for each in told.get("members", ())]
    found = tuple(each for each in members if each is not None)
    if not found:
        raise OutputError(
            f"{directory} holds no trace", reason="NOT_A_TRACE", hint="nothing was recorded"
        )
    chosen = tuple(each for each in found if not part or each.fits(part))
    chosen = chosen or tuple(each for each in found if each.hostname == part)
    if not chosen:
        raise UsageError(
            f"no process in {directory} is of '{part}'",
            reason="NO_SUCH_PART",
            hint=f"it has {_parts(found)}",
        )
    left_out = () if part else tuple(_left_out(each) for each in told.get("left_out", ()))
    return Recording(text, chosen, is_fleet=True, left_out=left_out)


def split_part(text: str) -> tuple[Path, str]:
    """The directory and the part, empty for all of it. What is a directory is one."""
    if not Path(text).exists():
        for place, letter in enumerate(text):
            if letter == ":" and is_fleet_recording(Path(text[:place])):
                return Path(text[:place]), text[place + 1 :]
    return Path(text), ""


def is_recording(text: str) -> bool:
    """Whether it names a directory or a part of one, and not a process."""
    return split_part(text)[0].is_dir()


def _alone(directory: Path) -> MemberTrace:
    trace = TraceReader(directory)
    agent, process = trace.metadata.get("agent", {}), trace.metadata.get("process", {})
    return MemberTrace(
        name=agent.get("hostname", "") or directory.name,
        host=agent.get("address", ""),
        pid=int(process.get("reference", {}).get("pid", 0)),
        groups=frozenset(),
        build_id=process.get("build_id", ""),
        trace=trace,
        clock=ClockTrack(),
    )


# None where nothing was written before the recorder was cut off.
def _member(directory: Path, told: Mapping[str, Any]) -> MemberTrace | None:
    try:
        trace = TraceReader(directory / Path(told["directory"]).name)
    except OutputError as error:
        if error.reason != "NOT_A_TRACE":
            raise
        return None
    outcome = told.get("outcome") or {}
    process = told.get("process", {})
    return MemberTrace(
        name=told["name"],
        host=told["host"],
        pid=int(process.get("reference", {}).get("pid", 0)),
        groups=frozenset(told.get("groups", ())),
        build_id=process.get("build_id", ""),
        trace=trace,
        clock=ClockTrack(ClockMeasurement(**each) for each in told.get("clocks", ())),
        problem=(outcome.get("error") or {}).get("message", ""),
    )


def _left_out(told: Mapping[str, Any]) -> str:
    return f"{told.get('host', '?')}: {(told.get('error') or {}).get('message', '')}"


def _parts(members: tuple[MemberTrace, ...]) -> str:
    groups = sorted({f"@{name}" for each in members for name in each.groups})
    builds = sorted({f"build-id={each.build_id[:8]}" for each in members if each.build_id})
    names = [*(each.name for each in members[:_LISTED]), *groups[:_LISTED], *builds[:_LISTED]]
    return ", ".join(names)
