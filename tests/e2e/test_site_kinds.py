"""One program built in every way that leaves sites for tracers: always the same trace."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.e2e.conftest import Remote
from tests.e2e.support import KIND_ENTRY, KIND_EXIT, Recording, patch, recording
from tests.support.architecture import here
from tests.support.target_process import TargetProcess
from tests.support.text_compare import (
    assert_not_traced,
    assert_text_unchanged,
    text_differences,
)
from tests.support.waiting import SLOWNESS
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import PatchForm, PatchStatus, PatchWriter, SiteKind
from uftrace_remote.values import (
    FunctionInfo,
    FunctionResult,
    PatchOptions,
    ProcessRef,
    RecordingOptions,
)

FUNCTIONS = 10
ROUNDS = 3


@dataclass(frozen=True)
class Way:
    """A way to build, and what is expected of its sites.

    Attributes:
        kind: What the compiler left, as the agent names it.
        form: What most functions' sites become.
        word: What `functions --explain` says of them.
        program: `kinds`, or with its functions in a shared object.
    """

    variant: str
    kind: SiteKind
    form: PatchForm
    word: str
    program: str = "kinds"


X86_WAYS = [
    Way("pg", SiteKind.MCOUNT_CALL, PatchForm.CALL, "mcount"),
    Way("fentry", SiteKind.FENTRY_CALL, PatchForm.CALL, "fentry"),
    Way("fentry-nop", SiteKind.FENTRY_NOP, PatchForm.NOP, "fentry nop"),
    Way("cyg-O0", SiteKind.PROFILE_CALLS, PatchForm.CALL, "cyg_profile"),
    Way("cyg", SiteKind.PROFILE_CALLS, PatchForm.CALL, "cyg_profile"),
    Way("clang-cyg", SiteKind.PROFILE_CALLS, PatchForm.CALL, "cyg_profile"),
    # gcc leaves nops of one byte each: five instructions, of which one may change.
    Way("pfe5", SiteKind.PATCHABLE_NOPS, PatchForm.PUN, "nops"),
    Way("pfe16-8", SiteKind.PATCHABLE_NOPS, PatchForm.PUN, "nops"),
    Way("clang-pfe5", SiteKind.PATCHABLE_NOPS, PatchForm.NOP, "nops"),
    Way("clang-pfe16-8", SiteKind.PATCHABLE_NOPS, PatchForm.NEAR, "nops"),
    Way("xray", SiteKind.SLEDS, PatchForm.SLED, "xray"),
    Way("xray-nopie", SiteKind.SLEDS, PatchForm.SLED, "xray"),
    Way("xray-cet", SiteKind.SLEDS, PatchForm.SLED, "xray"),
    Way("xray-bare", SiteKind.SLEDS, PatchForm.SLED, "xray"),
    Way("xray-bare", SiteKind.SLEDS, PatchForm.SLED, "xray", "kinds_so"),
    Way("gcc-O2", SiteKind.PLAIN, PatchForm.PUN, "-"),
    Way("gcc-O2", SiteKind.PLAIN, PatchForm.PUN, "-", "kinds_so"),
]
AARCH64_WAYS = [
    Way("pg", SiteKind.MCOUNT_CALL, PatchForm.CALL, "mcount"),
    Way("pfe2", SiteKind.PATCHABLE_NOPS, PatchForm.NOP, "nops"),
    Way("pfe16-8", SiteKind.PATCHABLE_NOPS, PatchForm.NOP, "nops"),
    Way("clang-pfe2", SiteKind.PATCHABLE_NOPS, PatchForm.NOP, "nops"),
    Way("bti-pfe2", SiteKind.PATCHABLE_NOPS, PatchForm.NOP, "nops"),
    Way("xray", SiteKind.SLEDS, PatchForm.SLED, "xray"),
    Way("xray-nopie", SiteKind.SLEDS, PatchForm.SLED, "xray"),
    Way("xray-bare", SiteKind.SLEDS, PatchForm.SLED, "xray"),
    Way("xray-bare", SiteKind.SLEDS, PatchForm.SLED, "xray", "kinds_so"),
    # What calls functions of a profiler is like any other.
    Way("cyg", SiteKind.PLAIN, PatchForm.WORD, "-"),
    Way("gcc-O2", SiteKind.PLAIN, PatchForm.WORD, "-"),
    Way("gcc-O2", SiteKind.PLAIN, PatchForm.WORD, "-", "kinds_so"),
    Way("bti", SiteKind.PLAIN, PatchForm.WORD, "-"),
    Way("clang-bti", SiteKind.PLAIN, PatchForm.WORD, "-"),
    Way("pac", SiteKind.PLAIN, PatchForm.WORD, "-"),
]
WAYS = here(x86_64=X86_WAYS, aarch64=AARCH64_WAYS)
NAMES = [f"{way.program}-{way.variant}" for way in WAYS]


@dataclass
class Call:
    """A call and the calls inside it."""

    name: str
    inside: list[Call] = field(default_factory=list)

    def lines(self, depth: int = 0) -> Iterator[str]:
        yield "  " * depth + self.name
        for call in self.inside:
            yield from call.lines(depth + 1)


# -- what the program does: tests/targets/kinds_tree.c ------------------------------------


def leaf() -> Call:
    return Call("kind_leaf")


def exits(x: int) -> Call:
    return Call("kind_exits", [leaf() for _ in range((0, 1, 1, 2)[x % 4])])


def recursive(n: int) -> Call:
    return Call("kind_recursive", [recursive(n - 1)] if n else [])


def left(n: int, name: str = "kind_left") -> Call:
    other = "kind_right" if name == "kind_left" else "kind_left"
    return Call(name, [left(n - 1, other)] if n else [])


def root(x: int) -> Call:
    return Call(
        "kind_root",
        [
            *(exits(x + n) for n in range(4)),
            recursive(5),
            left(3),
            Call("kind_loop", [leaf() for _ in range(4)]),
            *(Call("kind_void", [leaf()] if (x + n) % 2 == 0 else []) for n in (0, 1)),
            Call("kind_many", [leaf()]),
            Call("kind_float", [leaf()]),
        ],
    )


EXPECTED = [line for x in range(ROUNDS) for line in root(x).lines()]


# -- what was recorded ---------------------------------------------------------------------


def recorded_calls(seen: Recording, tid: int) -> list[Call]:
    """The thread's calls, by nesting; an exit must be that of the innermost call."""
    rows = np.frombuffer(b"".join(seen.by_thread[tid]), "<u8").reshape(-1, 2)
    assert (np.diff(rows[:, 0].astype(np.int64)) >= 0).all(), "ticks rise"
    top = Call("")
    open_calls: list[tuple[Call, int]] = [(top, 1 << 60)]
    for word in rows[:, 1].tolist():
        kind, name, key = word >> 1 & 7, seen.names[word >> 4 & 0xFFFFFF], word >> 28
        call, frame = open_calls[-1]
        if kind == KIND_ENTRY:
            assert key < frame, "a callee's frame lies below its caller's"
            entered = Call(name)
            call.inside.append(entered)
            open_calls.append((entered, key))
        else:
            assert (kind, name, key) == (KIND_EXIT, call.name, frame)
            open_calls.pop()
    assert len(open_calls) == 1, "every call has ended"
    return top.inside


