# SPDX-License-Identifier: Apache-2.0
"""A day of use on one process: attach, patch, unpatch, detach, a hundred thousand times.

    python -m tests.torture.churn --cycles 100000

A real agent and a real client. What the process and the agent have (mappings, threads,
descriptors, memory) is measured before, and at checkpoints; after the first of them it
must not grow. The process checks its own results all the time; at each checkpoint its
code is as in the file, and nobody traces it. Ends with status 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final, TypeVar

from tests.e2e.conftest import AgentProcess, running_agent
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.targets.build import build
from uftrace_agent.process.threads import status_field
from uftrace_remote import BusyTargetError, SyncAgentClient, UftraceError
from uftrace_remote.enums import EndReason, PatchWriter, RefusalReason
from uftrace_remote.values import PatchOptions, ProcessRef, RecordingOptions

_T = TypeVar("_T")
CYCLES: Final = 100_000
TRIES: Final = 20
CHECKPOINTS: Final = 10
# What is kept on purpose (answers to the latest requests, stubs of all functions, rings
# that have been written once) is there by the first checkpoint.
WARM_UP: Final = 400
STREAM_EVERY: Final = 10
RECONNECT_EVERY: Final = 50
RINGS: Final = RecordingOptions(64 << 10, 8)
# Mostly one function at a time, sometimes more, and all where records are read.
PATTERNS: Final = ("thrower", "middle_*", "leaf", "cancelled_loop", "thrower", "catch_*", "leaf")
# In turn with the patterns, so that each meets each; `auto` is byte and trap.
WRITERS: Final = (PatchWriter.AUTO, PatchWriter.AUTO, PatchWriter.AUTO, PatchWriter.STOP)
# What may come and go: a thread that waits for work, a mapping that the allocator splits.
LEEWAY_THREADS: Final = 4
LEEWAY_MAPPINGS: Final = 24
LEEWAY_DESCRIPTORS: Final = 4
LEEWAY_KIB: Final = 12 << 10


@dataclass(frozen=True, slots=True)
class Size:
    """What a process has.

    Attributes:
        private_kib: Resident memory of its own.
        shared_kib: Resident memory that it shares: the rings.
    """

    mappings: int
    threads: int
    descriptors: int
    private_kib: int
    shared_kib: int

    @classmethod
    def of(cls, pid: int) -> Size:
        """What a process has now."""
        return cls(
            mappings=Path(f"/proc/{pid}/maps").read_bytes().count(b"\n"),
            threads=len(os.listdir(f"/proc/{pid}/task")),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            private_kib=_kib(pid, "RssAnon"),
            shared_kib=_kib(pid, "RssShmem"),
        )


def _kib(pid: int, field: str) -> int:
    return int((status_field(pid, field) or "0 kB").split()[0])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What target and agent had after so many cycles."""

    cycles: int
    seconds: float
    target: Size
    agent: Size

    def row(self) -> str:
        """A line of the table."""
        cells = (self.cycles, f"{self.seconds:,.0f}", *astuple(self.target), *astuple(self.agent))
        return "| " + " | ".join(c if isinstance(c, str) else f"{c:,}" for c in cells) + " |"


HEADER: Final = (
    "| cycles | seconds | target: mappings | threads | descriptors | own KiB | rings KiB "
    "| agent: mappings | threads | descriptors | own KiB | rings KiB |\n" + "| --- " * 12 + "|"
)


def assert_no_growth(first: Checkpoint, last: Checkpoint) -> None:
    """The target has not more than at the first checkpoint; the agent has not more than
    comes and goes.

    Raises:
        AssertionError: One of them grew.
    """
    told = f"\n{HEADER}\n{first.row()}\n{last.row()}"
    for name, leeway in (("mappings", 0), ("threads", 0), ("descriptors", 0), ("shared_kib", 0)):
        grown = getattr(last.target, name) - getattr(first.target, name)
        assert grown <= leeway, f"the target's {name} grew by {grown}{told}"
    grown = last.target.private_kib - first.target.private_kib
    assert grown <= LEEWAY_KIB // 8, f"the target's memory grew by {grown} KiB{told}"
    leeways = {
        "mappings": LEEWAY_MAPPINGS,
        "threads": LEEWAY_THREADS,
        "descriptors": LEEWAY_DESCRIPTORS,
        "private_kib": LEEWAY_KIB,
        "shared_kib": 0,
    }
    for name, leeway in leeways.items():
        grown = getattr(last.agent, name) - getattr(first.agent, name)
        assert grown <= leeway, f"the agent's {name} grew by {grown}{told}"


