"""One authority for a fleet: who is trusted, who is not, and certificates that are replaced."""

from __future__ import annotations

import datetime
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import AgentProcess, running_agent
from tests.e2e.support import Recorder, patch
from tests.e2e.trust import (
    COMMAND,
    ROLES,
    audited,
    fleet_client,
    kept_files,
    run,
)
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_text_unchanged
from tests.support.waiting import wait_until
from uftrace_remote import SyncAgentClient
from uftrace_remote import pki as authority
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.errors import ConnectionFailedError
from uftrace_remote.login import fingerprint
from uftrace_remote.values import ProcessRef


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with an agent `web1` and a client of each role."""
    folder = tmp_path_factory.mktemp("pki") / "pki"
    authority.init(folder)
    authority.issue_agent(folder, "web1")
    for role in ROLES:
        authority.issue_client(folder, role, role)
    return folder


@pytest.fixture(scope="module")
def fleet_agent(tmp_path_factory: pytest.TempPathFactory, fleet: Path) -> Iterator[AgentProcess]:
    state = tmp_path_factory.mktemp("agent") / "state"
    with running_agent(state, "--tls-dir", str(fleet / "agents/web1")) as started:
        yield started


def test_a_fleet_in_five_commands(
    home: Path, tmp_path: Path, checked_target: TargetProcess
) -> None:
    assert run(home, "pki", "init").code == 0
    assert run(home, "pki", "issue", "agent", "web1", "--host", "127.0.0.1").code == 0
    for role in ROLES:
        assert run(home, "pki", "issue", "client", f"my-{role}", "--role", role).code == 0
    folder = home / ".config/uftrace-remote/pki"
    assert all(kept_files(home)[str(p.relative_to(home))] == 0o600 for p in folder.rglob("*.key"))
    with running_agent(tmp_path / "state", "--tls-dir", str(folder / "agents/web1")) as agent:
        shutil.copytree(folder / "clients/my-view", home / ".config/uftrace-remote/tls")
        where = f"{agent.address}:{checked_target.pid}"
        assert run(home, "-H", agent.address, "ps").code == 0
        refused = run(home, "patch", where, "leaf")
        assert refused.code == 4
        assert "cert:my-view has view" in refused.err
        assert_text_unchanged(checked_target.pid)
        tracer = ("--tls-dir", str(folder / "clients/my-trace"))
        done = run(home, *tracer, "patch", where, "leaf")
        assert done.code == 0, done.err
        assert run(home, *tracer, "detach", where).code == 0
        wait_until(lambda: audited(agent)[-1]["what"] == "detach")
        lines = audited(agent)
    assert {line["who"] for line in lines} == {"cert:my-view", "cert:my-trace"}
    # A second authority in its place would leave the whole fleet without one.
    again = run(home, "pki", "init")
    assert (again.code, "there is an authority" in again.err) == (6, True)


def test_no_certificate_a_foreign_an_expired_or_an_agents_one(
    fleet: Path, fleet_agent: AgentProcess, tmp_path: Path, home: Path
) -> None:
    foreign, long_ago = tmp_path / "foreign", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    authority.init(foreign)
    stranger = authority.issue_client(foreign, "mallory", "admin")
    # The stranger trusts the right authority, and is not trusted by it.
    shutil.copy(fleet / "ca.pem", stranger / "ca.pem")
    expired = authority.issue_client(fleet, "gone", "admin", now=long_ago)
    as_client = shutil.copytree(fleet / "agents/web1", tmp_path / "as-client")
    for end in ("pem", "key"):
        (as_client / f"server.{end}").rename(as_client / f"client.{end}")
    for folder in (stranger, expired, as_client):
        result = run(home, "--tls-dir", str(folder), "-H", fleet_agent.address, "ps")
        assert result.code == 3, (folder, result)
        assert "hint: " in result.err
    # A token is no way around it.
    token = (fleet_agent.state_dir / "token").read_text()
    shown = fingerprint((fleet / "ca.pem").read_bytes())
    result = run(home, "login", fleet_agent.address, "--fingerprint", shown, stdin=token)
    assert (result.code, "wants a client certificate" in result.err) == (4, True), result.err
    with fleet_client(fleet_agent, fleet / "clients/view") as client:
        assert client.info().hostname


def test_an_agent_cannot_stand_in_for_another(fleet: Path, tmp_path: Path) -> None:
    # GIVEN an agent with a good certificate of the fleet, at an address that is not in it
    arguments = ("--listen", "127.0.0.2:0", "--tls-dir", str(fleet / "agents/web1"))
    with running_agent(tmp_path / "state", *arguments) as agent:
        assert agent.process.stdout is not None
        other = agent.process.stdout.readline().removeprefix("listening on ").strip()
        options = CredentialOptions(tls_directory=fleet / "clients/view")
        with SyncAgentClient.connect(other, options, timeout=10.0) as client:
            with pytest.raises(ConnectionFailedError):
                client.info()
        with fleet_client(agent, fleet / "clients/view") as client:
            assert client.info().hostname


def test_an_agent_with_an_expired_or_foreign_certificate_is_not_trusted(
    fleet: Path, tmp_path: Path
) -> None:
    foreign, long_ago = tmp_path / "foreign", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    authority.init(foreign)
    bad = (
        authority.issue_agent(foreign, "web1"),
        authority.issue_agent(fleet, "old", now=long_ago),
    )
    for number, folder in enumerate(bad):
        with running_agent(tmp_path / f"state{number}", "--tls-dir", str(folder)) as agent:
            with fleet_client(agent, fleet / "clients/view") as client:
                with pytest.raises(ConnectionFailedError) as caught:
                    client.info()
                assert caught.value.hint


def test_a_key_that_others_can_read_is_refused_on_both_sides(
    fleet: Path, tmp_path: Path, home: Path, agent: AgentProcess
) -> None:
    theirs = shutil.copytree(fleet / "clients/view", tmp_path / "client")
    (theirs / "client.key").chmod(0o644)
    result = run(home, "--tls-dir", str(theirs), "-H", agent.address, "ps")
    assert (result.code, "others can read" in result.err) == (4, True)
    ours = shutil.copytree(fleet / "agents/web1", tmp_path / "agent")
    (ours / "server.key").chmod(0o640)
    started = subprocess.run(
        [*COMMAND, "--state-dir", str(tmp_path / "state"), "--tls-dir", str(ours)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode == 4
    assert "can be read or changed by others" in started.stderr


def test_certificates_are_replaced_and_no_stream_breaks(
    tmp_path: Path, checked_target: TargetProcess
) -> None:
    folder = tmp_path / "pki"
    authority.init(folder)
    at_agent = authority.issue_agent(folder, "web1")
    at_client = authority.issue_client(folder, "ann", "trace")
    with running_agent(tmp_path / "state", "--tls-dir", str(at_agent)) as agent:
        with fleet_client(agent, at_client) as client:
            session_id = client.attach(ProcessRef(checked_target.pid)).session.session_id
            recorder = Recorder(client, session_id, reconnect_seconds=0.0)
            patch(client, session_id, ["leaf"])
            before = served_certificate(agent, at_client)
            # WHEN both sides get new certificates
            authority.issue_agent(folder, "web1")
            authority.issue_client(folder, "ann", "trace")
            # THEN new connections have the new one
            wait_until(lambda: served_certificate(agent, at_client) != before)
            client_key = (at_client / "client.key").read_bytes()
            wait_until(lambda: _uses(client, client_key))
            # AND the stream has gone on, over the old connection
            batches = len(recorder.recording.sequences)
            wait_until(lambda: len(recorder.recording.sequences) > batches + 5)
            checked_target.burst(10)
            client.detach(session_id)
            recording = recorder.finish()
            assert recording.entries("leaf") > 0
            sequences = recording.sequences
            assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
            # WHEN only half of a pair is replaced THEN the old one serves on
            present = served_certificate(agent, at_client)
            (at_agent / "server.key").write_bytes(client_key)
            assert served_certificate(agent, at_client) == present


def _uses(client: SyncAgentClient, key: bytes) -> bool:
    client.info()
    return client._client._credentials.client_key == key


def served_certificate(agent: AgentProcess, client: Path) -> bytes | None:
    context = ssl.create_default_context(cafile=str(client / "ca.pem"))
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(client / "client.pem", client / "client.key")
    host, _, port = agent.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as plain:
        with context.wrap_socket(plain, server_hostname=host) as secured:
            return secured.getpeercert(True)
