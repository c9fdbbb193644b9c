"""An agent that was killed, and the one that comes after it."""

from __future__ import annotations

import bisect
import os
import random
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.conftest import AGENT, AgentProcess, CommandResult, running_agent
from tests.e2e.support import Recorder, patch
from tests.support.architecture import here, variants_here
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import SLOWNESS, wait_until
from tests.targets.build import build
from uftrace_agent.engine.manifest import Manifest, find_manifests
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.memory import ProcessMemory
from uftrace_remote import ConflictError, SyncAgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.enums import LossStage, PatchStatus, PatchWriter
from uftrace_remote.errors import UftraceError
from uftrace_remote.values import PatchOptions, ProcessRef

PADDING: tuple[bytes, ...] = here(
    x86_64=(b"\x66\x66\x2e", b"\x66\x2e\x0f\x1f", b"\x0f\x1f", b"\x90", b"\xcc", b"\x66\x90"),
    # One word of a function is enough there.
    aarch64=(),
)


def socket_of(tmp_path: Path) -> str:
    """An address that the next agent has too."""
    return f"unix:{tmp_path / 'agent.sock'}"


def client_of(agent: AgentProcess, address: str) -> SyncAgentClient:
    return SyncAgentClient.connect(
        address, CredentialOptions(state_directory=agent.state_dir), timeout=30.0 * SLOWNESS
    )


