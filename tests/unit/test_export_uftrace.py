"""The data directory, read by the real uftrace."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tests.unit.trace_support import (
    BASE,
    FUNCTIONS,
    UFTRACE_NAMES,
    Node,
    Tape,
    TreeMaker,
    make_trace,
    to_ns,
)
from uftrace_remote.enums import RecordKind
from uftrace_remote.errors import OutputError
from uftrace_remote.export import FORMATS, ExportResult
from uftrace_remote.export._uftrace_symbols import place_functions
from uftrace_remote.trace.statistics import function_statistics
from uftrace_remote.trace.store import TraceReader
from uftrace_remote.values import MappedModule, TracedFunction

UFTRACE = shutil.which("uftrace")

pytestmark = pytest.mark.usefixtures("no_leaks")

# Time, tid, kind, name, depth of one record.
Event = tuple[int, int, str, str, int]


def uftrace(command: str, directory: Path, *options: str) -> str:
    assert UFTRACE, "the tests need the Debian package uftrace"
    done = subprocess.run(
        [UFTRACE, command, "--no-pager", "--color=no", "-d", directory, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def export(trace: TraceReader, directory: Path) -> ExportResult:
    return FORMATS["uftrace"].write(trace, directory)


def dumped(directory: Path) -> dict[int, list[Event]]:
    """The records of each thread as uftrace reads them."""
    found: dict[int, list[Event]] = defaultdict(list)
    for line in uftrace("dump", directory).splitlines():
        match = re.match(
            r"(\d+)\.(\d{9}) +(\d+): \[(entry|exit) ?\] (.*)\([0-9a-f]+\) depth: (\d+)", line
        )
        if match:
            time = int(match[1]) * 1_000_000_000 + int(match[2])
            found[int(match[3])].append((time, int(match[3]), match[4], match[5], int(match[6])))
    return found


def expected(tid: int, roots: list[Node]) -> list[Event]:
    events: list[Event] = []

    def visit(node: Node) -> None:
        name = UFTRACE_NAMES[node.function]
        events.append((to_ns(node.start), tid, "entry", name, node.depth))
        for child in node.children:
            visit(child)
        events.append((to_ns(node.end), tid, "exit", name, node.depth))

    for root in roots:
        visit(root)
    return events


@pytest.mark.parametrize("piece", [16 * 100, 16 * 10000])
def test_uftrace_sees_the_same_calls(tmp_path, piece):
    makers = {4321: TreeMaker(1), 4400: TreeMaker(2), 4401: TreeMaker(3)}
    trees = {tid: maker.grow(2000) for tid, maker in makers.items()}
    trace = make_trace(
        tmp_path / "t", {tid: maker.tape.data for tid, maker in makers.items()}, piece
    )
    result = export(trace, tmp_path / "out")
    assert result.calls == 6000
    assert result.remarks == ()
    found = dumped(tmp_path / "out")
    for tid, roots in trees.items():
        # Half a nanosecond may be rounded either way.
        wanted = expected(tid, roots)
        assert [event[1:] for event in found[tid]] == [event[1:] for event in wanted]
        assert all(abs(a[0] - b[0]) <= 1 for a, b in zip(found[tid], wanted, strict=True))


def test_replay_shows_the_tree(tmp_path):
    tape = Tape(0).entry(1, 100).entry(2, 90).tail(3, 90).only(6, 80).exit(2, 90, 2_000)
    tape.entry(4, 90).exit(4, 90, 2_000_000).exit(1, 100)
    export(make_trace(tmp_path / "t", {4321: tape.data}), tmp_path / "out")
    lines = uftrace("replay", tmp_path / "out").splitlines()
    assert lines == [
        "# DURATION     TID     FUNCTION",
        "            [  4321] | main() {",
        "            [  4321] |   ns::Worker::run() {",
        "            [  4321] |     parse() {",
        lines[4],
        "   1.005 us [  4321] |     } /* parse */",
        "   1.010 us [  4321] |   } /* ns::Worker::run */",
        "   1.000 ms [  4321] |   lookup();",
        "   1.001 ms [  4321] | } /* main */",
    ]
    # An entry without a duration.
    assert re.fullmatch(r" +(0\.000 us)? +\[  4321\] \|       idle\(\);", lines[4])


def test_report_has_the_same_sums(tmp_path):
    makers = {tid: TreeMaker(tid, special=False) for tid in (4321, 4322)}
    for maker in makers.values():
        maker.grow(3000)
    trace = make_trace(tmp_path / "t", {tid: maker.tape.data for tid, maker in makers.items()})
    export(trace, tmp_path / "out")
    rows = {}
    for line in uftrace("report", tmp_path / "out", "-f", "total,self,call").splitlines()[2:]:
        total, total_unit, own, own_unit, calls, name = line.split(maxsplit=5)
        rows[name] = (_ns(total, total_unit), _ns(own, own_unit), int(calls))
    ours = function_statistics(trace)
    assert len(rows) == len(ours) == 6
    for each in ours:
        total_ns, own_ns, calls = rows[UFTRACE_NAMES[each.function_id]]
        assert calls == each.calls
        assert total_ns == pytest.approx(each.total_ns, rel=0.001)
        assert own_ns == pytest.approx(each.self_ns, rel=0.001)


def _ns(value: str, unit: str) -> float:
    return float(value) * {"us": 1e3, "ms": 1e6, "s": 1e9}[unit]


def test_graph_and_info_work_too(tmp_path):
    tape = Tape(0)
    for _ in range(3):
        tape.entry(1, 100).entry(3, 90).exit(3, 90).exit(1, 100)
    export(make_trace(tmp_path / "t", {4321: tape.data}), tmp_path / "out")
    graph = uftrace("graph", tmp_path / "out")
    assert re.search(r"\(3\) main", graph)
    assert re.search(r"\(3\) parse", graph)
    info = uftrace("info", tmp_path / "out")
    assert "/opt/app/app --serve 'a b'" in info
    assert re.search(r"number of tasks +: 1", info)
    chrome = uftrace("dump", tmp_path / "out", "--chrome")
    assert chrome.count('"parse"') == 6


def test_calls_left_by_longjmp_end_there(tmp_path):
    tape = Tape(0).entry(1, 100).entry(3, 90).entry(4, 80).exit(1, 100).entry(5, 100)
    export(make_trace(tmp_path / "t", {4321: tape.data}), tmp_path / "out")
    events = [(kind, name, depth) for _, _, kind, name, depth in dumped(tmp_path / "out")[4321]]
    assert events == [
        ("entry", "main", 0),
        ("entry", "parse", 1),
        ("entry", "lookup", 2),
        ("exit", "lookup", 2),
        ("exit", "parse", 1),
        ("exit", "main", 0),
        # Still open when the trace ended.
        ("entry", "store", 0),
    ]


def test_fibers_become_one_stack(tmp_path):
    main, fiber = 100, 100 + (1 << 21)
    tape = Tape(0).entry(1, main).entry(3, fiber).entry(4, main - 10).exit(4, main - 10)
    tape.entry(5, fiber - 10).exit(5, fiber - 10).exit(3, fiber).exit(1, main)
    result = export(make_trace(tmp_path / "t", {4321: tape.data}), tmp_path / "out")
    events = [(kind, name, depth) for _, _, kind, name, depth in dumped(tmp_path / "out")[4321]]
    assert events == [
        ("entry", "main", 0),
        ("entry", "parse", 1),
        ("exit", "parse", 1),
        ("entry", "lookup", 1),
        ("exit", "lookup", 1),
        ("entry", "parse", 1),
        ("entry", "store", 2),
        ("exit", "store", 2),
        ("exit", "parse", 1),
        ("exit", "main", 0),
    ]
    assert len(result.remarks) == 1
    assert "fibers" in result.remarks[0]


@pytest.mark.parametrize("seed", range(5))
def test_what_does_not_nest_is_still_well_formed(tmp_path, seed):
    # Two fibers of random calls, taking turns at random moments.
    turns = random.Random(seed)
    tape = Tape(0)
    stacks: dict[int, list[tuple[int, int]]] = {1 << 24: [], 1 << 26: []}
    for _ in range(2000):
        base, stack = turns.choice(list(stacks.items()))
        if stack and turns.random() < 0.5:
            function, key = stack.pop()
            tape.exit(function, key)
        else:
            stack.append((turns.randint(1, 5), base - len(stack) * 10))
            tape.entry(*stack[-1])
    export(make_trace(tmp_path / "t", {4321: tape.data}, piece=16 * 500), tmp_path / "out")
    open_calls: list[str] = []
    latest = 0
    for time, _, kind, name, depth in dumped(tmp_path / "out")[4321]:
        assert time >= latest
        latest = time
        if kind == "entry":
            assert depth == len(open_calls)
            open_calls.append(name)
        else:
            assert open_calls.pop() == name
            assert depth == len(open_calls)


def test_nesting_deeper_than_the_format_is_cut(tmp_path):
    tape = Tape(0)
    for level in range(1500):
        tape.entry(3, (1 << 30) - level)
    for level in reversed(range(1500)):
        tape.exit(3, (1 << 30) - level)
    result = export(make_trace(tmp_path / "t", {4321: tape.data}), tmp_path / "out")
    assert "476 calls nested deeper" in result.remarks[0]
    events = dumped(tmp_path / "out")[4321]
    assert len(events) == 2 * 1024
    assert max(depth for *_, depth in events) == 1023


def test_a_trace_without_calls_is_a_directory_all_the_same(tmp_path):
    result = export(make_trace(tmp_path / "t", {}), tmp_path / "out")
    assert result.calls == 0
    assert (tmp_path / "out" / "info").exists()


def test_a_directory_in_use_is_refused(tmp_path):
    trace = make_trace(tmp_path / "t", {})
    with pytest.raises(OutputError, match="not empty"):
        export(trace, tmp_path)


# -- where functions lie ----------------------------------------------------


def test_functions_of_one_name_in_one_module_stay_apart(tmp_path):
    twins = {
        1: TracedFunction(1, "init", "", "app", BASE + 0x1000),
        2: TracedFunction(2, "init", "", "app", BASE + 0x2000),
    }
    (module,) = place_functions(
        twins, [MappedModule("/app", "", BASE, BASE + 0x4000, BASE)], "/app"
    )
    assert module.symbols == {"init": 0x1000, "init@2000": 0x2000}


def test_modules_of_one_base_name_get_files_of_their_own():
    functions = {
        1: TracedFunction(1, "f", "", "lib.so", 0x1000),
        2: TracedFunction(2, "g", "", "lib.so", 0x5000),
    }
    modules = [
        MappedModule("/a/lib.so", "", 0x1000, 0x2000, 0),
        MappedModule("/b/lib.so", "", 0x5000, 0x6000, 0),
    ]
    placed = place_functions(functions, modules, "/a/app")
    assert [module.path for module in placed] == ["/a/lib.so", "/b/lib.so.2"]


def test_functions_without_a_module_get_an_address(tmp_path):
    lost = {9: TracedFunction(9, "jit_code", "", "?", 0xDEAD000)}
    placed = place_functions(lost, [MappedModule("/app", "", BASE, BASE + 0x1000, BASE)], "/app")
    assert {name for module in placed for name in module.symbols} == {"jit_code"}
    assert {module.path for module in placed} == {"/unknown", "/app"}


def test_the_fixture_covers_every_function():
    assert {each.function_id for each in FUNCTIONS} == set(UFTRACE_NAMES)
    assert RecordKind.ENTRY_ONLY
