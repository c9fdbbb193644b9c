"""A traced program that calls a tracepoint as fast as it can, and the agent's budget."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import AgentProcess, run_remote, run_remote_until, running_agent
from tests.e2e.support import Recorder, patch
from tests.support.architecture import variants_here
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import (
    LimitKind,
    PatchStatus,
    PatchWriter,
    RefusalReason,
    TracepointState,
)
from uftrace_remote.values import (
    EventBatch,
    Limits,
    PatchOptions,
    ProcessRef,
    RecordingOptions,
    Session,
    Throttle,
    Tracepoint,
)

OFF = Limits(cpu=0.0, calls_per_second=0.0)
# Full after some thousand calls.
SMALL = RecordingOptions(ring_bytes=64 << 10, ring_count=16)


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with running_agent(tmp_path_factory.mktemp("agent") / "state", "--budget", "5%") as agent:
        yield agent


@pytest.fixture
def client(budgeted: AgentProcess) -> Iterator[SyncAgentClient]:
    with budgeted.client() as connected:
        yield connected


@contextmanager
def storming(variant: str = "gcc-O2") -> Iterator[TargetProcess]:
    with TargetProcess(build("storm", variant)) as target:
        yield target
        if target.returncode is None:
            assert_text_unchanged(target.pid)
            assert_not_traced(target.pid)
            target.quit()


def by_name(client: SyncAgentClient, session_id: str) -> dict[str, Tracepoint]:
    return {each.patch.function.name: each for each in client.tracepoints(session_id)}


def session_of(client: SyncAgentClient, session_id: str) -> Session:
    (found,) = [each for each in client.sessions() if each.session_id == session_id]
    return found


def wait_throttled(client: SyncAgentClient, session_id: str, name: str = "hot") -> Throttle:
    def is_out() -> bool:
        return by_name(client, session_id)[name].state is TracepointState.THROTTLED

    wait_until(is_out, timeout=20)
    throttle = by_name(client, session_id)[name].throttle
    assert throttle is not None
    return throttle


class Notices:
    """What a stream says of throttled functions."""

    def __init__(self, client: SyncAgentClient, session_id: str) -> None:
        self.throttles: list[Throttle] = []
        self.batches = 0
        self._stream = client.stream(session_id)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        wait_until(lambda: self.batches)

    def _read(self) -> None:
        for batch in self._stream:
            self._take(batch)

    def _take(self, batch: EventBatch) -> None:
        self.throttles += batch.throttled
        self.batches += 1

    def finish(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def produced_meanwhile(client: SyncAgentClient, session_id: str, target: TargetProcess) -> int:
    """Records of twenty iterations: hundreds of `slow`, or a million of `hot`."""
    before = session_of(client, session_id).records_produced
    target.wait_iterations(20)
    return session_of(client, session_id).records_produced - before


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("rings", [None, SMALL], ids=["rings", "full-rings"])
@pytest.mark.parametrize("reader", [False, True], ids=["nobody-reads", "reader"])
def test_a_storm_is_unpatched_and_the_others_stay(
    budgeted: AgentProcess,
    client: SyncAgentClient,
    reader: bool,
    rings: RecordingOptions | None,
    threads: int,
) -> None:
    with ExitStack() as cleanup:
        # GIVEN a program whose tracepoints cost next to nothing
        target = cleanup.enter_context(storming())
        session_id = client.attach(ProcessRef(target.pid), recording=rings).session.session_id
        notices = Notices(client, session_id) if reader else None
        patch(client, session_id, ["hot", "slow"])
        target.wait_iterations(50)
        assert session_of(client, session_id).throttled == ()
        # WHEN it calls one of them as fast as it can
        target.command(f"storm {threads}")
        throttle = wait_throttled(client, session_id)
        # THEN that one is out, its bytes are the file's, and the other stays
        assert (throttle.function, throttle.limit) in (
            ("hot", LimitKind.CPU),
            ("hot", LimitKind.RATE),
        )
        assert throttle.calls_per_second > 1e5
        slow = by_name(client, session_id)["slow"]
        assert slow.state is TracepointState.ENABLED
        (difference,) = text_differences(target.pid)
        assert 0 <= difference.address - slow.patch.function.address < 16
        # and what is produced is that of the other alone, once the rings are read.
        wait_until(lambda: produced_meanwhile(client, session_id, target) < 10_000)
        # AND the stream says so, and `status`
        if notices is not None:
            wait_until(lambda: notices.throttles)
            assert [each.function for each in notices.throttles] == ["hot"]
        status = run_remote(budgeted, "status", "{}")
        assert f"session {session_id}: hot throttled: " in status.out
        assert "uftrace-remote budget" in status.out
        # AND it stays out
        result = client.patch(session_id, ["hot", "slow"])
        refused = {each.function.name: each for each in result.results}
        assert refused["hot"].refusal is RefusalReason.OVER_BUDGET
        assert refused["slow"].status is PatchStatus.ALREADY_ENABLED
        client.detach(session_id)
        if notices is not None:
            notices.finish()


def test_all_or_nothing_refuses_all_for_one_that_cost_too_much(client: SyncAgentClient) -> None:
    with storming() as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        patch(client, session_id, ["hot"])
        target.command("storm 2")
        wait_throttled(client, session_id)
        result = client.patch(session_id, ["hot", "slow"], PatchOptions(all_or_nothing=True))
        assert {each.function.name: each.status for each in result.results} == {
            "hot": PatchStatus.REFUSED,
            "slow": PatchStatus.NOT_ENABLED,
        }
        assert_text_unchanged(target.pid)
        client.detach(session_id)


def test_raised_by_name_it_may_be_patched_again(
    budgeted: AgentProcess, client: SyncAgentClient
) -> None:
    with storming() as target:
        where = f"{{}}:{target.pid}"
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        patch(client, session_id, ["hot", "warm", "slow"])
        target.command("storm 1")
        wait_throttled(client, session_id)
        wait_throttled(client, session_id, "warm")
        # WHEN its limits are raised
        said = run_remote(budgeted, "budget", where, "hot", "--cpu", "off", "--rate", "off")
        assert said.code == 0, said.err
        assert "1 function may be patched again" in said.out
        # THEN it stays out until it is patched,
        assert by_name(client, session_id)["hot"].state is TracepointState.THROTTLED
        assert session_of(client, session_id).throttled[0].raised
        # and then in, while the other one is refused.
        result = client.patch(session_id, ["hot", "warm"])
        results = {each.function.name: each for each in result.results}
        assert results["hot"].status is PatchStatus.ENABLED
        assert results["warm"].refusal is RefusalReason.OVER_BUDGET
        target.wait_iterations(100)
        hot = by_name(client, session_id)["hot"]
        assert (hot.state, hot.limits) == (TracepointState.ENABLED, OFF)
        # WHEN they are lowered again, it goes
        client.set_limits(session_id, Limits(cpu=0.01), ["hot"])
        assert wait_throttled(client, session_id).limit is LimitKind.CPU
        client.detach(session_id)
        # A new session knows nothing of it.
        session_id = client.attach(ProcessRef(target.pid), limits=OFF).session.session_id
        patch(client, session_id, ["hot", "warm"])
        target.wait_iterations(100)
        assert session_of(client, session_id).throttled == ()
        client.detach(session_id)


def test_limits_that_come_with_the_patch(client: SyncAgentClient) -> None:
    with storming() as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        patch(client, session_id, ["hot"], PatchOptions(limits=OFF))
        patch(client, session_id, ["warm"])
        target.command("storm 2")
        wait_throttled(client, session_id, "warm")
        assert by_name(client, session_id)["hot"].state is TracepointState.ENABLED
        client.detach(session_id)


def test_a_limit_of_calls_alone(tmp_path: Path) -> None:
    with (
        running_agent(tmp_path / "state", "--rate-limit", "20k") as agent,
        agent.client() as client,
        storming() as target,
    ):
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        patch(client, session_id, ["hot", "slow"], PatchOptions(entry_only=True))
        target.command("storm 1")
        throttle = wait_throttled(client, session_id)
        assert (throttle.limit, throttle.allowed) == (LimitKind.RATE, 20_000.0)
        client.detach(session_id)


@pytest.mark.parametrize("variant", variants_here("gcc-O2", "fentry", "pfe2", "cyg", "xray-bare"))
@pytest.mark.parametrize("writer", [PatchWriter.AUTO, PatchWriter.STOP])
def test_whatever_the_site_is_it_can_be_taken_out(
    client: SyncAgentClient, variant: str, writer: PatchWriter
) -> None:
    with storming(variant) as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        patch(client, session_id, ["hot", "slow"], PatchOptions(writer=writer))
        target.command("storm 8")
        wait_throttled(client, session_id)
        assert by_name(client, session_id)["slow"].state is TracepointState.ENABLED
        client.detach(session_id)


def test_every_record_is_accounted_for(client: SyncAgentClient) -> None:
    with storming() as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        recorder = Recorder(client, session_id)
        patch(client, session_id, ["hot", "slow"])
        target.command("storm 2")
        wait_throttled(client, session_id)
        target.wait_iterations(20)
        report = client.detach(session_id)
        seen = recorder.finish()
        assert seen.records + seen.lost_total == report.records_produced
        # A call that was under way when it was taken out still has its exit.
        assert not seen.lost_total or seen.entries("hot")
        assert abs(seen.entries("slow") - seen.exits("slow")) <= 8


def test_h86_the_next_agent_does_not_forget(tmp_path: Path) -> None:
    with storming() as target:
        with running_agent(tmp_path / "state", "--budget", "7%") as agent:
            with agent.client() as client:
                session_id = client.attach(ProcessRef(target.pid)).session.session_id
                patch(client, session_id, ["hot", "warm", "slow"], PatchOptions())
                client.set_limits(session_id, OFF, ["warm"])
                target.command("storm 1")
                before = wait_throttled(client, session_id)
            agent.kill()
        # GIVEN an agent that has another budget
        with (
            running_agent(tmp_path / "state") as agent,
            agent.client() as client,
        ):
            # THEN what was out is out, for the same reason,
            tracepoints = by_name(client, session_id)
            assert tracepoints["hot"].throttle == before
            assert client.patch(session_id, ["hot"]).results[0].refusal is (
                RefusalReason.OVER_BUDGET
            )
            # what was allowed is allowed, and the limits are the session's.
            assert tracepoints["warm"].limits == OFF
            assert tracepoints["warm"].state is TracepointState.ENABLED
            limits = session_of(client, session_id).limits
            assert limits == Limits(cpu=pytest.approx(0.07), calls_per_second=1e6)
            # What is patched is watched from the beginning.
            client.set_limits(session_id, Limits(cpu=0.01), ["warm"])
            wait_throttled(client, session_id, "warm")
            client.detach(session_id)


def test_live_says_what_was_taken_out(budgeted: AgentProcess) -> None:
    with storming() as target:
        target.command("storm 1")
        said = run_remote_until(
            "# hot taken out, it cost too much: ", budgeted, "live", f"{{}}:{target.pid}", "hot"
        )
        assert said.code == 0
        assert "# hot taken out, it cost too much: " in said.err
        assert f"uftrace-remote budget {budgeted.address}:{target.pid} 'hot'" in said.err


def test_record_says_it_too_and_its_account_is_exact(
    budgeted: AgentProcess, tmp_path: Path
) -> None:
    with storming() as target:
        target.command("storm 1")
        said = run_remote_until(
            "# hot taken out, it cost too much: ",
            budgeted,
            *("record", f"{{}}:{target.pid}", "hot", "-o", str(tmp_path / "t"), "--json"),
        )
        assert said.code == 0, said.err
        assert "# hot taken out, it cost too much: " in said.err
        summary = json.loads(said.out)
        assert summary["exact"], summary


def test_memory_has_a_bound_that_is_shown(budgeted: AgentProcess, client: SyncAgentClient) -> None:
    with storming() as target:
        session_id = client.attach(ProcessRef(target.pid), recording=SMALL).session.session_id
        patch(client, session_id, ["hot"])
        session = session_of(client, session_id)
        assert 0 < session.annex_bytes < session.annex_limit_bytes
        assert " MiB of " in run_remote(budgeted, "status", "{}").out
        assert client.info().probe_cost.measured
        client.detach(session_id)