def restore(*arguments: str) -> CommandResult:
    """`uftrace-agent restore`, as a user runs it."""
    done = subprocess.run(
        [*AGENT, "restore", *arguments],
        capture_output=True,
        text=True,
        timeout=60 * SLOWNESS,
        check=False,
    )
    return CommandResult(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("variant", variants_here("gcc-O2", "fentry", "bti-pfe2", "cyg", "xray"))
def test_h86_the_next_agent_goes_on_with_the_session(tmp_path: Path, variant: str) -> None:
    """One stream across two deaths: every call is delivered, or counted as lost."""
    address = socket_of(tmp_path)
    program = "kinds" if variant == "xray" else "busy8"
    function = "kind_leaf" if variant == "xray" else "leaf"
    variant = "xray-bare" if variant == "xray" else variant
    with TargetProcess(build(program, variant)) as target:
        before = target.pause()
        with running_agent(tmp_path / "state", "--listen", address) as agent:
            client = client_of(agent, address)
            session_id = client.attach(ProcessRef(target.pid), "ann").session.session_id
            recorder = Recorder(client, session_id)
            patch(client, session_id, [function])
            target.burst(5_000)
            wait_until(lambda: recorder.recording.records > 1_000)
            agent.kill()
        # GIVEN a target whose agent is dead
        assert text_differences(target.pid)
        for _ in range(2):
            target.burst(5_000)
            # WHEN the next one is started
            with running_agent(tmp_path / "state", "--listen", address) as agent:
                # THEN the session is there, with its tracepoint and its owner
                again = agent.client()
                (session,) = again.sessions()
                assert (session.session_id, session.owner) == (session_id, "ann")
                (tracepoint,) = again.tracepoints(session_id)
                assert tracepoint.patch.function.name == function
                target.burst(5_000)
                got = recorder.recording.records
                wait_until(lambda got=got: recorder.recording.records > got)
                agent.kill()
        with running_agent(tmp_path / "state", "--listen", address) as agent:
            # A tracepoint of another agent can be taken out, and in again.
            last = agent.client()
            got = recorder.recording.records
            assert last.unpatch(session_id, [function]).results[0].status is PatchStatus.DISABLED
            assert_text_unchanged(target.pid)
            target.burst(100)
            result = last.patch(session_id, [function])
            assert result.results[0].status is PatchStatus.ENABLED, result
            target.burst(5_000)
            wait_until(lambda: recorder.recording.records > got)
            report = last.detach(session_id)
            last.close()
            seen = recorder.finish()
        client.close()
        after = target.counters()
        calls = after["calls_leaf"] - before["calls_leaf"] - 100
        assert seen.records + seen.lost_total == 2 * calls, seen.lost
        assert report.records_produced == 2 * calls
        # What the dead agents had in hand is known, and little.
        assert seen.lost.get((LossStage.AGENT, 0), 0) < calls
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.resume()
        target.quit()


@pytest.mark.parametrize("forged", ["thunks", "session"])
def test_h88_what_a_process_may_have_written_into_its_journal_is_checked(
    tmp_path: Path, forged: str
) -> None:
    """A journal with a right checksum whose annex, or session, no agent made so: the
    process is set back, and the agent serves."""
    with TargetProcess(build("busy8")) as target, TargetProcess(build("busy8")) as honest:
        target.pause()
        honest.pause()
        with running_agent(tmp_path / "state") as agent:
            client = agent.client()
            for one in (honest, target):
                session_id = client.attach(ProcessRef(one.pid)).session.session_id
                patch(client, session_id, ["leaf"])
            agent.kill()
            client.close()
        with ProcessMemory(target.pid) as memory, ProcessMemory(honest.pid) as other:
            (found,) = find_manifests(memory, read_mappings(target.pid))
            (true,) = find_manifests(other, read_mappings(honest.pid))
            identity, session = found.identity, found.session
            if forged == "thunks":
                identity = replace(identity, thunks=identity.thunks + 4096)
            else:
                session = true.session
            Manifest.of_found(memory, replace(found, session=session), identity)
        with running_agent(tmp_path / "state") as agent:
            client = agent.client()
            wait_until(lambda: not (text_differences(target.pid) and text_differences(honest.pid)))
            sessions = {one.process.reference.pid for one in client.sessions()}
            assert sessions == {honest.pid} or (forged == "session" and sessions == {target.pid})
            # It can be traced again.
            for one in (honest, target):
                session_id = client.attach(ProcessRef(one.pid)).session.session_id
                patch(client, session_id, ["keep_gpr"])
                client.detach(session_id)
                assert_text_unchanged(one.pid)
                one.resume()
                one.wait_iterations(1)
            client.close()
        target.quit()
        honest.quit()


def test_h86_what_was_half_done_is_undone_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Killed at random moments of patching and unpatching a thousand functions: what the
    next agent calls enabled is patched, and nothing else is."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    in_the_middle = 0
    with TargetProcess(build("many@1000", "gcc-O2")) as target:
        for turn in range(10):
            writer = (PatchWriter.AUTO, PatchWriter.STOP)[turn // 2 % 2]
            with running_agent(tmp_path / "state") as agent:
                client = agent.client()
                session_id = client.attach(ProcessRef(target.pid)).session.session_id
                assert_only_these_differ(target.pid, client, session_id)
                if turn % 2:
                    client.patch(session_id, ["*"])
                    started = in_background(
                        lambda c=client, s=session_id, w=writer: c.unpatch(s, writer=w)
                    )
                else:
                    client.unpatch(session_id)
                    started = in_background(
                        lambda c=client, s=session_id, w=writer: c.patch(
                            s, ["*"], PatchOptions(writer=w)
                        )
                    )
                started.join(chance.uniform(0, 0.15))
                in_the_middle += started.is_alive()
                agent.kill()
                started.join()
                client.close()
            target.wait_iterations(2)
            assert_not_traced(target.pid)
        assert in_the_middle > 2
        with running_agent(tmp_path / "state") as agent:
            client = agent.client()
            for session in client.sessions():
                assert_only_these_differ(target.pid, client, session.session_id)
                client.detach(session.session_id)
            client.close()
        assert_text_unchanged(target.pid)
        target.wait_iterations(2)
        target.quit()


def in_background(work: Callable[[], object]) -> threading.Thread:
    """Do it on a thread; that the agent dies meanwhile is no error."""

    def run() -> None:
        with suppress(UftraceError):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def assert_only_these_differ(pid: int, client: SyncAgentClient, session_id: str) -> None:
    """The code differs from its file in the enabled functions, in each of them."""
    enabled = sorted(t.patch.function.address for t in client.tracepoints(session_id))
    touched = set()
    for difference in text_differences(pid):
        # Padding between functions that nothing leads to any more may wait.
        if difference.want.startswith(PADDING):
            continue
        # One run of bytes may be of two functions: some are no longer than a word.
        for address in range(difference.address, difference.address + len(difference.want)):
            at = bisect.bisect_right(enabled, address) - 1
            # A site may lie some instructions behind the entry.
            assert at >= 0 and address - enabled[at] < 64, difference
            touched.add(enabled[at])
    assert touched == set(enabled)


@pytest.mark.parametrize("writer", [PatchWriter.BYTE, PatchWriter.STOP])
def test_h86_restore_needs_no_agent(tmp_path: Path, writer: PatchWriter) -> None:
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        with running_agent(tmp_path / "state") as agent, agent.client() as client:
            session = client.attach(ProcessRef(target.pid)).session
            enabled = patch(client, session.session_id, ["*"], PatchOptions(writer=writer))
            # WHEN the agent is alive
            held = restore("--pid", str(target.pid))
            # THEN its process is its own
            assert held.code == 1
            assert "another agent holds" in held.err and "detach there first" in held.err
            assert text_differences(target.pid)
            agent.kill()
        # WHEN it is dead
        done = restore("--pid", str(target.pid))
        # THEN everything is set back, once
        assert done.code == 0, done.err
        count = int(done.out.split(":")[1].split()[0])
        assert count >= enabled.enabled_count
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        again = restore("--pid", str(target.pid))
        assert again.out == f"process {target.pid}: 0 sites restored\n"
        # and the next agent finds no session
        with running_agent(tmp_path / "state") as agent, agent.client() as client:
            assert not client.sessions()
        target.wait_iterations(5)
        target.quit()


def test_h86_restore_finds_all_processes_and_forked_children(tmp_path: Path) -> None:
    with (
        TargetProcess(build("forker", "gcc-O2")) as forker,
        TargetProcess(build("busy8", "gcc-O2")) as busy,
    ):
        with running_agent(tmp_path / "state") as agent, agent.client() as client:
            for target in (forker, busy):
                session = client.attach(ProcessRef(target.pid)).session
                patch(client, session.session_id, ["*"])
            child = int(forker.command("hold 100").split()[-1])
            # What a living agent traces is left alone, its forked children too.
            held = restore("--all")
            assert held.code == 0 and f"holds process {child}" in held.err
            for pid in (forker.pid, child, busy.pid):
                assert text_differences(pid)
            agent.kill()
        done = restore("--all")
        assert done.code == 0, done.err
        for pid in (forker.pid, child, busy.pid):
            assert f"process {pid}: " in done.out
            assert_text_unchanged(pid)
        forker.command("release")
        forker.quit()
        busy.quit()


def test_restore_says_what_is_wrong_with_its_arguments() -> None:
    assert restore().code == 2
    assert restore("--all", "--pid", "1").code == 2
    gone = restore("--pid", str(2**22 - 1))
    assert gone.code == 1 and "there is no process" in gone.err


def test_h85_a_second_agent_does_not_take_what_the_first_one_holds(tmp_path: Path) -> None:
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        with running_agent(tmp_path / "first") as first, first.client() as client:
            session_id = client.attach(ProcessRef(target.pid)).session.session_id
            patch(client, session_id, ["leaf"])
            with running_agent(tmp_path / "second") as second, second.client() as other:
                assert not other.sessions()
                assert "belongs to another agent" in second.log()
                with pytest.raises(ConflictError):
                    other.attach(ProcessRef(target.pid))
            assert text_differences(target.pid)
            client.detach(session_id)
        assert_text_unchanged(target.pid)
        target.quit()


def test_h86_agents_that_die_again_and_again_add_nothing(tmp_path: Path) -> None:
    """The annex of the dead serves the living: no mapping, no descriptor is added."""
    sizes = []
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        for _ in range(6):
            with running_agent(tmp_path / "state") as agent, agent.client() as client:
                session_id = client.attach(ProcessRef(target.pid)).session.session_id
                client.unpatch(session_id)
                patch(client, session_id, ["*"])
                target.wait_iterations(2)
                agent.kill()
            maps = Path(f"/proc/{target.pid}/maps").read_text().splitlines()
            sizes.append((len(maps), len(os.listdir(f"/proc/{target.pid}/fd"))))
        assert len(set(sizes[1:])) == 1, sizes
        assert restore("--pid", str(target.pid)).code == 0
        assert_text_unchanged(target.pid)
        target.quit()
