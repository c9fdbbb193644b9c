"""Chrome's Trace Event format, as Perfetto (ui.perfetto.dev) and chrome://tracing open it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.export._format import ExportFormat, ExportResult, replacing
from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.model import CallArray, CallFlag
from uftrace_remote.trace.paired import StreamPairer, paired_chunks
from uftrace_remote.trace.store import TraceReader

# Turns times of a trace into those that are shown.
_Correct = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class ChromeProcess:
    """A process of the file.

    Attributes:
        trace: What it did.
        pid: Its number in the file, which no other one has.
        name: What it is called there.
        correct: From CLOCK_MONOTONIC of its host to the times of the file.
    """

    trace: TraceReader
    pid: int
    name: str
    correct: _Correct


def write_chrome(trace: TraceReader, path: Path) -> ExportResult:
    """Writes a trace piece by piece; the memory it takes does not grow with the trace."""
    pid = _pid(trace)
    name = trace.metadata.get("process", {}).get("command_name") or str(pid)
    process = ChromeProcess(trace, pid, name, lambda moments: moments)
    return write_processes([process], path, _about(trace))


def write_processes(
    processes: Sequence[ChromeProcess], path: Path, about: Mapping[str, Any]
) -> ExportResult:
    """Writes several processes on one clock, one after the other.

    Args:
        processes: One or more.
        path: The file.
        about: What to say beside the events (JSON values).
    """
    calls = 0
    with replacing(path) as file:
        separator = '{"displayTimeUnit":"ns","traceEvents":[\n'
        for process in processes:
            file.write(separator + ",\n".join(_first_names(process)))
            separator = ",\n"
            pairer = StreamPairer()
            for piece in _events(process, pairer):
                if piece:
                    file.write(separator + separator.join(piece))
                    calls += len(piece)
            for name in _names(process.pid, pairer.strand_names()):
                file.write(separator + name)
        file.write(f'\n],"otherData":{json.dumps(about)}}}\n')
    return ExportResult(path, calls)


CHROME = ExportFormat("chrome", "Trace Event JSON for Perfetto and chrome://tracing", write_chrome)


def _events(process: ChromeProcess, pairer: StreamPairer) -> Iterator[list[str]]:
    trace, pid, summary = process.trace, process.pid, process.trace.summary
    encoded: dict[int, str] = {}

    def name(function: int) -> str:
        found = encoded.get(function)
        if found is None:
            found = encoded[function] = json.dumps(summary.function_name(function))
        return found

    for tid, chunk in paired_chunks(trace.batches(), pairer):
        tail = f'"pid":{pid},"tid":{tid}}}'
        yield [
            _event(name(function), start, end, flags, tail)
            for function, start, end, flags in _columns(
                chunk.finished, summary.clock, process.correct
            )
        ]
    for tid, thread in pairer.threads.items():
        tail = f'"pid":{pid},"tid":{tid}}}'
        # A begin without an end: Perfetto draws it up to the end of the trace.
        yield [
            f'{{"name":{name(function)},"ph":"B","ts":{_us(start)},{tail}'
            for function, start, _, _ in _columns(
                thread.open_calls(), summary.clock, process.correct
            )
        ]


def _columns(
    rows: CallArray, clock: Clock, correct: _Correct
) -> Iterator[tuple[int, int, int, int]]:
    return zip(
        rows["function"].tolist(),
        correct(clock.nanoseconds(rows["start"])).tolist(),
        correct(clock.nanoseconds(rows["end"])).tolist(),
        rows["flags"].tolist(),
        strict=True,
    )


def _event(name: str, start: int, end: int, flags: int, tail: str) -> str:
    if flags & CallFlag.ENTRY_ONLY:
        return f'{{"name":{name},"ph":"i","s":"t","ts":{_us(start)},{tail}'
    note = '"args":{"skipped":true},' if flags & CallFlag.SKIPPED else ""
    return f'{{"name":{name},"ph":"X","ts":{_us(start)},"dur":{_us(end - start)},{note}{tail}'


# The format counts in microseconds. Written from integers: a double would
# lose the nanoseconds of a host that runs for months.
def _us(nanoseconds: int) -> str:
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}"


def _first_names(process: ChromeProcess) -> list[str]:
    pid, names = process.pid, process.trace.summary.thread_names
    return [
        _meta("process_name", pid, pid, process.name),
        *_names(pid, {tid: name or f"thread {tid}" for tid, name in names.items()}),
    ]


def _names(pid: int, names: Mapping[int, str]) -> list[str]:
    return [_meta("thread_name", pid, tid, name) for tid, name in sorted(names.items())]


def _meta(kind: str, pid: int, tid: int, name: str) -> str:
    event = {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
    return json.dumps(event, separators=(",", ":"))


def _about(trace: TraceReader) -> dict[str, Any]:
    metadata = trace.metadata
    return {
        "host": metadata.get("agent", {}).get("hostname", ""),
        "recorded_by": metadata.get("recorded_by", ""),
        "records_lost": trace.summary.records_lost,
    }


def _pid(trace: TraceReader) -> int:
    reference = trace.metadata.get("process", {}).get("reference", {})
    return int(reference.get("pid", 0)) or min(trace.summary.thread_names, default=0)