@pytest.fixture(params=WAYS, ids=NAMES)
def way(request: pytest.FixtureRequest) -> Way:
    assert isinstance(request.param, Way)
    return request.param


def assert_expected(way: Way, functions: Sequence[FunctionResult | FunctionInfo]) -> None:
    """Most functions have the kind and the form of the way, or, where one byte is enough
    to make a jump of what is there, that: then nobody needs to be stopped."""
    kinds = Counter(each.kind for each in functions)
    assert kinds.most_common(1)[0][0] is way.kind, kinds
    forms = Counter((each.form, each.writer) for each in functions)
    (form, writer), _ = forms.most_common(1)[0]
    assert form is way.form or (form, writer) == (PatchForm.PUN, PatchWriter.BYTE), forms


NAMES_OF_FUNCTIONS = sorted({line.strip() for line in EXPECTED})


def patterns(way: Way) -> list[str]:
    # One by one: the shared object has stubs with such names too.
    module = "kinds_tree.so!" if way.program == "kinds_so" else ""
    return [f"{module}{name}" for name in NAMES_OF_FUNCTIONS]


@pytest.mark.parametrize("writer", [PatchWriter.AUTO, PatchWriter.STOP], ids=["auto", "stop"])
def test_the_call_tree_is_the_same_for_every_build(
    client: SyncAgentClient, way: Way, writer: PatchWriter
) -> None:
    # GIVEN the program, built in this way
    with TargetProcess(build(way.program, way.variant)) as target:
        target.pause()
        with recording(client, target.pid, keep=True) as (session_id, recorder):
            # WHEN its functions are traced, entry and exit
            result = patch(client, session_id, patterns(way), PatchOptions(writer=writer))
            assert target.command(f"tree {ROUNDS}") == f"tree done {ROUNDS}"
            client.detach(session_id)
        seen = recorder.finish()
        # THEN all are, most of them by the form that suits what the compiler left
        assert [r.status for r in result.results] == [PatchStatus.ENABLED] * FUNCTIONS
        assert_expected(way, result.results)
        # AND the calls are those of the program, each inside its caller
        assert seen.lost_total == 0
        calls = recorded_calls(seen, target.pid)
        assert [line for call in calls for line in call.lines()] == EXPECTED
        assert_text_unchanged(target.pid)
        target.resume()
        target.quit()