class Churn:
    """The cycles of one process.

    Args:
        target: The process.
        agent: The agent.
        seconds: How long at most.
    """

    def __init__(self, target: TargetProcess, agent: AgentProcess, seconds: float) -> None:
        self._target = target
        self._agent = agent
        self._client: SyncAgentClient | None = None
        self.cycles = 0
        self.records = 0
        self.busy = 0
        self._started = time.monotonic()
        self._seconds = seconds

    def run(self, cycles: int) -> None:
        """So many cycles more, or fewer if the time is up."""
        for _ in range(cycles):
            if self.is_late:
                return
            if self._client is None or self.cycles % RECONNECT_EVERY == 0:
                self.close()
                self._client = self._agent.client()
            self._cycle(self._client)
            self.cycles += 1

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self._started > self._seconds

    def _cycle(self, client: SyncAgentClient) -> None:
        turn = self.cycles
        attached = client.attach(ProcessRef(self._target.pid), recording=RINGS)
        assert attached.created
        session_id = attached.session.session_id
        options = PatchOptions(writer=WRITERS[turn % len(WRITERS)])
        is_read = turn % STREAM_EVERY == 0
        pattern = "*" if is_read else PATTERNS[turn % len(PATTERNS)]
        self._patient(lambda: self._patch(client, session_id, pattern, options))
        stream = client.stream(session_id, include_buffered=True) if is_read else iter(())
        for batch in stream:
            self.records += batch.record_count
            if batch.record_count:
                break
        self._patient(lambda: client.unpatch(session_id))
        assert not client.tracepoints(session_id)
        detached = self._patient(lambda: client.detach(session_id))
        assert detached.conflicting_sites == 0
        ends = [batch.end for batch in stream if batch.end is not EndReason.NONE]
        assert ends == [EndReason.DETACHED] * is_read, ends

    def _patch(
        self, client: SyncAgentClient, session_id: str, pattern: str, options: PatchOptions
    ) -> None:
        result = client.patch(session_id, [pattern], options)
        if any(each.refusal is RefusalReason.STOP_TIMED_OUT for each in result.results):
            raise BusyTargetError("some threads did not stop in time")
        assert result.enabled_count or self.busy, result

    # On a machine that is busy elsewhere the program's threads may not stop in time:
    # then nothing was changed, and its user would try again.
    def _patient(self, request: Callable[[], _T]) -> _T:
        for _ in range(TRIES):
            try:
                return request()
            except BusyTargetError:
                self.busy += 1
        return request()

    def checkpoint(self) -> Checkpoint:
        """Measure, with the program standing still; its code must be its file's."""
        assert_text_unchanged(self._target.pid)
        assert_not_traced(self._target.pid)
        self._target.wait_iterations(1)
        self._target.pause()
        seconds = time.monotonic() - self._started
        target, agent = Size.of(self._target.pid), Size.of(self._agent.pid)
        self._target.resume()
        return Checkpoint(self.cycles, seconds, target, agent)

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


def checkpoints(churn: Churn, cycles: int, count: int) -> Iterator[Checkpoint]:
    """Run so many cycles, and measure before, after the first ones, and on the way.

    Raises:
        AssertionError: Target or agent grew after the first of them.
    """
    yield churn.checkpoint()
    warm_up = max(WARM_UP, cycles // count // 5) if cycles > WARM_UP else cycles // 2
    churn.run(warm_up)
    first = churn.checkpoint()
    yield first
    for number in range(count):
        churn.run(warm_up + (cycles - warm_up) * (number + 1) // count - churn.cycles)
        last = churn.checkpoint()
        yield last
        assert_no_growth(first, last)
        if churn.is_late:
            return


@contextmanager
def churning(niceness: int = 0, seconds: float = float("inf")) -> Iterator[Churn]:
    """A target and an agent; in the end both leave with status 0."""
    wrapper = ("nice", "-n", str(niceness)) if niceness else ()
    with tempfile.TemporaryDirectory(prefix="churn-") as name:
        with TargetProcess(build("exceptions", "gcc-O2"), wrapper=wrapper) as target:
            with running_agent(Path(name) / "state", "--log-level", "warning") as agent:
                churn = Churn(target, agent, seconds)
                try:
                    yield churn
                except (AssertionError, UftraceError) as error:
                    # What was asked for last says only that it is gone.
                    if target.returncode is not None:
                        raise AssertionError(
                            f"the program ended with status {target.returncode} "
                            f"in cycle {churn.cycles}: {target.errors()!r}"
                        ) from error
                    raise
                finally:
                    churn.close()
            target.quit()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture.churn", description="Attach and detach all day long."
    )
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most")
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS)
    parser.add_argument("--nice", type=int, default=0, help="the program's niceness")
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    with churning(arguments.nice, arguments.seconds) as churn:
        for checkpoint in checkpoints(churn, arguments.cycles, arguments.checkpoints):
            print(checkpoint.row(), flush=True)
        rate = churn.cycles / checkpoint.seconds
    print(
        f"\n{churn.cycles:,} cycles, {rate:.1f} a second, {churn.records:,} records looked at, "
        f"{churn.busy} requests made again since threads did not stop in time: "
        "nothing grew, nothing failed"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
