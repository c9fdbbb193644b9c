"""Whatever goes wrong, the target goes on, correct, and its user learns why."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import AgentProcess, Remote, run_remote, running_agent
from tests.e2e.support import Recorder, patch, recording
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_remote import (
    ConflictError,
    NoSuchFunctionError,
    NoSuchProcessError,
    SyncAgentClient,
    UnsupportedTargetError,
    UsageError,
)
from uftrace_remote.enums import EndReason, PatchStatus, PatchWriter, RefusalReason
from uftrace_remote.errors import StreamBrokenError, UftraceError
from uftrace_remote.values import PatchOptions, ProcessRef


@pytest.fixture
def busy() -> Iterator[TargetProcess]:
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        yield target


# -- the agent ends -------------------------------------------------------------


def test_sigterm_restores_every_byte(tmp_path: Path, busy: TargetProcess) -> None:
    with running_agent(tmp_path / "state") as agent, agent.client() as client:
        session = client.attach(ProcessRef(busy.pid)).session
        patch(client, session.session_id, ["*"])
        assert text_differences(busy.pid)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(30) == 0
    assert_text_unchanged(busy.pid)
    assert_not_traced(busy.pid)
    busy.quit()


@pytest.mark.parametrize("program", ["busy8", "exceptions", "fibers"])
def test_h86_killed_agent_leaves_a_living_target_and_the_next_one_takes_it_over(
    tmp_path: Path, program: str
) -> None:
    with TargetProcess(build(program, "gcc-O2")) as target:
        # GIVEN a target with all functions patched, and no agent any more
        with running_agent(tmp_path / "first") as agent, agent.client() as client:
            session = client.attach(ProcessRef(target.pid)).session
            before = patch(client, session.session_id, ["*"])
            agent.kill()
        assert_not_traced(target.pid)
        target.wait_iterations(20)
        assert text_differences(target.pid)
        # WHEN another agent is started
        with running_agent(tmp_path / "second") as agent, agent.client() as client:
            # THEN it finds the journal, and goes on with all that it names
            attached = client.attach(ProcessRef(target.pid))
            assert attached.session.session_id == session.session_id
            enabled = len(client.tracepoints(session.session_id))
            assert enabled == before.enabled_count
            recorder = Recorder(client, session.session_id)
            target.wait_iterations(20)
            # and can set it back, and patch it again
            client.unpatch(session.session_id)
            result = patch(client, session.session_id, ["*"])
            assert result.enabled_count == enabled
            target.wait_iterations(20)
            client.detach(session.session_id)
            assert recorder.finish().records > 0
        assert_text_unchanged(target.pid)
        target.quit()


def test_h85_one_process_has_one_agent(
    tmp_path: Path, client: SyncAgentClient, busy: TargetProcess
) -> None:
    session = client.attach(ProcessRef(busy.pid)).session
    with running_agent(tmp_path / "other") as other, other.client() as second:
        with pytest.raises(ConflictError) as caught:
            second.attach(ProcessRef(busy.pid))
        assert caught.value.reason == "HELD_BY_ANOTHER_AGENT"
        client.detach(session.session_id)
        second.detach(second.attach(ProcessRef(busy.pid)).session.session_id)
    assert_text_unchanged(busy.pid)
    busy.quit()


def test_agent_gone_mid_stream(tmp_path: Path, busy: TargetProcess) -> None:
    with running_agent(tmp_path / "state") as agent, agent.client() as client:
        session = client.attach(ProcessRef(busy.pid)).session
        patch(client, session.session_id, ["leaf"])
        stream = client.stream(session.session_id, reconnect_seconds=0.5)
        next(stream)
        agent.kill()
        with pytest.raises(StreamBrokenError):
            for _ in stream:
                pass
    assert_not_traced(busy.pid)
    busy.quit()


# -- the target ends ------------------------------------------------------------


@pytest.mark.parametrize(("command", "signal_number"), [("crash", 11), ("abort", 6), ("kill", 9)])
def test_records_survive_the_targets_crash(
    client: SyncAgentClient, command: str, signal_number: int
) -> None:
    with TargetProcess(build("crash", "gcc-O2")) as target:
        target.pause()
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        recorder = Recorder(client, session_id)
        patch(client, session_id, ["leaf"])
        target.send(f"{command} 1000")
        target.wait_exit()
        seen = recorder.finish()
        assert seen.entries("leaf") == 1000
        assert seen.end is EndReason.PROCESS_EXITED
        assert seen.end_detail in (f"killed by signal {signal_number}", "exited")
        wait_until(lambda: not client.sessions() or session_id not in _ids(client))


def test_h63_exec_ends_the_session(client: SyncAgentClient) -> None:
    with TargetProcess(build("exec", "gcc-O2")) as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        recorder = Recorder(client, session_id)
        patch(client, session_id, ["*"])
        target.send("exec")
        target.wait_ready()
        seen = recorder.finish()
        assert seen.end is EndReason.PROCESS_EXECUTED
        assert_text_unchanged(target.pid)
        with recording(client, target.pid) as (second, again):
            patch(client, second, ["*"])
            client.detach(second)
        again.finish()
        target.quit()


def test_h61_forked_child_runs_on_and_can_be_attached(client: SyncAgentClient) -> None:
    with TargetProcess(build("forker", "gcc-O2")) as target:
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["*"])
            child = int(target.command("hold 100").split()[-1])
            attached = client.attach(ProcessRef(child))
            assert attached.restored_sites > 0
            assert_text_unchanged(child)
            client.detach(attached.session.session_id)
            target.command("release")
            client.detach(session_id)
        recorder.finish()
        target.quit()


def _ids(client: SyncAgentClient) -> set[str]:
    return {session.session_id for session in client.sessions()}


# -- bad input ------------------------------------------------------------------


def test_dead_pid(client: SyncAgentClient, busy: TargetProcess) -> None:
    with pytest.raises(NoSuchProcessError):
        client.attach(ProcessRef(2**22 - 1))
    with pytest.raises(NoSuchProcessError) as caught:
        client.attach(ProcessRef(busy.pid, start_time_ticks=1))
    assert caught.value.reason == "PID_REUSED"


def test_no_such_function_suggests_near_names(client: SyncAgentClient, busy: TargetProcess) -> None:
    session_id = client.attach(ProcessRef(busy.pid)).session.session_id
    with pytest.raises(NoSuchFunctionError) as caught:
        client.patch(session_id, ["chain_z"])
    assert "chain_a" in caught.value.hint
    with pytest.raises(UsageError):
        client.patch(session_id, ["re:("])
    with pytest.raises(NoSuchFunctionError):
        client.patch(session_id, ["nosuchlib!*"])
    assert_text_unchanged(busy.pid)
    client.detach(session_id)
    busy.quit()


def test_all_or_nothing_changes_nothing(client: SyncAgentClient, busy: TargetProcess) -> None:
    session_id = client.attach(ProcessRef(busy.pid)).session.session_id
    result = client.patch(session_id, ["*"], PatchOptions(all_or_nothing=True))
    assert result.enabled_count == 0
    assert any(r.refusal is RefusalReason.PLT_STUB for r in result.results)
    assert_text_unchanged(busy.pid)
    client.detach(session_id)
    busy.quit()


def test_dry_run_changes_nothing_and_tells_the_plan(
    client: SyncAgentClient, busy: TargetProcess
) -> None:
    session_id = client.attach(ProcessRef(busy.pid)).session.session_id
    result = client.patch(session_id, ["chain_*"], PatchOptions(dry_run=True))
    assert {r.status for r in result.results} == {PatchStatus.NOT_ENABLED}
    assert all(r.form for r in result.results)
    assert_text_unchanged(busy.pid)
    patch(client, session_id, ["chain_*"])
    client.detach(session_id)
    busy.quit()


def test_two_clients_patch_the_same_function(
    agent: AgentProcess, client: SyncAgentClient, busy: TargetProcess
) -> None:
    with agent.client() as second:
        first_id = client.attach(ProcessRef(busy.pid), "first").session.session_id
        joined = second.attach(ProcessRef(busy.pid), "second")
        assert joined.session.session_id == first_id
        patch(client, first_id, ["leaf"])
        again = second.patch(first_id, ["leaf"])
        assert [r.status for r in again.results] == [PatchStatus.ALREADY_ENABLED]
        client.detach(first_id)
    assert_text_unchanged(busy.pid)
    busy.quit()


def test_h21_a_foreign_patch_is_left_alone(client: SyncAgentClient, busy: TargetProcess) -> None:
    """Somebody (a debugger) has put a breakpoint on the function."""
    (function,) = [f.function for f in client.functions(ProcessRef(busy.pid), ["leaf"])]
    busy.pause()
    memory = os.open(f"/proc/{busy.pid}/mem", os.O_RDWR)
    try:
        original = os.pread(memory, 1, function.address)
        os.pwrite(memory, b"\xcc", function.address)
        session_id = client.attach(ProcessRef(busy.pid)).session.session_id
        for writer in (PatchWriter.AUTO, PatchWriter.STOP):
            result = client.patch(session_id, ["leaf"], PatchOptions(writer=writer))
            assert [r.status for r in result.results] == [PatchStatus.REFUSED]
        assert os.pread(memory, 1, function.address) == b"\xcc"
        os.pwrite(memory, original, function.address)
        client.detach(session_id)
    finally:
        os.close(memory)
    assert_text_unchanged(busy.pid)
    busy.resume()
    busy.quit()


def test_h66_a_process_under_a_debugger_is_refused(client: SyncAgentClient) -> None:
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        strace = subprocess.Popen(
            ["strace", "-f", "-o", "/dev/null", "-p", str(target.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: "TracerPid:\t0" not in _status(target.pid))
            with pytest.raises(ConflictError) as caught:
                client.attach(ProcessRef(target.pid))
            assert caught.value.reason == "TRACED_BY_ANOTHER"
        finally:
            strace.terminate()
            strace.wait()
        wait_until(lambda: "TracerPid:\t0" in _status(target.pid))
        target.quit()


def test_the_agent_does_not_trace_itself(agent: AgentProcess, client: SyncAgentClient) -> None:
    with pytest.raises(UnsupportedTargetError) as caught:
        client.attach(ProcessRef(agent.pid))
    assert caught.value.reason == "AGENT_ITSELF"


def test_attaching_and_detaching_again_and_again_adds_nothing(
    client: SyncAgentClient, busy: TargetProcess
) -> None:
    def cycle() -> None:
        with recording(client, busy.pid) as (session_id, recorder):
            patch(client, session_id, ["*"])
            client.detach(session_id)
        recorder.finish()

    cycle()
    maps = _mapping_count(busy.pid)
    files = len(os.listdir(f"/proc/{busy.pid}/fd"))
    threads = len(os.listdir(f"/proc/{busy.pid}/task"))
    for _ in range(30):
        cycle()
    assert_text_unchanged(busy.pid)
    busy.pause()
    assert _mapping_count(busy.pid) <= maps + threads
    assert len(os.listdir(f"/proc/{busy.pid}/fd")) == files
    busy.resume()
    busy.quit()


def _mapping_count(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("\n")


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


# -- the command line -----------------------------------------------------------


def test_command_line_errors_have_their_codes(
    remote: Remote, agent: AgentProcess, busy: TargetProcess, tmp_path: Path
) -> None:
    target = f"{{}}:{busy.pid}"
    cases = [
        (("patch", "{}:4194303", "leaf"), 5, "no process"),
        (("patch", target, "no_such_function"), 5, "no_such_function"),
        (("patch", "nowhere.invalid:1", "leaf"), 3, "nowhere.invalid"),
        (("patch", "127.0.0.1:1:1", "leaf"), 3, "127.0.0.1:1"),
        (("patch", "a:b:c:d:1", "leaf"), 2, ""),
        (("patch", f"{{}}:{agent.pid}", "leaf"), 7, "agent"),
        (("record", target, "leaf", "-o", "/dev/full/x", "--duration", "1"), 12, ""),
    ]
    for arguments, code, words in cases:
        result = remote(*arguments)
        assert result.code == code, (arguments, result)
        assert result.err.startswith("error: ") or code == 2, (arguments, result)
        assert words in result.err, (arguments, result)
        assert "Traceback" not in result.err
    assert_text_unchanged(busy.pid)
    busy.quit()


def test_wrong_token_is_refused(tmp_path: Path, agent: AgentProcess) -> None:
    (tmp_path / "ca.pem").write_bytes((agent.state_dir / "ca.pem").read_bytes())
    (tmp_path / "token").write_text("wrong")
    forged = AgentProcess(agent.process, agent.address, tmp_path)
    result = run_remote(forged, "ps", "{}")
    assert result.code == 4, result
    with pytest.raises(UftraceError), forged.client() as client:
        client.info()