def test_the_sites_are_named_before_anything_is_patched(
    client: SyncAgentClient, remote: Remote, way: Way
) -> None:
    with TargetProcess(build(way.program, way.variant)) as target:
        explained = list(client.functions(ProcessRef(target.pid), patterns(way), explain=True))
        assert len(explained) == FUNCTIONS
        assert_expected(way, explained)
        shown = remote("functions", f"{{}}:{target.pid}", *patterns(way), "--explain")
        rows = [line for line in shown.out.splitlines() if "kind_" in line]
        named = [line for line in rows if f" {way.word} " in f" {' '.join(line.split())} "]
        assert len(named) > FUNCTIONS // 2, shown.out
        assert_text_unchanged(target.pid)
        target.quit()


def test_patched_and_unpatched_again_and_again_while_it_runs(
    client: SyncAgentClient, way: Way
) -> None:
    with TargetProcess(build(way.program, way.variant)) as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        for round_ in range(10):
            writer = PatchWriter.STOP if round_ % 4 == 3 else PatchWriter.AUTO
            patch(client, session_id, patterns(way), PatchOptions(writer=writer))
            assert text_differences(target.pid)
            target.wait_iterations(20)
            result = client.unpatch(session_id)
            assert {r.status for r in result.results} == {PatchStatus.DISABLED}
            assert_text_unchanged(target.pid)
        patch(client, session_id, patterns(way))
        client.detach(session_id)
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.wait_iterations(10)
        target.quit()


def test_sleds_change_without_a_stop(client: SyncAgentClient) -> None:
    """One byte each: no thread stands still for any of them."""
    with TargetProcess(build("kinds", "xray")) as target:
        with recording(client, target.pid) as (session_id, recorder):
            result = patch(client, session_id, ["kind_*"])
            assert {r.writer for r in result.results} == {PatchWriter.BYTE}
            assert result.writer_detail == ""
            assert client.unpatch(session_id).pauses == {}
            assert_text_unchanged(target.pid)
            client.detach(session_id)
        recorder.finish()
        target.quit()


