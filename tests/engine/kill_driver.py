"""A process that patches another one, round by round, and can be killed in the middle.

Each round is a fork of it, so that nothing has to be imported or read again:

    round [N]  -> attached RESTORED     a fork has attached; with N it is killed at the
                                        N-th step of attaching, and there is no answer
    go N M     -> finished STEPS        it has patched, unpatched and left; with N > 0 it is
                                        killed at the N-th step of patching and unpatching,
                                        with M > 0 at the M-th of leaving
               -> ended SIGNAL          the fork is gone (0: it has left in order)

A step is a moment before or after a call that changes or stops the target (kill_at.c).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence

from uftrace_agent.engine.model import Status, Writer
from uftrace_agent.engine.patch_engine import PatchEngine
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.program import Program, ProgramFunction
from uftrace_agent.engine.report import EngineOptions, EngineReport
from uftrace_agent.engine.x86_64 import forms
from uftrace_agent.errors import BusyTargetError
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.runtime.host_library import library
from uftrace_agent.session.attaching import attach
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache

# A stop may have to wait for its turn on a busy machine.
DEADLINE_NS = 2_000_000_000


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def hear() -> list[str]:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(0)
        line += byte
    return line.decode().split()


class Rounds:
    """What is done in each round, with the same functions and the same options."""

    def __init__(self, pid: int, writer: Writer, form: str, patterns: Sequence[str]) -> None:
        self._process = resolve(ProcessId(pid))
        self._patterns = patterns
        self._images = ImageCache()
        self._options = EngineOptions(
            PlanOptions(writer, allow_multi=form == "multi"), stop_deadline_ns=DEADLINE_NS
        )
        if form in ("near", "hop"):
            only = getattr(forms, f"_{form}")
            forms._order = lambda request: (only,)
        shim = ctypes.CDLL(None)
        self._kill_at: Callable[[int], None] = shim.kill_at
        self._steps_made: Callable[[], int] = shim.steps_made
        # Read all that forks will need.
        library()
        with ProcessMemory(pid) as memory:
            self._select(Program(memory, self._images))

    def _select(self, program: Program) -> list[ProgramFunction]:
        program.refresh()
        return program.select(self._patterns)

    def run(self, kill_in_attach: int) -> None:
        """One round; in a process of its own."""
        self._kill_at(kill_in_attach)
        attachment = attach(self._process, RecordingOptions(1 << 16, 4), self._images)
        self._kill_at(0)
        say(f"attached {attachment.restored_sites}")
        functions = self._select(attachment.program)
        _, number, leave_number = hear()
        self._kill_at(int(number))
        self._toggle(attachment.engine, functions)
        steps = self._steps_made()
        self._kill_at(int(leave_number))
        attachment.engine.leave(DEADLINE_NS)
        attachment.manifest.release()
        attachment.close()
        self._kill_at(0)
        say(f"finished {steps}")

    def _toggle(self, engine: PatchEngine, functions: Sequence[ProgramFunction]) -> None:
        report = engine.enable(functions, self._options)
        enabled = [o for o in report.outcomes if o.status is Status.ENABLED]
        if not enabled:
            # A thread was in libc, where all signals are blocked, whenever it was
            # looked at: that happens on a busy machine.
            strange = {
                (o.refusal and o.refusal.name, o.detail)
                for o in report.outcomes
                if "SIGTRAP" not in o.detail
            }
            assert not strange, strange
            return
        addresses = [outcome.function.address for outcome in enabled]
        try:
            engine.disable(addresses, self._options, EngineReport([]))
        except BusyTargetError:
            engine.disable(addresses, EngineOptions(), EngineReport([]))


def main() -> None:
    pid, writer, form, *patterns = sys.argv[1:]
    rounds = Rounds(int(pid), Writer[writer.upper()], form, patterns)
    say("ready")
    while True:
        word, *rest = hear() or [""]
        if word != "round":
            continue  # for a fork that was killed before it had read it
        child = os.fork()
        if not child:
            try:
                rounds.run(int(rest[0]) if rest else 0)
            except BaseException as error:
                say(f"failed {error!r}")
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        say(f"ended {os.WTERMSIG(status) if os.WIFSIGNALED(status) else -status >> 8}")


if __name__ == "__main__":
    main()
