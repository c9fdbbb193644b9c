"""Many damaged files, in processes with limits; what the processes did not survive is told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[2]
_PER_WORKER: Final = 2000


@dataclass
class Campaign:
    """What came of the cases.

    Attributes:
        cases: How many.
        read: How many files could be read and planned for; the others were refused.
        refusals: By error.
        failures: (seed, what was done to the file, what happened).
        slowest: (CPU seconds, seed) of the slowest case.
    """

    cases: int = 0
    read: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)

    def add(self, outcome: dict[str, Any]) -> None:
        """Take in what a worker said of a case."""
        seed = outcome["seed"]
        self.cases += 1
        self.slowest = max(self.slowest, (outcome["seconds"], seed))
        if "error" in outcome:
            steps = "; ".join(outcome["steps"])
            self.failures.append((seed, steps, f"{outcome['error']}\n{outcome['traceback']}"))
        elif outcome["refusal"]:
            self.refusals[outcome["refusal"]] += 1
        else:
            self.read += 1

    def lost(self, seed: int, status: int) -> None:
        """A worker died of a case."""
        self.cases += 1
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        self.failures.append((seed, "", f"the process ended: {how}"))


def run(
    folder: Path, first: int, count: int, rare: float, until: Callable[[], bool] = lambda: False
) -> Campaign:
    """Run `count` cases from the seed `first` on, or until told to stop.

    Args:
        folder: With the sound files.
        first: Seed of the first case; each has the next one.
        count: How many.
        rare: Share of huge files.
        until: Asked between cases.
    """
    campaign = Campaign()
    seed, end = first, first + count
    while seed < end and not until():
        batch = min(_PER_WORKER, end - seed)
        command = [sys.executable, "-m", "tests.fuzz.elf_worker", str(folder)]
        command += [str(seed), str(batch), str(rare)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as worker:
            assert worker.stdout is not None
            running: int | None = None
            for line in worker.stdout:
                if line.startswith("case "):
                    if until():
                        worker.kill()
                        return campaign
                    running = int(line[5:])
                    continue
                campaign.add(json.loads(line))
                running = None
                seed += 1
        if running is not None:
            campaign.lost(running, worker.returncode)
            seed = running + 1
        elif worker.returncode:
            raise RuntimeError(f"the worker ended with {worker.returncode} between cases")
    return campaign


def deadline(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds are over."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end
