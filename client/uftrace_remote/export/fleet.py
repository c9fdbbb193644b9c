"""Recordings of many processes in the formats: one file where one can hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from uftrace_remote.errors import OutputError
from uftrace_remote.export._format import ExportResult, output_failed
from uftrace_remote.export.chrome import ChromeProcess, write_processes
from uftrace_remote.export.flamegraph import FunctionName, write_stacks
from uftrace_remote.export.uftrace_dir import UFTRACE
from uftrace_remote.trace.recordings import MemberTrace, Recording
from uftrace_remote.trace.stacks import StackNode, stack_tree

# No process has such a number (PID_MAX_LIMIT of include/linux/threads.h).
_FIRST_FREE_PID: Final = (1 << 22) + 1


def write_fleet(
    name: str, recording: Recording, path: Path, *, by_host: bool = False
) -> ExportResult:
    """Writes a recording of many processes.

    Args:
        name: The format: `chrome` puts all into one file, on the common clock; `flamegraph`
            adds all up; `uftrace` writes a directory for each below `path`.
        recording: What to write.
        path: File or directory.
        by_host: Of a flame graph: a root for each process.

    Raises:
        OutputError: It cannot be written.
    """
    if name == "chrome":
        return _write_chrome(recording, path)
    if name == "flamegraph":
        return _write_flamegraph(recording, path, by_host)
    return _write_directories(recording, path)


def _write_chrome(recording: Recording, path: Path) -> ExportResult:
    taken: set[int] = set()
    processes = []
    for each in recording.members:
        # Two hosts may each have a process of this number.
        pid = each.pid if each.pid not in taken else _FIRST_FREE_PID + len(taken)
        taken.add(pid)
        processes.append(ChromeProcess(each.trace, pid, _title(each), each.clock.to_ours))
    about: dict[str, Any] = {
        "hosts": sorted({each.host for each in recording.members}),
        "clock": "CLOCK_MONOTONIC of the recorder",
        "clock_bound_ns": recording.bound_ns,
        "records_lost": sum(each.trace.summary.records_lost for each in recording.members),
    }
    done = write_processes(processes, path, about)
    remarks = [
        f"the clock of {each.name} is not known: its times are its own"
        for each in recording.members
        if not each.clock.is_known
    ]
    return ExportResult(done.path, done.calls, (*done.remarks, *remarks))


def _write_flamegraph(recording: Recording, path: Path, by_host: bool) -> ExportResult:
    merged = _MergedStacks()
    for each in recording.members:
        merged.add(each, root=each.name if by_host else "")
    title = f"{recording.title} ({len(recording.members):,} processes)"
    return write_stacks(merged.nodes, merged.name_of, title, path)


# Stacks of several traces in one tree: ids differ from trace to trace, names do not.
class _MergedStacks:
    def __init__(self) -> None:
        self.nodes: list[StackNode] = []
        self._names: list[FunctionName] = []
        self._numbers: dict[FunctionName, int] = {}
        self._index: dict[tuple[int, int], int] = {}

    def name_of(self, number: int) -> FunctionName:
        return self._names[number]

    def add(self, member: MemberTrace, root: str) -> None:
        summary = member.trace.summary
        # -1 is the root of a tree; here it may be a node.
        above = self._node(-1, (root, "")) if root else -1
        places = {-1: above}
        for index, node in enumerate(stack_tree(member.trace).nodes):
            known = summary.functions.get(node.function_id)
            name = (summary.function_name(node.function_id), known.module if known else "")
            places[index] = place = self._node(places[node.parent], name)
            self.nodes[place].self_ns += node.self_ns
            self.nodes[place].calls += node.calls

    def _node(self, parent: int, name: FunctionName) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._names)
            self._names.append(name)
        place = self._index.get((parent, number))
        if place is None:
            place = self._index[parent, number] = len(self.nodes)
            self.nodes.append(StackNode(number, parent))
        return place


def _write_directories(recording: Recording, path: Path) -> ExportResult:
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise OutputError(
                f"{path} is not empty",
                reason="OUTPUT_EXISTS",
                hint="choose another directory: one is made in it for each process",
            )
    except OSError as error:
        raise output_failed(path, error) from error
    write: Callable[..., ExportResult] = UFTRACE.write
    done = [write(each.trace, path / each.trace.directory.name) for each in recording.members]
    remarks = dict.fromkeys(remark for each in done for remark in each.remarks)
    first = recording.members[0].trace.directory.name
    told = f"one directory for each process; uftrace reads one: uftrace replay -d {path / first}"
    return ExportResult(path, sum(each.calls for each in done), (*remarks, told))


def _title(member: MemberTrace) -> str:
    command = member.trace.metadata.get("process", {}).get("command_name", "")
    return f"{command or 'process'} ({member.pid}) on {member.host.removesuffix(':50051')}"
