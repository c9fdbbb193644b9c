"""What is recorded against what happened: exact counts, order, nesting, values."""

from __future__ import annotations

import numpy as np
import pytest

from tests.e2e.support import KIND_ENTRY, KIND_EXIT, Recorder, patch, recording
from tests.support.architecture import here
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_text_unchanged
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import LossStage, PatchForm, PatchStatus, PatchWriter
from uftrace_remote.values import PatchOptions, ProcessRef, RecordingOptions


@pytest.mark.parametrize(
    ("variant", "form"),
    [
        ("gcc-O2", None),
        ("gcc-O0", None),
        ("clang-O2", None),
        ("pg", PatchForm.CALL),
        *here(
            x86_64=[
                ("fentry", PatchForm.CALL),
                ("fentry-nop", PatchForm.NOP),
                ("clang-pfe5", PatchForm.NOP),
                ("pfe5", None),
            ],
            aarch64=[
                ("pfe2", PatchForm.NOP),
                ("clang-pfe2", PatchForm.NOP),
                ("bti", PatchForm.WORD),
                ("bti-pfe2", PatchForm.NOP),
                ("pac", PatchForm.WORD),
            ],
        ),
        ("cyg", None),
        ("musl", None),
        ("static", None),
    ],
)
def test_every_call_is_recorded_once(
    client: SyncAgentClient, variant: str, form: PatchForm | None
) -> None:
    """Produced = delivered + lost, against the program's own count."""
    with TargetProcess(build("busy8", variant)) as target:
        target.pause()
        with recording(client, target.pid) as (session_id, recorder):
            result = patch(client, session_id, ["leaf"], PatchOptions(writer=PatchWriter.STOP))
            target.burst(10_000)
            client.detach(session_id)
        seen = recorder.finish()
        assert form in (None, result.results[0].form)
        assert seen.entries("leaf") == 10_000
        assert seen.exits("leaf") == 10_000
        assert seen.lost_total == 0
        target.resume()
        target.quit()


def test_concurrent_threads_lose_nothing_and_count_exactly(client: SyncAgentClient) -> None:
    """Eight busy threads, paused before and after: each call of each function is there
    or counted as lost."""
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        before = target.pause()
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["chain_a", "chain_b", "chain_c"])
            target.resume()
            target.wait_iterations(2000)
            after = target.pause()
            client.detach(session_id)
        seen = recorder.finish()
        calls = sum(after[f"calls_chain_{x}"] - before[f"calls_chain_{x}"] for x in "abc")
        assert seen.records + seen.lost_total == 2 * calls
        target.resume()
        target.quit()


def test_h88_a_full_ring_drops_counts_and_never_blocks(client: SyncAgentClient) -> None:
    """The smallest ring, and nobody reads: the program goes on, every loss is counted."""
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        target.pause()
        session_id = client.attach(
            ProcessRef(target.pid), recording=RecordingOptions(ring_bytes=65536, ring_count=4)
        ).session.session_id
        patch(client, session_id, ["leaf"])
        target.burst(100_000)
        (session,) = [s for s in client.sessions() if s.session_id == session_id]
        assert session.records_lost > 200_000 - 65536 // 16 - 512
        recorder = Recorder(client, session_id)
        report = client.detach(session_id)
        seen = recorder.finish()
        assert seen.records + report.records_lost == 200_000
        target.resume()
        target.quit()


def test_threads_beyond_the_rings_share_one(client: SyncAgentClient) -> None:
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        before = target.pause()
        rings = RecordingOptions(ring_bytes=1 << 20, ring_count=2)
        with recording(client, target.pid, rings) as (session_id, recorder):
            patch(client, session_id, ["chain_c"])
            target.resume()
            target.wait_iterations(500)
            after = target.pause()
            client.detach(session_id)
        seen = recorder.finish()
        calls = after["calls_chain_c"] - before["calls_chain_c"]
        assert seen.records + seen.lost_total == 2 * calls
        assert LossStage.STREAM not in {stage for stage, _ in seen.lost}
        target.resume()
        target.quit()


