"""Tracepoints that go by themselves: whoever vanishes leaves nothing patched."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Remote, running_agent
from tests.e2e.support import patch
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_remote import Lease, NoSuchLeaseError, SyncAgentClient, UsageError
from uftrace_remote.enums import PatchStatus, PatchWriter
from uftrace_remote.values import PatchOptions, ProcessRef

HOUR = 3600 * 10**9


@pytest.fixture
def target() -> Iterator[TargetProcess]:
    with TargetProcess(build("busy8", "gcc-O2")) as opened:
        opened.pause()
        yield opened
        opened.resume()
        opened.wait_iterations(2)
        opened.quit()


def enabled(client: SyncAgentClient, session_id: str) -> set[str]:
    return {each.patch.function.name for each in client.tracepoints(session_id)}


def leased(name: str, duration_ns: int) -> PatchOptions:
    return PatchOptions(lease=Lease(name, duration_ns))


@pytest.mark.parametrize("writer", [PatchWriter.AUTO, PatchWriter.STOP])
def test_what_a_lease_holds_goes_when_it_ends(
    client: SyncAgentClient, target: TargetProcess, writer: PatchWriter
) -> None:
    session_id = client.attach(ProcessRef(target.pid)).session.session_id
    target.resume()
    options = PatchOptions(writer=writer, lease=Lease("mine", 10**9))
    patch(client, session_id, ["*"], options)
    (lease,) = client.sessions()[0].leases
    assert lease.name == "mine"
    assert 0 < lease.remaining_ns <= 10**9
    assert lease.tracepoint_count == len(client.tracepoints(session_id))
    wait_until(lambda: not client.tracepoints(session_id))
    assert_text_unchanged(target.pid)
    assert_not_traced(target.pid)
    assert client.sessions()[0].leases == ()
    with pytest.raises(NoSuchLeaseError):
        client.renew_lease(session_id, Lease("mine", HOUR))
    # It can be patched again, for good.
    patch(client, session_id, ["leaf"])
    client.detach(session_id)
    assert_text_unchanged(target.pid)
    target.pause()


def test_a_lease_that_is_renewed_goes_on(client: SyncAgentClient, target: TargetProcess) -> None:
    session_id = client.attach(ProcessRef(target.pid)).session.session_id
    patch(client, session_id, ["leaf"], leased("mine", 3 * 10**9))
    until = time.monotonic() + 5
    while time.monotonic() < until:
        client.renew_lease(session_id, Lease("mine", 3 * 10**9))
    assert enabled(client, session_id) == {"leaf"}
    wait_until(lambda: not enabled(client, session_id))
    client.detach(session_id)


def test_the_last_lease_counts(client: SyncAgentClient, target: TargetProcess) -> None:
    """What two hold stays as long as one does; what is patched without a lease stays."""
    session_id = client.attach(ProcessRef(target.pid)).session.session_id
    patch(client, session_id, ["leaf", "keep_gpr", "keep_ymm"], leased("first", HOUR))
    again = client.patch(session_id, ["keep_gpr"], leased("second", HOUR))
    assert again.results[0].status is PatchStatus.ALREADY_ENABLED
    client.patch(session_id, ["keep_ymm"])
    first = client.release_lease(session_id, "first")
    assert first.tracepoint_count == 1
    assert enabled(client, session_id) == {"keep_gpr", "keep_ymm"}
    # A lease on what stays for good holds nothing.
    client.patch(session_id, ["keep_ymm"], leased("third", HOUR))
    assert client.release_lease(session_id, "third").tracepoint_count == 0
    assert client.release_lease(session_id, "second").tracepoint_count == 1
    assert enabled(client, session_id) == {"keep_ymm"}
    client.detach(session_id)
    assert_text_unchanged(target.pid)


def test_what_is_kept_stays(client: SyncAgentClient, target: TargetProcess) -> None:
    session_id = client.attach(ProcessRef(target.pid)).session.session_id
    patch(client, session_id, ["leaf"], leased("mine", HOUR))
    assert client.release_lease(session_id, "mine", keep=True).tracepoint_count == 1
    assert client.sessions()[0].leases == ()
    assert enabled(client, session_id) == {"leaf"}
    with pytest.raises(NoSuchLeaseError):
        client.release_lease(session_id, "mine")
    client.detach(session_id)


def test_leases_that_are_none_change_nothing(
    client: SyncAgentClient, target: TargetProcess
) -> None:
    session_id = client.attach(ProcessRef(target.pid)).session.session_id
    for lease in (Lease("", HOUR), Lease("x" * 60, HOUR), Lease("mine", 0), Lease("a\nb", HOUR)):
        with pytest.raises(UsageError):
            client.patch(session_id, ["leaf"], PatchOptions(lease=lease))
    with pytest.raises(NoSuchLeaseError):
        client.renew_lease(session_id, Lease("nobody's", HOUR))
    dry = client.patch(session_id, ["leaf"], PatchOptions(dry_run=True, lease=Lease("dry", HOUR)))
    assert len(dry.results) == 1
    assert client.sessions()[0].leases == ()
    assert_text_unchanged(target.pid)
    client.detach(session_id)


def test_h86_the_next_agent_knows_the_leases(tmp_path: Path, target: TargetProcess) -> None:
    """One lease ends while no agent runs, one under the next agent, one is renewed there."""
    state = tmp_path / "state"
    with running_agent(state) as agent, agent.client() as client:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        patch(client, session_id, ["leaf"], leased("short", 10**9))
        patch(client, session_id, ["keep_gpr"], leased("longer", HOUR))
        patch(client, session_id, ["keep_ymm"])
        agent.kill()
    assert len(text_differences(target.pid)) > 0
    ended = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > ended)
    with running_agent(state) as agent, agent.client() as client:
        wait_until(lambda: enabled(client, session_id) == {"keep_gpr", "keep_ymm"})
        (lease,) = client.sessions()[0].leases
        assert (lease.name, lease.tracepoint_count) == ("longer", 1)
        client.renew_lease(session_id, Lease("longer", 10**9))
        wait_until(lambda: enabled(client, session_id) == {"keep_ymm"})
        client.detach(session_id)
    assert_text_unchanged(target.pid)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_command_that_vanishes_leaves_nothing(
    tmp_path: Path, target: TargetProcess, end: signal.Signals
) -> None:
    """`live` holds what it patches by a lease of its own; here one of a second."""
    with running_agent(tmp_path / "state") as agent, agent.client() as client:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        code = (
            "import uftrace_remote.cli._leases as leases; leases._LEASE_NS = 10**9;"
            "from uftrace_remote.cli.main import main; main()"
        )
        live = subprocess.Popen(
            [
                *(sys.executable, "-c", code),
                *("--state-dir", str(agent.state_dir), "live", f"{agent.address}:{target.pid}"),
                "leaf",
            ],
            stdout=subprocess.PIPE,
        )
        try:
            wait_until(lambda: enabled(client, session_id) == {"leaf"})
            # It is renewed for as long as the command runs.
            first = client.sessions()[0].leases[0].name
            until = time.monotonic() + 2.5
            while time.monotonic() < until:
                assert enabled(client, session_id) == {"leaf"}
            assert first.startswith("live-")
            live.send_signal(end)
            wait_until(lambda: not enabled(client, session_id))
            assert_text_unchanged(target.pid)
        finally:
            live.kill()
            live.communicate()
        client.detach(session_id)


def test_by_the_command_line(remote: Remote, target: TargetProcess) -> None:
    where = f"{{}}:{target.pid}"
    done = remote("patch", where, "leaf", "--for", "1h", "--lease", "mine")
    assert "lease mine: unpatched by itself in" in done.out
    assert "uftrace-remote keep" in done.out
    assert "lease mine holds 1 tracepoint for another" in remote("status", "{}").out
    assert "1 tracepoint of lease mine kept for" in remote("keep", where, "mine", "--for", "2h").out
    assert remote("release", where, "mine").out == "released mine: unpatched 1 function\n"
    assert_text_unchanged(target.pid)
    again = remote("release", where, "mine")
    assert again.code == 5
    assert "there is no lease 'mine'" in again.err
    usage = remote("patch", where, "leaf", "--lease", "mine")
    assert usage.code == 2
    assert "--for" in usage.err
    remote("patch", where, "leaf", "--for", "10m", "--lease", "other")
    assert "until they are unpatched" in remote("keep", where, "other").out
    assert remote("detach", where).code == 0
