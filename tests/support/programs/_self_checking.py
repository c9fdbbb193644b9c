# SPDX-License-Identifier: Apache-2.0
"""Programs that are their own load: they compute, and compare the results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.target_process import TargetProcess
from tests.targets.build import PROGRAMS, build

from ._base import LOADS, Load, LoadReport, Program


class _Workload(Load):
    # It speaks the protocol of the targets, and runs between resume and pause.

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
def _running(
    name: str, binary: Path, *arguments: str, module: str | None = None
) -> Iterator[Program]:
    with TargetProcess(binary, *arguments) as target:
        target.pause()
        maps = Path(f"/proc/{target.pid}/maps").read_text().split()
        library = next(Path(word) for word in maps if module in word) if module else binary
        yield Program(name, target.pid, binary, lambda program: _Workload(program, target), library)
        target.quit()


@contextlib.contextmanager
def cpython() -> Iterator[Program]:
    """Runs the workload script in an interpreter whose functions are in libpython:
    tests/targets/pyhost.c with Debian's libpython."""
    script = str(LOADS / "interpreter.py")
    with _running("cpython", build("pyhost"), "-I", script, module="/libpython3") as program:
        yield program


def self_checking(
    name: str, variant: str
) -> Callable[[], contextlib.AbstractContextManager[Program]]:
    """What runs a program of tests/targets that takes pauses."""

    def start() -> contextlib.AbstractContextManager[Program]:
        return _running(name, build(name, variant), *PROGRAMS[name].arguments)

    start.__name__ = name
    return start
