"""Trace directories: round trip, recorders that die, disks that fill up."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.unit.trace_support import METADATA, TreeMaker, batches_of, make_trace
from uftrace_remote.enums import EndReason, LossStage
from uftrace_remote.errors import OutputError
from uftrace_remote.trace.calls import read_calls
from uftrace_remote.trace.store import TraceReader, TraceWriter
from uftrace_remote.values import EventBatch, Loss, ThreadRecords


@pytest.fixture(autouse=True)
def _leaves_nothing(no_leaks):
    yield


@pytest.fixture
def tape() -> bytes:
    maker = TreeMaker(1)
    maker.grow(3000)
    return maker.tape.data


def records_of(trace: TraceReader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for batch in trace.batches():
        for thread in batch.threads:
            found[thread.tid] = found.get(thread.tid, b"") + thread.records
    return found


def test_everything_comes_back(tmp_path, tape):
    losses = (Loss(LossStage.RING, 5, 11), Loss(LossStage.STREAM, 7))
    batches = list(batches_of({11: tape, 12: tape[:160]}, losses=losses))
    with TraceWriter(tmp_path / "t", METADATA) as writer:
        for batch in batches:
            writer.write(batch)
        writer.finish({"end": "done"})
    trace = TraceReader(tmp_path / "t")
    assert records_of(trace) == {11: tape, 12: tape[:160]}
    summary = trace.summary
    assert tuple(summary.functions.values()) == batches[0].functions
    assert tuple(summary.modules) == batches[0].modules
    assert summary.clock.anchors == batches[0].anchors
    assert summary.losses == losses
    assert summary.records_lost == 12
    assert summary.thread_names == {11: "worker11", 12: "worker12"}
    assert (summary.end, summary.end_detail) == (EndReason.DETACHED, "done")
    assert summary.record_count == len(tape) // 16 + 10
    assert trace.complete
    assert not trace.truncated
    assert trace.metadata["process"] == METADATA["process"]


def test_functions_that_are_named_later_are_known(tmp_path, tape):
    first, *_ = batches_of({1: tape})
    with TraceWriter(tmp_path / "t", {}) as writer:
        writer.write(replace(first, functions=first.functions[:2]))
        writer.write(EventBatch(9, functions=first.functions[2:]))
    assert len(TraceReader(tmp_path / "t").summary.functions) == 6


def test_a_file_cut_anywhere_is_a_shorter_trace(tmp_path, tape):
    directory = tmp_path / "t"
    make_trace(directory, {11: tape, 12: tape}, piece=1600)
    events = directory / "events.bin"
    whole = events.read_bytes()
    complete = list(TraceReader(directory).batches())
    lengths = []
    for size in [len(whole) - cut for cut in range(1, 4000, 97)] + [9, 8]:
        events.write_bytes(whole[:size])
        trace = TraceReader(directory)
        found = list(trace.batches())
        assert found == complete[: len(found)]
        assert trace.truncated or size == 8
        assert not trace.complete or size == 8
        lengths.append(len(found))
        assert len(list(read_calls(trace))) >= 0
    assert lengths[0] == len(complete) - 1
    assert lengths == sorted(lengths, reverse=True)


def test_damage_ends_the_trace_there(tmp_path, tape):
    directory = tmp_path / "t"
    make_trace(directory, {11: tape}, piece=1600)
    events = directory / "events.bin"
    data = bytearray(events.read_bytes())
    place = data.rfind(b"META") + 20
    data[place] ^= 0xFF
    events.write_bytes(data)
    trace = TraceReader(directory)
    assert records_of(trace) == {11: tape}
    assert trace.truncated
    assert trace.summary.end is EndReason.NONE


RECORDER = """
import sys
from pathlib import Path
from uftrace_remote.trace.store import TraceWriter
from uftrace_remote.values import EventBatch, ThreadRecords, TracedFunction
with TraceWriter(Path(sys.argv[1]), {"process": {"command_name": "app"}}) as writer:
    writer.write(EventBatch(1, functions=(TracedFunction(1, "f"),)))
    sequence = 1
    while True:
        sequence += 1
        writer.write(EventBatch(sequence, (ThreadRecords(7, bytes(65536)),)))