# -- XRay's own: tail calls and events ------------------------------------------------------


def test_h45_the_tail_sled_ends_the_caller(client: SyncAgentClient) -> None:
    """tail_first jumps to tail_middle, which jumps to tail_last. An XRay build has a sled
    in front of each jump: it ends the caller there, so that its callee comes after it,
    as a sibling. (In all other builds the callee is marked as a tail call inside.)"""
    with TargetProcess(build("xray_events", "xray")) as target:
        target.pause()
        names = ["tail_first", "tail_middle", "tail_last"]
        with recording(client, target.pid, keep=True) as (session_id, recorder):
            patch(client, session_id, names)
            target.resume()
            target.wait_iterations(200)
            target.pause()
            client.detach(session_id)
        seen = recorder.finish()
        chains = 0
        for tid in seen.by_thread:
            calls = [call.name for call in recorded_calls(seen, tid)]
            assert set(calls) <= set(names)
            for at, name in enumerate(calls):
                if name == "tail_first":
                    assert calls[at : at + 3] == names
                    chains += 1
        assert chains > 100
        assert_text_unchanged(target.pid)
        target.resume()
        target.quit()


class EventCounter:
    """Counts a session's records by what the stream calls them, until it ends."""

    def __init__(self, client: SyncAgentClient, session_id: str) -> None:
        self.counts: Counter[str] = Counter()
        self.lost = 0
        self._stream = client.stream(session_id, include_buffered=True)
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._first.wait(20 * SLOWNESS)

    def _run(self) -> None:
        names: dict[int, str] = {}
        for batch in self._stream:
            names |= {each.function_id: each.name for each in batch.functions}
            for thread in batch.threads:
                words = np.frombuffer(thread.records, "<u8")[1::2]
                ids = words >> np.uint64(4) & np.uint64(0xFFFFFF)
                ids, counts = np.unique(ids, return_counts=True)
                for function_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
                    self.counts[names[function_id]] += count
            self.lost = sum(loss.records for loss in batch.losses)
            self._first.set()

    def finish(self) -> Counter[str]:
        self._thread.join(60 * SLOWNESS)
        assert not self._thread.is_alive()
        return self.counts


# clang makes no sleds of events for AArch64.
@pytest.mark.parametrize(
    ("program", "variant"),
    here(
        x86_64=[
            *(("xray_events", v) for v in ("xray", "xray-bare", "xray-nopie", "xray-cet")),
            *(("xray_legacy", v) for v in ("gcc-O2", "nopie", "static", "static-pie")),
        ],
        aarch64=[],
    ),
)
def test_every_event_is_recorded(client: SyncAgentClient, program: str, variant: str) -> None:
    """Custom and typed events are functions of their own in the records; maps of sleds of
    the versions 0, 1 and 2."""
    with TargetProcess(build(program, variant)) as target:
        before = target.pause()
        rings = RecordingOptions(ring_bytes=16 << 20, ring_count=8)
        session_id = client.attach(ProcessRef(target.pid), recording=rings).session.session_id
        events = EventCounter(client, session_id)
        chosen = ["event_*"]
        if program == "xray_legacy":
            chosen = ["legacy_custom0", "legacy_custom1", "legacy_typed", "legacy_live"]
        patch(client, session_id, chosen)
        after = before
        while after["iterations"] < before["iterations"] + 500:
            target.resume()
            after = target.pause()
        client.detach(session_id)
        counts = events.finish()
        assert events.lost == 0, "these are few records"
        for kind in ("custom", "typed"):
            recorded = [n for name, n in counts.items() if name.endswith(f" [{kind} event]")]
            assert sum(recorded) == after[f"{kind}_events"] - before[f"{kind}_events"] > 500
        assert_text_unchanged(target.pid)
        target.resume()
        target.quit()
