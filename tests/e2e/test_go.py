"""Go: calls of goroutines against what the program counts itself."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.support import programs
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import EndReason, PatchStatus, PatchWriter, RefusalReason
from uftrace_remote.trace.model import CallArray, CallFlag
from uftrace_remote.trace.paired import StreamPairer, paired_chunks
from uftrace_remote.trace.strands import FIRST_STRAND
from uftrace_remote.trace.summary import TraceSummary
from uftrace_remote.values import EventBatch, PatchOptions, ProcessRef, RecordingOptions

NAMES = ("outer", "middle", "inner", "grow", "sleepy", "recovers", "deferred", "ways", "round")
RARE = ("throws", "spin", "leaves")
# Rings that do not fill on a busy machine.
RINGS = RecordingOptions(ring_bytes=1 << 24, ring_count=32)
SLEEP_NS = 20_000_000
GROWERS = {"main.grow", "main.round", "main.ways", "main.spin"}


@dataclass
class Trace:
    """The calls of one recording, by goroutine or thread."""

    summary: TraceSummary = field(default_factory=TraceSummary)
    calls: dict[int, CallArray] = field(default_factory=dict)
    orphans: int = 0

    def of(self, name: str) -> list[tuple[int, CallArray]]:
        """Rows of a function, by goroutine."""
        (number,) = [n for n, f in self.summary.functions.items() if f.name == name]
        return [(lane, rows[rows["function"] == number]) for lane, rows in self.calls.items()]


class _Batches:
    """Reads a session's stream on a thread until it ends."""

    def __init__(self, client: SyncAgentClient, session_id: str) -> None:
        self.batches: list[EventBatch] = []
        self._first = threading.Event()
        self._stream = client.stream(session_id, include_buffered=True)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._first.wait(20), "the stream sent nothing"

    def _run(self) -> None:
        for batch in self._stream:
            self.batches.append(batch)
            self._first.set()

    def finish(self) -> None:
        """Reads the stream to its end."""
        self._thread.join(60)
        assert self.batches[-1].end is EndReason.DETACHED

    def trace(self) -> Trace:
        """What was recorded, once the session has ended."""
        self.finish()
        trace = Trace()
        for batch in self.batches:
            trace.summary.add(batch)
        pairer = StreamPairer()
        pieces: dict[int, list[CallArray]] = {}
        for lane, chunk in paired_chunks(self.batches, pairer):
            pieces.setdefault(lane, []).append(chunk.finished)
        for lane, pairing in pairer.threads.items():
            rows = pairing.open_calls()
            trace.calls[lane] = np.concatenate([*pieces.get(lane, []), rows])
        trace.orphans = pairer.orphan_exits
        return trace


@contextmanager
def traced(
    client: SyncAgentClient, target: TargetProcess, names: tuple[str, ...], writer: PatchWriter
) -> Iterator[Trace]:
    """Trace some functions of main, exits and all, while the body runs; the trace is
    filled at its end."""
    session_id = client.attach(ProcessRef(target.pid), recording=RINGS).session.session_id
    batches = _Batches(client, session_id)
    trace = Trace()
    try:
        result = client.patch(
            session_id, [f"main.{name}" for name in names], PatchOptions(writer=writer)
        )
        for each in result.results:
            assert each.status is PatchStatus.ENABLED, each
            assert each.exit_refusal is RefusalReason.NONE, each
        yield trace
    finally:
        client.detach(session_id)
    whole = batches.trace()
    trace.summary, trace.calls, trace.orphans = whole.summary, whole.calls, whole.orphans
    assert not trace.summary.records_lost


