"""Damages and inspects files in a process of its own, with limits.

    python -m tests.fuzz.elf_worker FOLDER FIRST COUNT RARE

Each case has `CPU_SECONDS` of CPU time, and the process has `MEMORY` of address
space. Standard output: for each case "case N" before it, and after it a line of
JSON. What the process does not live to say is the case that it died of.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

MEMORY: Final = 1 << 30
CPU_SECONDS: Final = 10.0
# What cannot be interrupted by a signal's handler is killed after this.
_KILL_SECONDS: Final = 30
_CASES_PER_CACHE: Final = 64


class TooLongError(BaseException):
    """A case used up its time. No `except Exception` of the agent's may stop it."""


def _on_time(signal_number: int, frame: FrameType | None) -> None:
    raise TooLongError


@contextmanager
def _limit() -> Iterator[None]:
    used = int(time.process_time())
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + _KILL_SECONDS, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def damaged_file(samples: list[Path], seed: int, rare: float, path: Path) -> tuple[str, ...]:
    """Write the damaged file of a seed; what was done."""
    from tests.fuzz.elf_damage import damage

    sample = samples[seed % len(samples)]
    result = damage(sample.read_bytes(), seed, rare)
    path.write_bytes(result.data)
    os.truncate(path, result.size)
    return (sample.name, *result.steps)


def samples_in(folder: Path) -> list[Path]:
    """The sound files, in a fixed order."""
    return sorted(folder.glob("*.elf"))


def main() -> int:
    """Run cases; the exit status is 0 whatever they find."""
    folder, first, count, rare = Path(sys.argv[1]), *map(float, sys.argv[2:5])
    # One thread: each thread of a numeric library reserves address space.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from tests.fuzz.elf_inspection import inspect

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, _on_time)
    samples = samples_in(folder)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "damaged"
        for seed in range(int(first), int(first + count)):
            print(f"case {seed}", flush=True)
            steps = damaged_file(samples, seed, rare, path)
            cache = Path(scratch, f"cache{seed // _CASES_PER_CACHE}")
            outcome: dict[str, object] = {"seed": seed, "steps": steps}
            began = time.process_time()
            try:
                with _limit():
                    outcome["refusal"] = inspect(str(path), str(cache)).refusal
            except (Exception, TooLongError) as error:
                outcome["error"] = f"{type(error).__name__}: {error}"
                outcome["traceback"] = traceback.format_exc(limit=-6)
            outcome["seconds"] = round(time.process_time() - began, 3)
            print(json.dumps(outcome), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
