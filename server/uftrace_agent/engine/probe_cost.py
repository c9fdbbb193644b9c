"""What a probe costs on this machine: the runtime's own code, run in a process of its own.

    python -m uftrace_agent.engine.probe_cost

The process maps a small annex for itself, patches a function that does nothing, calls it
in a loop, and prints nanoseconds per call: traced with its exit, traced without, and what
the call itself takes is taken off.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.native import native_architecture, native_bench_code
from uftrace_agent.errors import AgentError
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.tid_word import tid_places, told
from uftrace_agent.runtime.blob import Blob, load_blob
from uftrace_agent.runtime.layout import (
    DIRECTORY_BYTES,
    KIND_ENTRY,
    KIND_ENTRY_ONLY,
    RING_HEADER_BYTES,
    SLOT_TABLE_BYTES,
    THREAD_BYTES,
    THUNK_SPAN,
    define,
    id_word,
)

_PAGE: Final = 4096
_RING_BYTES: Final = 4 << 20
_CALLS: Final = 50_000
_ROUNDS: Final = 9
_DEADLINE_S: Final = 10.0
_READ, _WRITE, _EXEC = 1, 2, 4
_PRIVATE_ANONYMOUS: Final = 0x22
# Of each function that is called, and behind it the loop that does so.
_FUNCTION_BYTES: Final = 256
_LOOP: Final = 64


@dataclass(frozen=True, slots=True)
class ProbeCost:
    """Nanoseconds of the traced thread.

    Attributes:
        call_ns: For an entry and its exit.
        entry_ns: For an entry whose exit is not traced.
        measured: Whether it was measured here; otherwise it is assumed.
        detail: Why it could not be measured.
    """

    call_ns: float
    entry_ns: float
    measured: bool = True
    detail: str = ""


# Twice what a processor of 2023 takes (docs/benchmarks.md): who knows nothing is careful.
ASSUMED: Final = ProbeCost(60.0, 30.0, False, "not measured yet")


def measure_probe_cost() -> ProbeCost:
    """Measure in a child process; takes a fraction of a second."""
    command = [sys.executable, "-P", "-m", "uftrace_agent.engine.probe_cost"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DEADLINE_S, check=True
        )
        values = json.loads(done.stdout)
        return ProbeCost(max(values["call_ns"], 1.0), max(values["entry_ns"], 1.0))
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or [f"status {error.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        why = str(error)
    return ProbeCost(ASSUMED.call_ns, ASSUMED.entry_ns, False, why)


class _Bench:
    """An annex of one thread, and three functions that do nothing."""

    def __init__(self) -> None:
        architecture = native_architecture()
        self._code = native_bench_code()
        self._blob = load_blob(architecture.name)
        home = -(-len(self._blob.code) // _PAGE) * _PAGE
        sizes = {
            "control": _PAGE,
            "directory": DIRECTORY_BYTES,
            "slots": SLOT_TABLE_BYTES,
            "headers": _PAGE,
            "rings": 2 * _RING_BYTES,
            "code": home,
            "thunks": THUNK_SPAN,
            "stubs": _PAGE,
            "program": _PAGE,
        }
        base = self._map(sum(sizes.values()))
        self._at: dict[str, int] = {}
        for name, size in sizes.items():
            self._at[name] = base
            base += size
        self._fill(architecture.thunk_array, home)
        self._make_executable(self._at["code"], base)

    @staticmethod
    def _libc() -> ctypes.CDLL:
        return ctypes.CDLL(None, use_errno=True)

    def _map(self, size: int) -> int:
        mmap = self._libc().mmap
        mmap.restype = ctypes.c_void_p
        mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        at: int = mmap(None, size, _READ | _WRITE, _PRIVATE_ANONYMOUS, -1, 0)
        # With all pages there, none is a fault in what is measured.
        ctypes.memset(at, 0, size)
        return at

    def _make_executable(self, start: int, end: int) -> None:
        if self._libc().mprotect(ctypes.c_void_p(start), end - start, _READ | _EXEC):
            raise OSError("mprotect")

    # As `find_tid_offset` finds it in a target; without, each record is a system call.
    def _tid_offset(self) -> int:
        page = self._map(_PAGE)
        _write(page, self._code.thread_pointer())
        self._make_executable(page, page + _PAGE)
        pointer: int = ctypes.CFUNCTYPE(ctypes.c_uint64)(page)()
        search = native_machine().tid
        with ProcessMemory(os.getpid()) as memory:
            return told(search, tid_places(memory, search, pointer, threading.get_native_id()))

    def _fill(self, thunk_array: Callable[[int, int, int], bytes], home: int) -> None:
        at, blob = self._at, self._blob
        values = {
            "CONTROL": at["control"],
            "DIRECTORY": at["directory"],
            "SLOTS": at["slots"],
            "THUNKS": at["thunks"],
            "TID_OFFSET": self._tid_offset() & (1 << 64) - 1,
            "RING_HEADERS": at["headers"],
            "RING_DATA": at["rings"],
            "RING_BYTES": _RING_BYTES,
            "RING_COUNT": 2,
        }
        code = bytearray(blob.code.ljust(home, b"\0"))
        for name, value in values.items():
            struct.pack_into("<Q", code, define(f"PARAM_{name}"), value)
        _write(at["code"], bytes(code))
        uf_exit = at["code"] + blob.symbols["uf_exit"]
        _write(at["thunks"], thunk_array(at["thunks"], uf_exit, at["slots"]))
        _write(at["control"], b"\1")
        self.call_ns = self._loop(0, self._traced(0, blob, "uf_entry_paired", KIND_ENTRY))
        self.entry_ns = self._loop(1, self._traced(1, blob, "uf_entry_only", KIND_ENTRY_ONLY))
        self.plain_ns = self._loop(2, None)

    def _traced(self, index: int, blob: Blob, probe: str, kind: int) -> int:
        at = self._at["stubs"] + self._code.stub_room * index
        stub = self._code.stub(
            at,
            self._function(index),
            self._at["code"] + blob.symbols[probe],
            id_word(index + 1, kind),
            paired=kind == KIND_ENTRY,
        )
        _write(at, stub.code)
        return stub.entrance

    def _function(self, index: int) -> int:
        return self._at["program"] + _FUNCTION_BYTES * index

    # A function that does nothing, and a loop that calls it as often as its argument says.
    def _loop(self, index: int, entrance: int | None) -> Callable[[int], None]:
        at = self._function(index)
        _write(at, self._code.function(at, entrance))
        _write(at + _LOOP, self._code.loop(at + _LOOP, at))
        return ctypes.CFUNCTYPE(None, ctypes.c_uint64)(at + _LOOP)

    def seconds(self, loop: Callable[[int], None]) -> float:
        """One round of a loop."""
        started = time.perf_counter()
        loop(_CALLS)
        taken = time.perf_counter() - started
        self._drain()
        return taken

    # Ring 1 is read to its end: to where its thread's entry writes next.
    def _drain(self) -> None:
        directory = ctypes.string_at(self._at["directory"], DIRECTORY_BYTES)
        for entry in range(0, DIRECTORY_BYTES, THREAD_BYTES):
            (key,) = struct.unpack_from("<Q", directory, entry)
            if key:
                (head,) = struct.unpack_from("<Q", directory, entry + define("THREAD_HEAD"))
                tail = self._at["headers"] + RING_HEADER_BYTES + define("RING_TAIL")
                _write(tail, head.to_bytes(8, "little"))

    def lost(self) -> int:
        """Records that found no room."""
        lost = self._at["headers"] + RING_HEADER_BYTES + define("RING_LOST")
        return int.from_bytes(ctypes.string_at(lost, 8), "little")


def _write(at: int, data: bytes) -> None:
    ctypes.memmove(at, data, len(data))


def main() -> None:
    """Measure and print; a last line on stderr says why it could not be done."""
    try:
        bench = _Bench()
    except (AgentError, OSError) as error:
        raise SystemExit(str(error)) from error
    loops = {"plain": bench.plain_ns, "call_ns": bench.call_ns, "entry_ns": bench.entry_ns}
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(_ROUNDS + 1):
        for name, loop in loops.items():
            taken = bench.seconds(loop)
            if turn:
                times[name].append(taken * 1e9 / _CALLS)
    if bench.lost():
        raise SystemExit(f"{bench.lost()} records found no room")
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    plain = medians.pop("plain")
    print(json.dumps({name: taken - plain for name, taken in medians.items()}))


if __name__ == "__main__":
    main()
