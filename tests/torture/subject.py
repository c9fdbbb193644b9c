# SPDX-License-Identifier: Apache-2.0
"""The program that is tortured: started, watched, and asked what killed it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.support.target_process import TargetProcess
from tests.targets.build import build
from tests.torture.forms import ANY, PROGRAM_FORMS, FormCase
from uftrace_agent.process.threads import status_field

# What a program with 64 busy threads on two processors may need for an answer.
_DEADLINE = 60.0
_CORE_DEADLINE = 60.0
_DEATH_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the program does meanwhile.

    Attributes:
        threads: Threads that call sites in loops.
        hz: SIGPROF so often a second, over all threads.
        churn: So many threads at a time that live shortly.
        turns: A thread lets others run after so many sites; 0: never.
        own_trap: The program handles SIGTRAP itself, and sends some.
        masked: Its handler of SIGPROF runs with SIGTRAP blocked.
        niceness: At the lowest priority by default, since 64 busy threads would leave
            two processors' agent no time; and are interrupted the more often so.
    """

    threads: int
    hz: int = 10_000
    churn: int = 2
    turns: int = 0
    own_trap: bool = False
    masked: bool = False
    niceness: int = 19

    def arguments(self) -> list[str]:
        """For the program's command line."""
        return [
            f"threads={self.threads}",
            f"hz={self.hz}",
            f"churn={self.churn}",
            f"turns={self.turns}",
            f"trap={int(self.own_trap)}",
            f"mask={int(self.masked)}",
        ]


class Subject:
    """A running torture program.

    Attributes:
        target: Its process.
        cases: Whose sites it calls.
    """

    def __init__(self, target: TargetProcess, cases: Sequence[FormCase]) -> None:
        self.target = target
        self.cases = tuple(cases)
        self._caught_before = self._caught_signals()
        self._seen = 0
        self.focus()

    @property
    def pid(self) -> int:
        """The process."""
        return self.target.pid

    def focus(self) -> None:
        """Have all threads call all the sites."""
        self._call(self.cases[0].sites if len(self.cases) == 1 else ANY)

    def focus_on(self, case: FormCase, name: str, count: int) -> None:
        """Have all threads call only `count` sites of a form from this one on."""
        # Compiled functions lie in an order of their own.
        if case.sites != "compiled":
            self._call(case.sites, int(name.rpartition("_")[2]), count)

    # 0: all.
    def _call(self, sites: str, first: int = 0, count: int = 0) -> None:
        form = PROGRAM_FORMS.index(sites)
        reply = self.target.command(f"window {form << 40 | first << 20 | count:#x}")
        assert reply.startswith(f"window {sites} {first} "), reply

    def check_alive(self) -> None:
        """Threads go on, and none has seen a wrong result.

        Raises:
            AssertionError: Otherwise.
        """
        until = time.monotonic() + _DEADLINE
        seen = self.counters()["calls_sites"]
        while seen == self._seen:
            assert time.monotonic() < until, "no thread makes progress"
            seen = self.counters()["calls_sites"]
        self._seen = seen

    def counters(self) -> dict[str, int]:
        """The program's own counts."""
        return self.target.counters()

    def check_signals(self) -> None:
        """The process catches the signals that it caught at first.

        Raises:
            AssertionError: Otherwise.
        """
        caught = self._caught_signals()
        assert caught == self._caught_before, (
            f"signals caught: {caught:#x}, before {self._caught_before:#x}"
        )

    def _caught_signals(self) -> int:
        return int(status_field(self.pid, "SigCgt") or "0", 16)

    def post_mortem(self) -> str:
        """What ended it, as far as can be told."""
        process = self.target
        # Its memory goes some time before its parent is told.
        with suppress(subprocess.TimeoutExpired):
            process.wait_exit(_DEATH_SECONDS)
        status = process.returncode
        if status is None:
            return f"it still runs\n{_gdb(process, ['-p', str(process.pid)])}"
        try:
            while True:
                process.read_line(1.0)
        except AssertionError as error:
            said = str(error)
        if status >= 0:
            return f"status {status}: {said}"
        cores = sorted(process.folder.glob("core*"))
        if not cores:
            return f"killed by signal {-status}: {said} (no core file)"
        return f"killed by signal {-status}: {said}\n{_gdb(process, [str(cores[0])])}"


def _gdb(process: TargetProcess, arguments: list[str]) -> str:
    if shutil.which("gdb") is None:
        return "(no gdb to look at it)"
    questions = ["info registers", "x/12i $pc-16", "x/24xb $pc-8", "x/16gx $rsp", "bt 8"]
    if arguments[0] == "-p":
        questions = ["thread apply all bt 4"]
    command = ["gdb", "-batch", "-nx", "-iex", "set debuginfod enabled off"]
    command += [word for question in questions for word in ("-ex", question)]
    command += [str(process.binary), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_CORE_DEADLINE, check=False
        )
    except subprocess.TimeoutExpired:
        return "(gdb gave no answer in time)"
    return done.stdout[-6000:]


@contextmanager
def running(cases: Sequence[FormCase], load: Load) -> Iterator[Subject]:
    """The program of these forms, until the block ends; killed then if it still runs."""
    binary = build(cases[0].program, cases[0].variant)
    # A core tells where it died.
    wrapper = ("nice", "-n", str(load.niceness), "prlimit", "--core=unlimited")
    with TargetProcess(binary, *load.arguments(), wrapper=wrapper, deadline=_DEADLINE) as target:
        yield Subject(target, cases)
