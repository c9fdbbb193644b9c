"""Times per function and per stack, against sums over the tree itself."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trace_support import Node, Tape, TreeMaker, make_trace, to_ns
from uftrace_remote.enums import RecordKind
from uftrace_remote.trace.calls import read_calls
from uftrace_remote.trace.histogram import bucket_of, quantile
from uftrace_remote.trace.stacks import stack_tree
from uftrace_remote.trace.statistics import function_statistics


def took(node: Node) -> int:
    return to_ns(node.end) - to_ns(node.start)


def own(node: Node) -> int:
    return took(node) - sum(took(child) for child in node.children)


def outer_times(roots: list[Node]) -> dict[int, int]:
    totals: dict[int, int] = defaultdict(int)

    def visit(node: Node, around: frozenset[int]) -> None:
        if node.function not in around:
            totals[node.function] += took(node)
        for child in node.children:
            visit(child, around | {node.function})

    for root in roots:
        visit(root, frozenset())
    return totals


@pytest.mark.parametrize("piece", [16 * 37, 16 * 5000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_figure(tmp_path, seed, piece):
    makers = {11: TreeMaker(seed), 12: TreeMaker(seed + 100)}
    roots = [root for maker in makers.values() for root in maker.grow(2500)]
    trace = make_trace(
        tmp_path / "t", {tid: maker.tape.data for tid, maker in makers.items()}, piece
    )
    nodes = [node for root in roots for node in root.walk()]
    totals = outer_times(roots)
    found = function_statistics(trace)
    assert {each.function_id for each in found} == {node.function for node in nodes}
    for each in found:
        mine = [node for node in nodes if node.function == each.function_id]
        timed = [node for node in mine if node.kind is not RecordKind.ENTRY_ONLY]
        times = sorted(map(took, timed))
        assert each.calls == len(mine)
        assert each.timed_calls == len(timed)
        assert each.open_calls == 0
        assert each.total_ns == pytest.approx(totals[each.function_id], abs=len(mine))
        assert each.self_ns == pytest.approx(sum(map(own, timed)), abs=2 * len(mine))
        assert each.min_ns == pytest.approx(times[0], abs=1)
        assert each.max_ns == pytest.approx(times[-1], abs=1)
        assert each.avg_ns == pytest.approx(sum(times) / len(times), abs=1)
        exact = times[int(np.ceil(0.99 * len(times))) - 1]
        assert exact * 0.999 - 1 <= each.p99_ns <= exact * 1.01 + 1
    assert [each.total_ns for each in found] == sorted(
        (each.total_ns for each in found), reverse=True
    )


def test_calls_that_never_end_count_up_to_the_end(tmp_path):
    tape = Tape(0).entry(1, 100, 100).entry(2, 90, 100).entry(1, 80, 200).exit(1, 80, 400)
    (outer, inner) = function_statistics(make_trace(tmp_path / "t", {7: tape.data}))
    assert (outer.name, outer.calls, outer.open_calls) == ("main", 2, 1)
    # Two ticks are a nanosecond; the inner call of main is inside the outer.
    assert (outer.total_ns, outer.self_ns) == (350, 50 + 200)
    assert (inner.total_ns, inner.self_ns) == (300, 100)


def test_entries_alone_have_no_times(tmp_path):
    tape = Tape(0).only(6, 100).only(6, 100)
    (found,) = function_statistics(make_trace(tmp_path / "t", {7: tape.data}))
    assert (found.calls, found.timed_calls, found.total_ns, found.p99_ns) == (2, 0, 0, 0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=300))
def test_quantiles_are_right_to_one_percent(durations):
    buckets = Counter(bucket_of(np.array(durations, np.int64)).tolist())
    exact = sorted(durations)[int(np.ceil(0.99 * len(durations))) - 1]
    assert exact <= quantile(buckets, 0.99) <= exact * 1.0079 + 1


def test_stacks_add_up(tmp_path):
    maker = TreeMaker(9)
    roots = maker.grow(3000)
    trace = make_trace(tmp_path / "t", {7: maker.tape.data}, piece=16 * 210)
    tree = stack_tree(trace)
    wanted: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0, 0])

    def visit(node: Node, above: tuple[int, ...]) -> None:
        stack = (*above, node.function)
        wanted[stack][0] += own(node)
        wanted[stack][1] += 1
        for child in node.children:
            visit(child, stack)

    for root in roots:
        visit(root, ())
    stacks: list[tuple[int, ...]] = []
    for node in tree.nodes:
        above = stacks[node.parent] if node.parent >= 0 else ()
        stacks.append((*above, node.function_id))
    assert set(stacks) == set(wanted)
    for stack, node in zip(stacks, tree.nodes, strict=True):
        assert node.calls == wanted[stack][1]
        assert node.self_ns == pytest.approx(wanted[stack][0], abs=2 * node.calls)
    whole = sum(took(root) for root in roots)
    at_the_top = [index for index, node in enumerate(tree.nodes) if node.parent < 0]
    assert sum(tree.total_ns()[index] for index in at_the_top) == pytest.approx(whole, abs=6000)


def test_calls_one_by_one(tmp_path):
    tape = Tape(0).entry(1, 100).only(6, 90).entry(3, 90).entry(4, 80).exit(3, 90).entry(5, 80)
    found = {call.function: call for call in read_calls(make_trace(tmp_path / "t", {7: tape.data}))}
    assert found["parse"].end_ns == to_ns(50)
    assert found["parse"].depth == 1
    assert found["lookup"].skipped
    assert found["idle"].entry_only
    assert found["idle"].end_ns is None
    assert found["main"].end_ns is None
    assert found["store"].end_ns is None
