"""A data directory that uftrace reads: `uftrace replay`, `report`, `graph` and others.

Format version 4, kept to what uftrace 0.13 understands and newer ones still
do: symbol files without a size column, and the feature bits to match.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import resource
import shlex
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uftrace_remote.errors import OutputError
from uftrace_remote.export._format import ExportFormat, ExportResult, output_failed
from uftrace_remote.export._uftrace_records import MAX_DEPTH, ThreadEncoder
from uftrace_remote.export._uftrace_symbols import ModuleSymbols, place_functions
from uftrace_remote.trace.paired import StreamPairer, paired_chunks
from uftrace_remote.trace.store import TraceReader

_SID = "0000000000000001"

# Feature bits: a task.txt with sessions, symbol addresses relative to the
# module, a maximal stack depth.
_FEATURES = 1 << 1 | 1 << 5 | 1 << 6
# Information bits: exename, cmdline, taskinfo, recording date and time.
_INFORMATION = 1 << 0 | 1 << 3 | 1 << 7 | 1 << 11
_HEADER = struct.Struct("<8sIHBBQQHHI")

_STACK_LINE = "7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]\n"


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    executable: str
    command_line: Sequence[str]
    recorded_unix_ns: int


def write_uftrace(trace: TraceReader, path: Path) -> ExportResult:
    """Writes a data directory.

    Raises:
        OutputError: The directory is not empty or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise OutputError(
                f"{path} is not empty",
                reason="OUTPUT_EXISTS",
                hint="choose a new or an empty directory",
            )
        return _write(trace, path)
    except OSError as error:
        raise output_failed(path, error) from error


UFTRACE = ExportFormat("uftrace", "data directory for uftrace (0.13 and newer)", write_uftrace)


def _write(trace: TraceReader, path: Path) -> ExportResult:
    summary = trace.summary
    process = _process(trace)
    modules = place_functions(summary.functions, summary.modules, process.executable)
    addresses = _addresses(modules)
    encoders: dict[int, ThreadEncoder] = {}
    first_ns: dict[int, int] = {}
    pairer = StreamPairer()
    with contextlib.ExitStack() as files:
        outputs: dict[int, Any] = {}
        for tid, chunk in paired_chunks(trace.batches(), pairer):
            if tid not in encoders:
                encoders[tid] = ThreadEncoder(addresses, summary.clock)
                _make_room(len(encoders))
                outputs[tid] = files.enter_context((path / f"{tid}.dat").open("wb"))
            data = encoders[tid].encode(chunk)
            if data and tid not in first_ns:
                first_ns[tid] = int.from_bytes(data[:8], "little")
            outputs[tid].write(data)
    # A thread without a call would only make uftrace warn.
    for tid in encoders.keys() - first_ns.keys():
        (path / f"{tid}.dat").unlink()
    _write_symbols(path, modules)
    last_ns = summary.clock.nanosecond(summary.last_ticks)
    _write_tasks(path, process, first_ns, last_ns)
    _write_info(path, process, first_ns, last_ns)
    return ExportResult(
        path, sum(each.calls for each in encoders.values()), _remarks(encoders, trace)
    )


def _process(trace: TraceReader) -> _Process:
    found = trace.metadata.get("process", {})
    pid = int(found.get("reference", {}).get("pid", 0))
    return _Process(
        pid=pid or min(trace.summary.thread_names, default=1),
        executable=found.get("executable") or f"/{found.get('command_name') or 'unknown'}",
        command_line=found.get("command_line") or [found.get("command_name") or "unknown"],
        recorded_unix_ns=int(trace.metadata.get("recorded_unix_ns", 0)),
    )


def _addresses(modules: Sequence[ModuleSymbols]) -> NDArray[np.uint64]:
    placed = {
        function: module.start + offset
        for module in modules
        for function, offset in module.offset_of.items()
    }
    table = np.zeros(max(placed, default=0) + 1, np.uint64)
    for function, address in placed.items():
        table[function] = address
    return table


# A file stays open for each thread; programs with more threads than the usual
# limit of open files exist.
def _make_room(threads: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if threads + 64 > soft and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft * 2, hard), hard))


def _write_symbols(path: Path, modules: Sequence[ModuleSymbols]) -> None:
    lines = []
    for module in modules:
        lines.append(
            f"{module.start:x}-{module.end:x} r-xp 00000000 08:01 1"
            f"                          {module.path}\n"
        )
        symbols = sorted((offset, name) for name, offset in module.symbols.items())
        text = [
            f"# symbols: {len(symbols)}\n",
            f"# path name: {module.path}\n",
            f"# build-id: {module.build_id}\n",
        ]
        text += [f"{offset:016x} T {name}\n" for offset, name in symbols]
        text.append(f"{module.end - module.start:016x} ? __sym_end\n")
        (path / f"{os.path.basename(module.path)}.sym").write_text("".join(text))
    (path / f"sid-{_SID}.map").write_text("".join(lines) + _STACK_LINE)


def _write_tasks(path: Path, process: _Process, first_ns: dict[int, int], last_ns: int) -> None:
    start = min(first_ns.values(), default=last_ns)
    lines = [
        f"SESS timestamp={_stamp(start)} pid={process.pid} sid={_SID} "
        f'exename="{process.executable}"\n',
    ]
    # The main thread names the process, whether it made a call or not.
    for tid in [process.pid, *sorted(first_ns.keys() - {process.pid})]:
        lines.append(f"TASK timestamp={_stamp(start)} tid={tid} pid={process.pid}\n")
    (path / "task.txt").write_text("".join(lines))


def _write_info(path: Path, process: _Process, first_ns: dict[int, int], last_ns: int) -> None:
    header = _HEADER.pack(
        b"Ftrace!\0", 4, _HEADER.size, 1, 2, _FEATURES, _INFORMATION, MAX_DEPTH + 1, 0, 0
    )
    tids = sorted(first_ns)
    moment = datetime.datetime.fromtimestamp(process.recorded_unix_ns / 1e9, datetime.UTC)
    elapsed = max(last_ns - min(first_ns.values(), default=last_ns), 0)
    text = (
        f"exename:{process.executable}\n"
        f"cmdline:{shlex.join(process.command_line)}\n"
        "taskinfo:lines=2\n"
        f"taskinfo:nr_tid={len(tids)}\n"
        f"taskinfo:tids={','.join(map(str, tids))}\n"
        f"record_date:{moment.strftime('%a %b %d %H:%M:%S %Y')}\n"
        f"elapsed_time:{elapsed / 1e9:.9f} sec\n"
    )
    (path / "info").write_bytes(header + text.encode())


def _stamp(nanoseconds: int) -> str:
    return f"{nanoseconds // 1_000_000_000}.{nanoseconds % 1_000_000_000:09d}"


def _remarks(encoders: dict[int, ThreadEncoder], trace: TraceReader) -> tuple[str, ...]:
    remarks = []
    if cut := sum(each.cut for each in encoders.values()):
        remarks.append(f"{cut:,} calls nested deeper than {MAX_DEPTH} are left out")
    if pieces := sum(each.pieces for each in encoders.values()):
        remarks.append(
            f"uftrace knows one stack for each thread: calls of fibers were cut {pieces:,} times"
        )
    if lost := trace.summary.records_lost:
        remarks.append(f"{lost:,} records were lost while recording")
    return tuple(remarks)
