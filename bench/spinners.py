"""Threads of a traced program that call nothing and note when they did not run.

The program is one of tests/targets with 10,000 functions that 8 threads call, and
bench/interrupted.c beside them, whose threads spin on the time stamp counter. What
they find is in shared memory: it is read without asking the program.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from bench.support import BUILT, HERE
from tests.support.target_process import TargetProcess

FUNCTIONS: Final = 10_000
PATTERN: Final = "re:many_[0-9]+"
_TARGETS: Final = HERE.parent / "tests" / "targets"
_PREFIX: Final = "many_"

# The layout of interrupted.c.
_BUCKETS: Final = 512
_PHASES: Final = 8
_THREADS: Final = 8
_PHASE: Final = np.dtype(
    [
        ("watched", "<f8"),
        ("longest", "<f8"),
        ("longest_stop", "<f8"),
        ("over_100us", "<u8"),
        ("over_1ms", "<u8"),
        ("buckets", "<u8", (_BUCKETS,)),
    ]
)
_SHARED: Final = np.dtype(
    [
        ("phase", "<u8"),
        ("rests", "<u8"),
        ("spinners", [("tid", "<u8"), ("phases", _PHASE, (_PHASES,))], (_THREADS,)),
    ]
)
_LEAST_NS: Final = 5000.0
# One above the priority that the agent takes for moments.
_PRIORITY: Final = 2
# Until the spinners have seen that a phase is over, and what belongs to it is counted.
_AFTERMATH: Final = 0.01


class Phase(IntEnum):
    """What is going on while a spinner watches."""

    NOTHING = 0
    UNTRACED = 1
    ATTACH = 2
    ENABLE = 3
    DISABLE = 4
    DETACH = 5


@dataclass(frozen=True, slots=True)
class Gaps:
    """The times in which spinners did not run; gaps of 5 us and more.

    Attributes:
        watched_s: How long they watched, all spinners together.
        longest_ms: The longest gap.
        longest_stop_ms: The longest, less the time that it waited for a processor.
        over_100us: How many were longer than that.
        over_1ms: How many were longer than that.
        buckets: How many of each length: sixteen buckets to an octave, from 5 us on.
    """

    watched_s: float
    longest_ms: float
    longest_stop_ms: float
    over_100us: int
    over_1ms: int
    buckets: tuple[int, ...]

    def __add__(self, other: Gaps) -> Gaps:
        return Gaps(
            self.watched_s + other.watched_s,
            max(self.longest_ms, other.longest_ms),
            max(self.longest_stop_ms, other.longest_stop_ms),
            self.over_100us + other.over_100us,
            self.over_1ms + other.over_1ms,
            tuple(a + b for a, b in zip(self.buckets, other.buckets, strict=True)),
        )

    def quantile_us(self, share: float) -> float:
        """The length that so many of the gaps do not exceed (the bucket's upper end)."""
        total = sum(self.buckets)
        if not total:
            return 0.0
        counted = np.cumsum(np.array(self.buckets))
        bucket = int(np.searchsorted(counted, share * total))
        octave, step = divmod(bucket + 1, 16)
        return float(min(_LEAST_NS * 2.0**octave * (1 + step / 16) / 1e3, self.longest_ms * 1e3))


NO_GAPS: Final = Gaps(0.0, 0.0, 0.0, 0, 0, (0,) * _BUCKETS)


@dataclass(frozen=True, slots=True)
class TracedFunction:
    """One of the functions to trace: live address, and place in the file."""

    name: str
    address: int
    offset: int


class Watched:
    """The program that runs, with its spinners.

    Args:
        spinners: How many.
        first_of_all: They run before all others (SCHED_FIFO), but for the tenth of their
            time that they sleep; else as any thread does.

    Raises:
        PermissionError: Real-time priorities are not allowed here.
    """

    def __init__(self, spinners: int, first_of_all: bool) -> None:
        self._spinners = spinners
        self._first_of_all = first_of_all
        self._fd = os.memfd_create("gaps")
        os.ftruncate(self._fd, _SHARED.itemsize)
        self._memory = mmap.mmap(self._fd, _SHARED.itemsize)
        self._shared: Any = np.frombuffer(self._memory, _SHARED, 1)[0:1]
        self.program = build_interrupted()
        self.target = TargetProcess(
            self.program,
            environment={
                "INTERRUPTED_FILE": f"/proc/{os.getpid()}/fd/{self._fd}",
                "INTERRUPTED_THREADS": str(spinners),
            },
            deadline=60,
        )

    def __enter__(self) -> Watched:
        self.target.__enter__()
        try:
            if self._first_of_all:
                self._prefer_spinners()
        except BaseException:
            self.target.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.target.__exit__(kind, error, trace)
        os.close(self._fd)

    def _prefer_spinners(self) -> None:
        self._shared["rests"] = 1
        for row in range(self._spinners):
            tid = int(self._shared["spinners"]["tid"][0][row])
            os.sched_setscheduler(tid, os.SCHED_FIFO, os.sched_param(_PRIORITY))

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """What is found in the body is counted as that phase's."""
        self._shared["phase"] = phase
        try:
            yield
            time.sleep(_AFTERMATH)
        finally:
            self._shared["phase"] = Phase.NOTHING
            time.sleep(_AFTERMATH)

    def gaps(self, phase: Phase) -> Gaps:
        """What all spinners found so far in a phase."""
        found = NO_GAPS
        for row in self._shared["spinners"]["phases"][0][: self._spinners, phase]:
            found += Gaps(
                float(row["watched"]) / 1e9,
                float(row["longest"]) / 1e6,
                float(row["longest_stop"]) / 1e6,
                int(row["over_100us"]),
                int(row["over_1ms"]),
                tuple(row["buckets"].tolist()),
            )
        return found

    def functions(self) -> list[TracedFunction]:
        """The functions to trace."""
        maps = Path(f"/proc/{self.target.pid}/maps").read_text()
        first = next(line for line in maps.splitlines() if line.endswith(str(self.program)))
        start = int(first.partition("-")[0], 16)
        return [
            TracedFunction(name, start + address, offset)
            for name, address, offset in functions_of(self.program)
        ]


def build_interrupted() -> Path:
    """Generate and compile the program; returns its path."""
    BUILT.mkdir(parents=True, exist_ok=True)
    program = BUILT / "interrupted"
    generator, own = _TARGETS / "gen_many.py", HERE / "interrupted.c"
    inputs = (generator, own, *_TARGETS.glob("harness*.h"))
    if program.exists() and program.stat().st_mtime > max(p.stat().st_mtime for p in inputs):
        return program
    many = BUILT / "interrupted_many.c"
    with many.open("w") as stream:
        subprocess.run([sys.executable, generator, str(FUNCTIONS)], stdout=stream, check=True)
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-DOPT_LEVEL=2", f"-I{_TARGETS}")
    subprocess.run(["gcc", *flags, "-o", program, many, own], check=True)
    return program


def functions_of(program: Path) -> list[tuple[str, int, int]]:
    """Name, link-time address and file offset of the functions to trace, by address."""
    with program.open("rb") as stream:
        elf = ELFFile(stream)
        segments = [
            (int(s["p_vaddr"]), int(s["p_memsz"]), int(s["p_offset"]))
            for s in elf.iter_segments("PT_LOAD")
        ]
        base = min(start for start, _, _ in segments)
        symbols = elf.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection), "it is not stripped"
        found = [
            (symbol.name, int(symbol["st_value"]))
            for symbol in symbols.iter_symbols()
            if symbol.name.startswith(_PREFIX) and symbol.name.removeprefix(_PREFIX).isdigit()
        ]

    def offset(address: int) -> int:
        return next(o + address - v for v, size, o in segments if v <= address < v + size)

    return sorted(
        ((name, address - base, offset(address)) for name, address in found),
        key=lambda row: row[1],
    )
