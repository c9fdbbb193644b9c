# SPDX-License-Identifier: Apache-2.0
"""CPython as a library: tests/targets/pyhost.c with Debian's libpython."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.target_process import TargetProcess
from tests.targets.build import build

from ._base import LOADS, Load, LoadReport, Program


class _Workload(Load):
    # The interpreter is its own load: a script that checks its results. It
    # speaks the protocol of the targets, and runs between resume and pause.

    def __init__(self, program: Program, target: TargetProcess) -> None:
        super().__init__(program, ())
        self._target = target
        self._before = 0

    def __enter__(self) -> Load:
        self._before = self._target.pause()["iterations"]
        self._target.resume()
        return self

    def _end(self) -> None:
        pass

    def finish(self) -> LoadReport:
        """Parks the workload; a wrong result of it raises here."""
        counters = self._target.pause()
        done = counters["iterations"] - self._before
        assert done > 0, f"the load did nothing: {counters}"
        return LoadReport(done, 0, str(counters))


@contextlib.contextmanager
def cpython() -> Iterator[Program]:
    """Runs the workload script in an interpreter whose functions are in libpython."""
    binary = build("pyhost")
    with TargetProcess(binary, "-I", str(LOADS / "interpreter.py")) as target:
        target.pause()
        maps = Path(f"/proc/{target.pid}/maps").read_text().split()
        library = next(Path(word) for word in maps if "/libpython3" in word)
        yield Program(
            "cpython", target.pid, binary, lambda program: _Workload(program, target), library
        )
        target.quit()