"""


def test_a_recorder_that_is_killed_leaves_a_readable_trace(tmp_path):
    directory = tmp_path / "t"
    recorder = subprocess.Popen(
        [sys.executable, "-c", RECORDER, directory], env={**os.environ, "PYTHONPATH": _path()}
    )
    events = directory / "events.bin"
    wait_until(lambda: events.exists() and events.stat().st_size > 1 << 20, timeout=30)
    recorder.send_signal(signal.SIGKILL)
    recorder.wait()
    trace = TraceReader(directory)
    assert trace.summary.functions[1].name == "f"
    assert trace.summary.record_count >= 15 * 4096
    assert not trace.complete
    assert trace.metadata["process"] == {"command_name": "app"}


@pytest.fixture
def full_at_64k() -> Iterator[None]:
    # A limit on file size fails a write in its middle, as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_what_was_written(tmp_path, tape, full_at_64k):
    with (
        TraceWriter(tmp_path / "t", METADATA) as writer,
        pytest.raises(OutputError, match="records so far are kept") as caught,
    ):
        for sequence in range(1, 100):
            writer.write(EventBatch(sequence, (ThreadRecords(7, tape[:16000]),)))
    assert caught.value.exit_code == 12
    kept = writer.record_count
    assert kept == 4000
    trace = TraceReader(tmp_path / "t")
    assert not trace.truncated
    assert trace.summary.record_count == kept


def test_a_directory_in_use_is_left_alone(tmp_path, tape):
    directory = tmp_path / "t"
    make_trace(directory, {1: tape})
    with pytest.raises(OutputError, match="not empty") as caught:
        TraceWriter(directory, {})
    assert caught.value.reason == "OUTPUT_EXISTS"
    assert "--force" in caught.value.hint
    assert TraceReader(directory).complete


def test_force_replaces_a_trace_and_nothing_else(tmp_path, tape):
    directory = tmp_path / "t"
    make_trace(directory, {1: tape})
    with TraceWriter(directory, {}, force=True):
        pass
    assert TraceReader(directory).summary.record_count == 0
    (directory / "thesis.tex").write_text("dear to somebody")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        TraceWriter(directory, {}, force=True)
    assert (directory / "thesis.tex").exists()


def test_a_recording_of_nothing_can_be_taken_back(tmp_path):
    with TraceWriter(tmp_path / "t", {}) as writer:
        writer.discard()
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("content", [None, b"", b"something else"])
def test_what_is_no_trace_is_said_to_be_none(tmp_path, content):
    if content is not None:
        (tmp_path / "events.bin").write_bytes(content)
    with pytest.raises(OutputError, match="no trace directory"):
        TraceReader(tmp_path)


def test_a_trace_of_another_version_is_refused(tmp_path, tape):
    make_trace(tmp_path / "t", {1: tape})
    path = tmp_path / "t" / "trace.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(OutputError, match="format 99"):
        TraceReader(tmp_path / "t")


def test_a_trace_without_its_json_is_readable(tmp_path, tape):
    make_trace(tmp_path / "t", {1: tape})
    (tmp_path / "t" / "trace.json").unlink()
    trace = TraceReader(tmp_path / "t")
    assert records_of(trace) == {1: tape}
    assert not trace.complete


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        TraceWriter(tmp_path / "file" / "t", {})


def test_more_threads_than_one_system_call_takes(tmp_path):
    threads = tuple(ThreadRecords(tid, bytes(16)) for tid in range(1, 3001))
    with TraceWriter(tmp_path / "t", {}) as writer:
        writer.write(EventBatch(1, threads))
    assert len(records_of(TraceReader(tmp_path / "t"))) == 3000


def _path() -> str:
    root = Path(__file__).parents[2]
    return os.pathsep.join(str(root / name) for name in ("client", "proto"))
