"""Recordings of many processes on disk, of synthetic records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.unit.trace_support import METADATA, STACK_TOP, Tape, batches_of
from uftrace_remote.trace.fleet_store import FleetWriter
from uftrace_remote.trace.store import TraceWriter


def calls(function: int, durations: Sequence[int], start: int = 1000, gap: int = 100) -> bytes:
    """Records of calls one after the other; a duration is in ticks of half a nanosecond."""
    tape = Tape(start)
    for duration in durations:
        tape.entry(function, STACK_TOP, gap).exit(function, STACK_TOP, duration)
    return tape.data


def make_fleet_recording(
    directory: Path,
    hosts: Mapping[str, bytes],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    offsets: Mapping[str, int] | None = None,
    bound_ns: int = 1000,
) -> Path:
    """A recording of one process on each host, of its records.

    Args:
        groups: Groups of hosts.
        offsets: How far each host's clock is ahead.
    """
    writer = FleetWriter(directory, {})
    members = []
    for number, (host, data) in enumerate(hosts.items()):
        place = writer.place(host, 4321)
        with TraceWriter(place, METADATA) as trace:
            for batch in batches_of({11: data}):
                trace.write(batch)
            trace.finish({"end": "stopped"})
        offset = (offsets or {}).get(host, 0)
        members.append(
            {
                "directory": place.name,
                "name": host,
                "host": f"{host}:50051",
                "groups": (groups or {}).get(host, []),
                "process": {**METADATA["process"], "build_id": f"{number:02d}abcdef"},
                "clocks": [{"at_ns": 10**12, "offset_ns": offset, "bound_ns": bound_ns}],
                "outcome": {"error": None},
            }
        )
    writer.save({"members": members, "complete": True, "left_out": []})
    return directory
