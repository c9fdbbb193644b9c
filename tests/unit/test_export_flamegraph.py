"""The flame graph."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.unit.trace_support import METADATA, Tape, TreeMaker, batches_of, make_trace
from uftrace_remote.export import FORMATS
from uftrace_remote.trace.store import TraceReader, TraceWriter
from uftrace_remote.values import TracedFunction

SVG = "{http://www.w3.org/2000/svg}"

pytestmark = pytest.mark.usefixtures("no_leaks")


def export(trace, path):
    result = FORMATS["flamegraph"].write(trace, path)
    return result, ElementTree.parse(path).getroot()


def boxes(root):
    """(name, x, y, width) of every box."""
    found = []
    for group in root.iter(f"{SVG}g"):
        if group.get("class") == "frame":
            rect = group.find(f"{SVG}rect")
            place = (float(rect.get(name)) for name in ("x", "y", "width"))
            found.append((group.get("data-name"), *place))
    return found


def test_widths_are_times_by_stack(tmp_path):
    # main 1000 = parse 600 (of which lookup 150) + lookup 100 + 300 of its own
    tape = Tape(0).entry(1, 100, 0).entry(3, 90, 0).entry(4, 80, 0).exit(4, 80, 150)
    tape.exit(3, 90, 450).entry(4, 90, 0).exit(4, 90, 100).exit(1, 100, 300)
    result, root = export(make_trace(tmp_path / "t", {7: tape.data}), tmp_path / "f.svg")
    assert result.calls == 4
    found = sorted((name, round(width)) for name, _, _, width in boxes(root))
    assert found == [
        ("all", 1180),
        ("lookup", 118),
        ("lookup", 177),
        ("main", 1180),
        ("parse", 708),
    ]
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert "parse [app] (300 ns, 60.00 %; 1 call, self 225 ns)" in titles


def test_a_box_lies_on_its_caller(tmp_path):
    maker = TreeMaker(4)
    maker.grow(3000)
    _, root = export(make_trace(tmp_path / "t", {7: maker.tape.data}), tmp_path / "f.svg")
    found = boxes(root)
    assert len(found) > 50
    rows: dict[float, list[tuple[float, float]]] = {}
    for _, x, y, width in found:
        rows.setdefault(y, []).append((x, x + width))
    for y, places in rows.items():
        places.sort()
        for (_, end), (start, _) in itertools.pairwise(places):
            assert start >= end - 0.02
        below = rows.get(y + 17)
        if below:
            assert all(
                any(low <= start + 0.02 and end <= high + 0.02 for low, high in below)
                for start, end in places
            )


def test_it_needs_nothing_else(tmp_path):
    tape = Tape(0).entry(1, 100).exit(1, 100)
    export(make_trace(tmp_path / "t", {7: tape.data}), tmp_path / "f.svg")
    text = (tmp_path / "f.svg").read_text()
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "src=" not in text
    assert "@import" not in text
    assert "<script>" in text


def test_names_are_escaped(tmp_path):
    hostile = TracedFunction(1, "operator<< <\"&'>(std::ostream&)]]><script>", "", "a&b")
    tape = Tape(0).entry(1, 100).exit(1, 100)
    with TraceWriter(tmp_path / "t", {**METADATA, "agent": {"hostname": "<web>"}}) as writer:
        for batch in batches_of({7: tape.data}):
            writer.write(replace(batch, functions=(hostile,)))
    _, root = export(TraceReader(tmp_path / "t"), tmp_path / "f.svg")
    assert hostile.name in [name for name, *_ in boxes(root)]
    assert len(list(root.iter(f"{SVG}script"))) == 1


def test_without_times_it_counts_calls(tmp_path):
    tape = Tape(0).only(6, 100).only(6, 100).only(6, 100)
    result, root = export(make_trace(tmp_path / "t", {7: tape.data}), tmp_path / "f.svg")
    assert "numbers of calls" in result.remarks[0]
    assert ("idle", 1180) in [(name, round(width)) for name, _, _, width in boxes(root)]


def test_an_empty_trace_is_a_picture(tmp_path):
    result, root = export(make_trace(tmp_path / "t", {}), tmp_path / "f.svg")
    assert result.calls == 0
    assert [name for name, *_ in boxes(root)] == ["all"]
