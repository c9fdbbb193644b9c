"""Sessions of one process, one after the other: each does what the first did, and adds nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.conftest import running_agent
from tests.e2e.support import KIND_EXIT, Recorder, patch, recording
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_text_unchanged
from tests.support.waiting import SLOWNESS, wait_until
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.values import PatchOptions, ProcessRef

SESSIONS = 4


def mapping_count(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_bytes().count(b"\n")


@pytest.mark.parametrize("program", ["exceptions", "fibers", "kinds"])
def test_h39_each_session_traces_exits_and_exceptions(
    client: SyncAgentClient, program: str
) -> None:
    """H39: the unwinder is hooked anew in each, by the code of the first one's hook."""
    sizes = set()
    outcomes = []
    with TargetProcess(build(program, "gcc-O2")) as target:
        for _ in range(SESSIONS):
            with recording(client, target.pid) as (session_id, recorder):
                result = patch(client, session_id, ["*"])
                outcomes.append(
                    Counter((r.status, r.refusal, r.exit_refusal) for r in result.results)
                )
                target.wait_iterations(5)
                sizes.add(client.sessions()[0].annex_bytes)
                client.detach(session_id)
            seen = recorder.finish()
            assert any(kind == KIND_EXIT for _, kind in seen.counts)
            assert_text_unchanged(target.pid)
        assert len(sizes) == 1
        assert outcomes == outcomes[:1] * SESSIONS
        target.quit()


def test_after_a_detach_functions_can_be_traced_in_another_way(client: SyncAgentClient) -> None:
    """That is what the refusal within a session says."""
    with TargetProcess(build("exceptions", "gcc-O2")) as target:
        sizes = set()
        for turn in range(SESSIONS):
            session_id = client.attach(ProcessRef(target.pid)).session.session_id
            wanted = PatchOptions(entry_only=bool(turn % 2))
            first = patch(client, session_id, ["*"], wanted)
            target.wait_iterations(2)
            client.unpatch(session_id)
            other = client.patch(session_id, ["*"], PatchOptions(entry_only=not turn % 2))
            again = [r for r in other.results if "detach, then patch again" in r.detail]
            assert len(again) == first.enabled_count
            sizes.add((client.sessions()[0].annex_bytes, mapping_count(target.pid)))
            client.detach(session_id)
            assert_text_unchanged(target.pid)
        assert len(sizes) == 1
        target.quit()


@pytest.mark.parametrize("program", ["exceptions", "kinds"])
def test_h86_agents_that_come_and_go_add_nothing(tmp_path: Path, program: str) -> None:
    """Ended or killed, each leaves stubs and places to the next one."""
    sizes = []
    with TargetProcess(build(program, "gcc-O2")) as target:
        for turn in range(SESSIONS + 1):
            with running_agent(tmp_path / "state") as agent, agent.client() as client:
                session_id = client.attach(ProcessRef(target.pid)).session.session_id
                client.unpatch(session_id)
                patch(client, session_id, ["*"])
                target.wait_iterations(2)
                annex = client.sessions()[0].annex_bytes
                sizes.append((annex, mapping_count(target.pid)))
                if turn % 2 and turn < SESSIONS:
                    agent.kill()
        assert_text_unchanged(target.pid)
        # The kernel joins neighbouring mappings, or does not; none is added.
        assert len({count for _, count in sizes[1:]}) == 1, sizes
        assert max(annex for annex, _ in sizes) <= sizes[0][0], sizes
        target.quit()


def test_h86_code_that_serves_others_now_is_not_gone_back_to(tmp_path: Path) -> None:
    """What a module that was unloaded had is given to others; after a crash the next agent
    must not lead the module's functions there, when it has come again."""
    state, address = tmp_path / "state", f"unix:{tmp_path / 'agent.sock'}"
    with TargetProcess(build("dlopen", "gcc-O2")) as target:
        target.command("load")
        with running_agent(state, "--listen", address) as agent, agent.client() as client:
            options = CredentialOptions(state_directory=state)
            lasting = SyncAgentClient.connect(address, options, timeout=30.0 * SLOWNESS)
            session_id = client.attach(ProcessRef(target.pid)).session.session_id
            recorder = Recorder(lasting, session_id)
            first = patch(client, session_id, ["plugin*!plugin_*"])
            target.wait_iterations(2)
            target.command("unload")
            wait_until(lambda: not client.tracepoints(session_id))
            patch(client, session_id, ["libc.so.6!str*", "libc.so.6!mem*"])
            target.command("load")
            target.wait_iterations(2)
            agent.kill()
        with running_agent(state, "--listen", address) as agent, agent.client() as client:
            again = patch(client, session_id, ["plugin*!plugin_*"])
            assert again.enabled_count == first.enabled_count
            got = recorder.recording.records
            wait_until(lambda: recorder.recording.records > got)
            target.wait_iterations(5)
            client.detach(session_id)
            seen = recorder.finish()
            lasting.close()
            assert seen.entries("plugin_work") > 0
            assert seen.entries("plugin_leaf") > 0
        assert_text_unchanged(target.pid)
        target.quit()
