"""The processes of many hosts by program and build. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from uftrace_remote.endpoint import Endpoint
from uftrace_remote.fleet.grouping import endpoint_key
from uftrace_remote.values import Process


@dataclass(frozen=True, slots=True)
class Program:
    """One build of one program, wherever it runs.

    Attributes:
        name: Path of its executable, or `[NAME]` where it has none.
        build_id: As hex, or empty.
        hosts: Those that run it, in the order of the numbers in their names.
        process_count: Processes on all of them.
        thread_count: Their threads.
        resident_bytes: Their memory; what they share counts for each.
    """

    name: str
    build_id: str
    hosts: tuple[Endpoint, ...]
    process_count: int
    thread_count: int
    resident_bytes: int


def find_programs(
    processes: Iterable[tuple[Endpoint, Sequence[Process]]],
) -> tuple[Program, ...]:
    """Sums up processes by executable and build id.

    Returns:
        Programs by name, the builds of each that run on most hosts first: a
        host with an odd build stands right below the others.
    """
    runs: dict[tuple[str, str], list[tuple[Endpoint, Process]]] = {}
    for host, listed in processes:
        for process in listed:
            # What was replaced on disk still runs the same program.
            name = process.executable.removesuffix(" (deleted)") or f"[{process.command_name}]"
            runs.setdefault((name, process.build_id), []).append((host, process))
    programs = [
        Program(
            name,
            build_id,
            tuple(sorted({host for host, _ in found}, key=endpoint_key)),
            len(found),
            sum(process.thread_count for _, process in found),
            sum(process.resident_bytes for _, process in found),
        )
        for (name, build_id), found in runs.items()
    ]
    return tuple(sorted(programs, key=lambda each: (each.name, -len(each.hosts), each.build_id)))