@pytest.mark.parametrize("writer", [PatchWriter.AUTO, PatchWriter.STOP], ids=["auto", "stop"])
def test_h42_every_call_of_a_goroutine_is_one_pair(
    client: SyncAgentClient, writer: PatchWriter
) -> None:
    """Fifty goroutines on four threads: channels, stacks that grow and move, panics and
    recovers, collections, preemption. Each call has its entry and its exit, in the
    goroutine that made it, below its caller."""
    with TargetProcess(build("goroutines", "go"), deadline=60.0) as target:
        before = target.pause()
        with traced(client, target, NAMES + RARE, writer) as trace:
            target.burst(10)
            after = target.counters()
        # THEN the trace has as many whole calls as the program counted
        whole = {name: _whole(trace, f"main.{name}") for name in NAMES}
        counted = {name: after[f"calls_{name}"] - before[f"calls_{name}"] for name in NAMES}
        assert whole == counted
        assert counted["outer"] == 500
        assert trace.orphans == 0
        # AND what panics or ends its goroutine never returned
        for name in ("throws", "leaves"):
            count = after[f"calls_{name}"] - before[f"calls_{name}"]
            rows = np.concatenate([rows for _, rows in trace.of(f"main.{name}")])
            assert len(rows) == count > 0
            assert (rows["flags"] & (CallFlag.SKIPPED | CallFlag.OPEN) != 0).all()
        # AND every call is within the one that made it, all of them of goroutines
        assert min(trace.calls) >= FIRST_STRAND or not len(trace.calls[min(trace.calls)])
        assert _callers(trace, "main.inner") == {"main.middle": counted["inner"]}
        assert _callers(trace, "main.middle") == {"main.outer": counted["middle"]}
        assert _callers(trace, "main.outer") == {"main.round": counted["outer"]}
        assert _callers(trace, "main.throws") == {"main.recovers": counted["recovers"]}
        assert set(_callers(trace, "main.grow")) <= GROWERS
        # AND a call that waits is as long as its wait, on whichever thread it ended
        assert after["moved"] > before["moved"], "no goroutine changed its thread"
        clock = trace.summary.clock
        for _, rows in trace.of("main.sleepy"):
            took = clock.nanoseconds(rows["end"]) - clock.nanoseconds(rows["start"])
            assert (took >= SLEEP_NS * 0.99).all()  # the clock is measured, not defined
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.resume()
        target.wait_iterations(4)
        target.quit()


def _whole(trace: Trace, name: str) -> int:
    broken = CallFlag.SKIPPED | CallFlag.OPEN | CallFlag.ENTRY_ONLY
    return sum(int((rows["flags"] & broken == 0).sum()) for _, rows in trace.of(name))


def _callers(trace: Trace, name: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for lane, rows in trace.of(name):
        calls = trace.calls[lane]
        names = dict(zip(calls["begin_seq"].tolist(), calls["function"].tolist(), strict=True))
        for parent in rows["parent_seq"].tolist():
            caller = trace.summary.function_name(names[parent]) if parent >= 0 else ""
            found[caller] += 1
    return dict(found)


def test_h42_exits_come_and_go_while_goroutines_run(client: SyncAgentClient) -> None:
    """Everything is enabled and disabled again and again under way: the program checks
    its own results, and what is whole of a call took as long as it must."""
    with TargetProcess(build("goroutines", "go"), deadline=60.0) as target:
        session_id = client.attach(ProcessRef(target.pid), recording=RINGS).session.session_id
        batches = _Batches(client, session_id)
        for writer in (PatchWriter.AUTO, PatchWriter.STOP) * 3:
            client.patch(session_id, ["*"], PatchOptions(writer=writer))
            target.wait_iterations(8)
            client.unpatch(session_id)
            target.wait_iterations(2)
        report = client.detach(session_id)
        trace = batches.trace()
        assert report.conflicting_sites == 0
        assert sum(len(rows) for rows in trace.calls.values()) > 0
        assert_text_unchanged(target.pid)
        target.quit()


def test_h42_a_server_under_load_makes_no_mistake(client: SyncAgentClient) -> None:
    """net/http, all functions of it, entries and exits: every reply is checked."""
    with programs.golang() as program, program.load() as load:
        session_id = client.attach(ProcessRef(program.pid), recording=RINGS).session.session_id
        batches = _Batches(client, session_id)
        result = client.patch(session_id, ["*"])
        enabled = [each for each in result.results if each.status is PatchStatus.ENABLED]
        with_exits = [each for each in enabled if each.exit_refusal is RefusalReason.NONE]
        assert len(with_exits) > 0.8 * len(enabled) > 1000
        wait_until(lambda: batches.batches[-1].records_total > 1_000_000, timeout=60.0)
        report = client.detach(session_id)
        assert report.conflicting_sites == 0
        batches.finish()
        done = load.finish()
        assert done.errors == 0, done
        assert_text_unchanged(program.pid)


def test_h42_assembly_stays_entry_only(client: SyncAgentClient) -> None:
    """What does not check its stack may be assembly: nothing says what is in r14."""
    with TargetProcess(build("goroutines", "go")) as target:
        names = ["runtime.memmove", "runtime.gogo.abi0", "main.round"]
        found = {
            each.function.name: each
            for each in client.functions(ProcessRef(target.pid), names, explain=True)
        }
        assert found["runtime.memmove"].exit_refusal is RefusalReason.MOVING_STACKS
        assert found["runtime.gogo.abi0"].exit_refusal is RefusalReason.MOVING_STACKS
        assert found["main.round"].exit_refusal is RefusalReason.NONE
        target.quit()
