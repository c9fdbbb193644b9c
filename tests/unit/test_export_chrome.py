"""Trace Event JSON."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.unit.trace_support import FUNCTIONS, Tape, TreeMaker, make_trace, to_ns
from uftrace_remote.enums import RecordKind
from uftrace_remote.errors import OutputError
from uftrace_remote.export import FORMATS

NAMES = {each.function_id: each.name for each in FUNCTIONS}

pytestmark = pytest.mark.usefixtures("no_leaks")


def export(tmp_path, threads, piece=16 * 1000):
    trace = make_trace(tmp_path / "t", threads, piece)
    result = FORMATS["chrome"].write(trace, tmp_path / "out.json")
    return result, json.loads((tmp_path / "out.json").read_text())


def test_every_call_is_there_with_its_times(tmp_path):
    makers = {11: TreeMaker(1), 12: TreeMaker(2)}
    trees = {tid: maker.grow(2000) for tid, maker in makers.items()}
    result, document = export(tmp_path, {tid: maker.tape.data for tid, maker in makers.items()})
    wanted: Counter[tuple[object, ...]] = Counter()
    for tid, roots in trees.items():
        for node in (node for root in roots for node in root.walk()):
            only = node.kind is RecordKind.ENTRY_ONLY
            # Half a nanosecond may be rounded either way: compare microseconds.
            place = (tid, NAMES[node.function], "i" if only else "X", to_ns(node.start) // 10_000)
            wanted[place] += 1
    found = Counter(
        (event["tid"], event["name"], event["ph"], int(event["ts"] // 10))
        for event in document["traceEvents"]
        if event["ph"] in "iX"
    )
    assert found.total() == result.calls == 4000
    assert (found - wanted).total() <= 4
    assert all(event["pid"] == 4321 for event in document["traceEvents"])


def test_durations_names_and_marks(tmp_path):
    tape = Tape(0).entry(1, 100).entry(3, 90).entry(4, 80).exit(1, 100, 2_001).entry(5, 70, 3)
    _, document = export(tmp_path, {7: tape.data})
    meta, rest = [], []
    for event in document["traceEvents"]:
        (meta if event["ph"] == "M" else rest).append(event)
    assert {(event["name"], event["args"]["name"]) for event in meta} == {
        ("process_name", "app"),
        ("thread_name", "worker7"),
    }
    by_name = {event["name"]: event for event in rest}
    assert by_name["main"]["dur"] == pytest.approx(1.010, abs=0.002)
    assert by_name["lookup"]["args"] == {"skipped": True}
    assert "args" not in by_name["main"]
    assert by_name["store"]["ph"] == "B"
    assert document["otherData"]["host"] == "web1"


def test_an_empty_trace_is_a_document(tmp_path):
    _, document = export(tmp_path, {})
    assert [event["ph"] for event in document["traceEvents"]] == ["M"]


def test_a_failed_export_leaves_no_half_file(tmp_path):
    trace = make_trace(tmp_path / "t", {})
    with pytest.raises(OutputError, match="cannot write"):
        FORMATS["chrome"].write(trace, tmp_path / "nowhere" / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