def test_h95_rings_that_change_hands_all_the_time_lose_nothing_uncounted(
    client: SyncAgentClient,
) -> None:
    """Thousands of short threads, six rings: each record is of the thread that wrote it, or
    is counted as lost."""
    with TargetProcess(build("threads_churn", "gcc-O2")) as target:
        before = target.pause()
        rings = RecordingOptions(ring_bytes=1 << 20, ring_count=6)
        with recording(client, target.pid, rings, keep=True) as (session_id, recorder):
            patch(client, session_id, ["short_life", "short_recursion"])
            target.resume()
            target.wait_iterations(3000)
            after = target.pause()
            client.detach(session_id)
        seen = recorder.finish()
        lives = after["calls_short_life"] - before["calls_short_life"]
        calls = after["calls_short_recursion"] - before["calls_short_recursion"]
        assert calls == 11 * lives > 10_000
        # Who ends by pthread_exit leaves no exit of its own.
        entries = sum(seen.entries(name) for name in ("short_life", "short_recursion"))
        assert entries + seen.lost_total >= calls + lives
        assert seen.lost_total or entries == calls + lives
        for parts in seen.by_thread.values():
            words = np.frombuffer(b"".join(parts), "<u8")[1::2]
            recursion = [
                name == "short_recursion"
                for name in (seen.names[word >> 4 & 0xFFFFFF] for word in words.tolist())
            ]
            entered = (words >> np.uint64(1) & np.uint64(7)) == KIND_ENTRY
            depth = np.cumsum(np.where(recursion, np.where(entered, 1, -1), 0))
            assert seen.lost_total or ((depth >= 0) & (depth <= 11)).all()
        target.resume()
        target.quit()


def test_nesting_and_order_are_those_of_the_program(client: SyncAgentClient) -> None:
    """chain_a calls chain_b calls chain_c: ticks rise, and frames nest by stack pointer."""
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        target.pause()
        # A record that is lost would break the pattern: rings that do not fill.
        rings = RecordingOptions(ring_bytes=1 << 26, ring_count=16)
        with recording(client, target.pid, rings, keep=True) as (session_id, recorder):
            patch(client, session_id, ["chain_a", "chain_b", "chain_c"])
            target.resume()
            target.wait_iterations(20)
            target.pause()
            client.detach(session_id)
        seen = recorder.finish()
        assert seen.lost_total == 0
        checked = 0
        for parts in seen.by_thread.values():
            rows = np.frombuffer(b"".join(parts), "<u8").reshape(-1, 2)
            assert (np.diff(rows[:, 0].astype(np.int64)) >= 0).all()
            names = [seen.names[word >> 4 & 0xFFFFFF] for word in rows[:, 1].tolist()]
            kinds = (rows[:, 1] >> np.uint64(1) & np.uint64(7)).tolist()
            keys = (rows[:, 1] >> np.uint64(28)).tolist()
            for start in range(len(rows) - 5):
                if names[start] == "chain_a" and kinds[start] == KIND_ENTRY:
                    window = slice(start, start + 6)
                    assert names[window] == [
                        "chain_a", "chain_b", "chain_c", "chain_c", "chain_b", "chain_a",
                    ]  # fmt: skip
                    assert kinds[window] == [KIND_ENTRY] * 3 + [KIND_EXIT] * 3
                    assert keys[start] > keys[start + 1] > keys[start + 2]
                    assert keys[window] == keys[window][::-1]
                    checked += 1
        assert checked > 100
        target.resume()
        target.quit()


def test_h45_tail_calls_are_marked_and_do_not_desynchronise(client: SyncAgentClient) -> None:
    """tail_even and tail_odd jump to each other, a million deep at times and 20 deep else: one
    return for all."""
    with TargetProcess(build("shapes", "gcc-O2")) as target:
        target.pause()
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["tail_even", "tail_odd"])
            target.resume()
            target.wait_iterations(3)
            target.pause()
            client.detach(session_id)
        seen = recorder.finish()
        tails = seen.counts["tail_even", 4] + seen.counts["tail_odd", 4]
        exits = seen.exits("tail_even") + seen.exits("tail_odd")
        assert tails >= 20 * exits > 0 or seen.lost_total
        assert exits > 0
        target.resume()
        target.quit()


def test_patching_and_unpatching_again_and_again_under_load(client: SyncAgentClient) -> None:
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        with recording(client, target.pid) as (session_id, recorder):
            for round_ in range(30):
                writer = PatchWriter.STOP if round_ % 2 else PatchWriter.AUTO
                patch(client, session_id, ["chain_*", "fp_*"], PatchOptions(writer=writer))
                result = client.unpatch(session_id)
                assert {r.status for r in result.results} == {PatchStatus.DISABLED}
                # A C program: no unwinder stays hooked while the session lasts.
                assert_text_unchanged(target.pid)
            client.detach(session_id)
        recorder.finish()
        assert_text_unchanged(target.pid)
        target.quit()
