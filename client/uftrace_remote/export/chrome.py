"""Chrome's Trace Event format, as Perfetto (ui.perfetto.dev) and chrome://tracing open it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uftrace_remote.export._format import ExportFormat, ExportResult, replacing
from uftrace_remote.trace.clock import Clock
from uftrace_remote.trace.model import CallArray, CallFlag
from uftrace_remote.trace.paired import StreamPairer, paired_chunks
from uftrace_remote.trace.store import TraceReader


def write_chrome(trace: TraceReader, path: Path) -> ExportResult:
    """Writes a trace piece by piece; the memory it takes does not grow with the trace."""
    pid = _pid(trace)
    calls = 0
    with replacing(path) as file:
        file.write(
            '{"displayTimeUnit":"ns","traceEvents":[\n' + ",\n".join(_first_names(trace, pid))
        )
        separator = ",\n"
        pairer = StreamPairer()
        for piece in _events(trace, pid, pairer):
            if piece:
                file.write(separator + separator.join(piece))
                calls += len(piece)
        for name in _names(pid, pairer.strand_names()):
            file.write(separator + name)
        file.write(f'\n],"otherData":{json.dumps(_about(trace))}}}\n')
    return ExportResult(path, calls)


CHROME = ExportFormat("chrome", "Trace Event JSON for Perfetto and chrome://tracing", write_chrome)


def _events(trace: TraceReader, pid: int, pairer: StreamPairer) -> Iterator[list[str]]:
    summary = trace.summary
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
            for function, start, end, flags in _columns(chunk.finished, summary.clock)
        ]
    for tid, thread in pairer.threads.items():
        tail = f'"pid":{pid},"tid":{tid}}}'
        # A begin without an end: Perfetto draws it up to the end of the trace.
        yield [
            f'{{"name":{name(function)},"ph":"B","ts":{_us(start)},{tail}'
            for function, start, _, _ in _columns(thread.open_calls(), summary.clock)
        ]


def _columns(rows: CallArray, clock: Clock) -> Iterator[tuple[int, int, int, int]]:
    return zip(
        rows["function"].tolist(),
        clock.nanoseconds(rows["start"]).tolist(),
        clock.nanoseconds(rows["end"]).tolist(),
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


def _first_names(trace: TraceReader, pid: int) -> list[str]:
    process = trace.metadata.get("process", {})
    names = trace.summary.thread_names
    return [
        _meta("process_name", pid, pid, process.get("command_name") or str(pid)),
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
