"""Who gets in, and who does not: real agents, the real client, real certificates."""

from __future__ import annotations

import datetime
import json
import os
import pty
import re
import select
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import AgentProcess, CommandResult, running_agent
from tests.e2e.support import Recorder, patch
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_remote import AuthenticationError, SyncAgentClient
from uftrace_remote import pki as authority
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.errors import ConnectionFailedError, PermissionDeniedError, UftraceError
from uftrace_remote.login import fingerprint
from uftrace_remote.values import Lease, Limits, PatchOptions, ProcessRef

ROLES = ("view", "trace", "admin")
REMOTE = [sys.executable, "-c", "from uftrace_remote.cli.main import main; main()"]
COMMAND = [sys.executable, "-c", "from uftrace_agent.cli import main; main()"]
MINUTE = 60 * 10**9


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("UFTRACE_", "XDG_"))}
    return {**kept, "HOME": str(home), "NO_COLOR": "1", "COLUMNS": "160"}


def run(home: Path, *arguments: str, stdin: str = "") -> CommandResult:
    """`uftrace-remote`, of a user who has nothing but what is in `home`."""
    done = subprocess.run(
        [*REMOTE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(home),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return CommandResult(done.returncode, done.stdout, done.stderr)


def agent_command(agent: AgentProcess, *arguments: str) -> str:
    command = [*COMMAND, "--state-dir", str(agent.state_dir), "credentials", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def fingerprint_of(agent: AgentProcess) -> str:
    found = re.search(r"SHA-256\): ([0-9A-F:]{95})", agent_command(agent))
    assert found
    return found[1]


def kept_files(home: Path) -> dict[str, int]:
    return {
        str(path.relative_to(home)): stat.S_IMODE(path.stat().st_mode)
        for path in sorted(home.rglob("*"))
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def target() -> Iterator[TargetProcess]:
    with TargetProcess(build("busy8", "gcc-O2"), niceness=10) as opened:
        yield opened
        assert_text_unchanged(opened.pid)
        assert_not_traced(opened.pid)
        opened.quit()


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


def fleet_client(agent: AgentProcess, folder: Path) -> SyncAgentClient:
    options = CredentialOptions(tls_directory=folder)
    return SyncAgentClient.connect(agent.address, options, timeout=30.0)


# -- login ---------------------------------------------------------------------


def test_login_keeps_what_was_proven_for_nobody_else(agent: AgentProcess, home: Path) -> None:
    token = agent_command(agent, "--token", "view")
    said = run(home, "login", agent.address, "--fingerprint", fingerprint_of(agent), stdin=token)
    assert said.code == 0, said.err
    folder = f".config/uftrace-remote/hosts/{agent.address.replace(':', '_')}"
    files = kept_files(home)
    assert files == {
        ".config": 0o700,
        ".config/uftrace-remote": 0o700,
        ".config/uftrace-remote/hosts": 0o700,
        folder: 0o700,
        f"{folder}/ca.pem": 0o600,
        f"{folder}/token": 0o600,
    }
    assert token.strip() not in said.out + said.err
    assert run(home, "-H", agent.address, "ps").code == 0
    # WHEN the role does not include it THEN that is said, with what to do
    refused = run(home, "-H", agent.address, "attach", str(os.getpid()))
    assert refused.code == 4
    assert "Attach wants the role trace, and token:view has view" in refused.err
    assert "hint: log in with a token" in refused.err


@pytest.mark.parametrize(
    ("shown", "token", "code", "said"),
    [
        ("00:" * 31 + "00", "right", 4, "another fingerprint"),
        ("right", "wrong\n", 4, "not the token"),
        ("right", "", 2, "no token"),
        ("right", "a\tb\n", 2, "no token"),
        ("12", "right", 2, "no SHA-256 fingerprint"),
        ("", "right", 2, "nobody is there to compare"),
    ],
)
def test_login_that_fails_keeps_nothing(
    tmp_path: Path, home: Path, shown: str, token: str, code: int, said: str
) -> None:
    with running_agent(tmp_path / "state") as agent:
        given = fingerprint_of(agent) if shown == "right" else shown
        secret = agent_command(agent, "--token", "trace") if token == "right" else token
        option = ("--fingerprint", given) if given else ()
        result = run(home, "login", agent.address, *option, stdin=secret)
    assert (result.code, said in result.err) == (code, True), result.err
    assert "hint: " in result.err
    assert kept_files(home) == {}


def test_login_where_nobody_listens(home: Path) -> None:
    for address, said in (("127.0.0.1:1", "cannot reach"), ("no.such.host.invalid", "unknown")):
        result = run(home, "login", address, "--fingerprint", "00" * 32)
        assert (result.code, said in result.err) == (3, True), result.err
    assert kept_files(home) == {}


def test_login_asks_a_person(agent: AgentProcess, home: Path) -> None:
    token = agent_command(agent, "--token", "trace").strip()
    answers = [("prints there", "y"), ("Token", token)]
    code, screen = on_terminal(home, ["login", agent.address], answers)
    assert code == 0, screen
    assert fingerprint_of(agent) in screen
    assert token not in screen
    assert run(home, "-H", agent.address, "status").code == 0


def test_login_that_a_person_stops_keeps_nothing(agent: AgentProcess, home: Path) -> None:
    code, screen = on_terminal(home, ["login", agent.address], [("prints there", "n")])
    assert code == 4, screen
    assert kept_files(home) == {}


def on_terminal(
    home: Path, arguments: list[str], answers: list[tuple[str, str]]
) -> tuple[int, str]:
    """Run a command on a terminal of its own; answer each question as it comes."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*REMOTE, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(home),
        start_new_session=True,
    ) as process:
        os.close(theirs)
        screen, unread, deadline = "", "", time.monotonic() + 60
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                text = os.read(ours, 4096).decode(errors="replace")
            except OSError:  # The other end is closed (Linux says EIO).
                break
            screen, unread = screen + text, unread + text
            if answers and answers[0][0] in unread:
                os.write(ours, answers.pop(0)[1].encode() + b"\n")
                unread = ""
        os.close(ours)
        return process.wait(30), screen


# -- a fleet's certificates ------------------------------------------------------


def test_a_fleet_in_five_commands(home: Path, tmp_path: Path, target: TargetProcess) -> None:
    assert run(home, "pki", "init").code == 0
    assert run(home, "pki", "issue", "agent", "web1", "--host", "127.0.0.1").code == 0
    for role in ROLES:
        assert run(home, "pki", "issue", "client", f"my-{role}", "--role", role).code == 0
    folder = home / ".config/uftrace-remote/pki"
    assert all(kept_files(home)[str(p.relative_to(home))] == 0o600 for p in folder.rglob("*.key"))
    with running_agent(tmp_path / "state", "--tls-dir", str(folder / "agents/web1")) as agent:
        shutil.copytree(folder / "clients/my-view", home / ".config/uftrace-remote/tls")
        where = f"{agent.address}:{target.pid}"
        assert run(home, "-H", agent.address, "ps").code == 0
        refused = run(home, "patch", where, "leaf")
        assert refused.code == 4
        assert "cert:my-view has view" in refused.err
        assert_text_unchanged(target.pid)
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
    tmp_path: Path, target: TargetProcess
) -> None:
    folder = tmp_path / "pki"
    authority.init(folder)
    at_agent = authority.issue_agent(folder, "web1")
    at_client = authority.issue_client(folder, "ann", "trace")
    with running_agent(tmp_path / "state", "--tls-dir", str(at_agent)) as agent:
        with fleet_client(agent, at_client) as client:
            session_id = client.attach(ProcessRef(target.pid)).session.session_id
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
            target.burst(10)
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


# -- roles, rules, and what is written down ---------------------------------------


def audited(agent: AgentProcess) -> list[Mapping[str, object]]:
    text = (agent.state_dir / "audit.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def by_role(agent: AgentProcess, role: str, folder: Path) -> SyncAgentClient:
    """A client that has the token of a role, and nothing else."""
    folder.mkdir(exist_ok=True)
    shutil.copy(agent.state_dir / "ca.pem", folder / "ca.pem")
    name = "token" if role == "admin" else f"token.{role}"
    (folder / "token").write_text((agent.state_dir / name).read_text())
    options = CredentialOptions(state_directory=folder)
    return SyncAgentClient.connect(agent.address, options, timeout=30.0)


def test_what_each_token_lets_do(
    agent: AgentProcess, tmp_path: Path, target: TargetProcess
) -> None:
    process = ProcessRef(target.pid)
    with by_role(agent, "view", tmp_path / "view") as viewer:
        with by_role(agent, "trace", tmp_path / "trace") as tracer:
            assert any(each.reference.pid == target.pid for each in viewer.processes())
            assert [f.function.name for f in viewer.functions(process, ["leaf"])] == ["leaf"]
            with pytest.raises(PermissionDeniedError) as caught:
                viewer.attach(process)
            assert caught.value.reason == "ROLE_TOO_LOW"
            session_id = tracer.attach(process).session.session_id
            patch(tracer, session_id, ["leaf"])
            # Looking on is a view.
            recorder = Recorder(viewer, session_id)
            assert len(viewer.tracepoints(session_id)) == 1
            for change in (
                lambda: viewer.patch(session_id, ["*"]),
                lambda: viewer.unpatch(session_id),
                lambda: viewer.detach(session_id),
                lambda: viewer.set_limits(session_id, Limits(cpu=0.5)),
                lambda: viewer.renew_lease(session_id, Lease("l", MINUTE)),
                lambda: viewer.release_lease(session_id, "l"),
            ):
                with pytest.raises(PermissionDeniedError):
                    change()
            assert len(viewer.tracepoints(session_id)) == 1
            target.burst(10)
            tracer.detach(session_id)
            assert recorder.finish().entries("leaf") > 0


def test_a_rule_denies_by_name_and_the_target_is_untouched(
    tmp_path: Path, home: Path, target: TargetProcess
) -> None:
    rules = tmp_path / "policy.toml"
    policy = f"""
    [defaults]
    max_budget = "4%"
    max_lease = "10m"

    [[rule]]
    name = "no-busy8"
    effect = "deny"
    executables = ["{target.binary.resolve().parent}/*"]
    """
    rules.write_text(policy)
    rules.chmod(0o600)
    with running_agent(tmp_path / "state", "--policy", str(rules)) as agent:
        with by_role(agent, "trace", tmp_path / "trace") as tracer:
            where = f"{agent.address}:{target.pid}"
            command = ("--state-dir", str(tmp_path / "trace"))
            for words in (("attach", where), ("patch", where, "leaf", "--for", "1m")):
                denied = run(home, *command, *words)
                assert denied.code == 4, denied
                assert "policy rule 'no-busy8' does not let token:trace" in denied.err
                assert "hint: " in denied.err
            assert tracer.sessions() == ()
            # WHEN the file is broken THEN its rules still hold, and the log says so
            rules.write_text("nonsense")
            with pytest.raises(PermissionDeniedError):
                tracer.attach(ProcessRef(target.pid))
            assert "the policy was NOT reread" in agent.log()
            # WHEN the rule goes THEN the maxima are left
            rules.write_text(policy.partition("[[rule]]")[0])
            attached = tracer.attach(ProcessRef(target.pid)).session
            # The agent's own default is off, which is above the maximum.
            assert attached.limits.cpu == pytest.approx(0.04)
            for options in (
                PatchOptions(),
                PatchOptions(lease=Lease("l", 11 * MINUTE)),
                PatchOptions(lease=Lease("l", MINUTE), limits=Limits(cpu=0.01)),
            ):
                with pytest.raises(PermissionDeniedError) as caught:
                    tracer.patch(attached.session_id, ["leaf"], options)
                assert (caught.value.reason, "'defaults'" in str(caught.value)) == (
                    "POLICY_DENIED",
                    True,
                )
            assert_text_unchanged(target.pid)
            patch(tracer, attached.session_id, ["leaf"], PatchOptions(lease=Lease("l", MINUTE)))
            with pytest.raises(PermissionDeniedError):
                tracer.release_lease(attached.session_id, "l", keep=True)
            with pytest.raises(PermissionDeniedError):
                tracer.set_limits(attached.session_id, Limits(cpu=0.5))
            with agent.client() as admin:
                admin.set_limits(attached.session_id, Limits(cpu=0.5))
            tracer.detach(attached.session_id)
        # No request waits for the file.
        wait_until(lambda: audited(agent)[-1]["what"] == "detach")
        lines = audited(agent)
    denied_line = lines[0]
    assert (denied_line["what"], denied_line["rule"]) == ("attach", "no-busy8")
    assert (denied_line["who"], denied_line["pid"]) == ("token:trace", target.pid)
    done = [(line["what"], line["who"]) for line in lines if line["result"] == "OK"]
    assert done == [
        ("attach", "token:trace"),
        ("patch", "token:trace"),
        ("setlimits", "token:admin"),
        ("detach", "token:trace"),
    ]
    assert all(line["executable"] == str(target.binary.resolve()) for line in lines)


def test_a_patch_in_two_steps_is_under_the_same_rules(
    tmp_path: Path, target: TargetProcess
) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text('[defaults]\nmax_lease = "10m"\n')
    rules.chmod(0o600)
    with running_agent(tmp_path / "state", "--policy", str(rules)) as agent:
        with by_role(agent, "trace", tmp_path / "trace") as tracer:
            session_id = tracer.attach(ProcessRef(target.pid)).session.session_id
            for options in (PatchOptions(), PatchOptions(lease=Lease("l", 11 * MINUTE))):
                with pytest.raises(PermissionDeniedError) as caught:
                    tracer.prepare_patch(session_id, ["leaf"], options)
                assert caught.value.reason == "POLICY_DENIED"
            options = PatchOptions(lease=Lease("l", MINUTE))
            for late in (False, True):
                prepared = tracer.prepare_patch(session_id, ["leaf"], options)
                with by_role(agent, "view", tmp_path / "view") as viewer:
                    with pytest.raises(PermissionDeniedError):
                        viewer.abort_patch(prepared)
                    with pytest.raises(PermissionDeniedError):
                        viewer.commit_patch(prepared, time.monotonic_ns() + 10**8)
                if late:
                    # Given up while it is awaited.
                    tracer.commit_patch(prepared, time.monotonic_ns() + 50 * 10**9)
                    tracer.abort_patch(prepared)
                else:
                    tracer.commit_patch(prepared, time.monotonic_ns() + 2 * 10**8)
                    assert tracer.await_patch(prepared).is_written
                    tracer.unpatch(session_id)
            wait_until(lambda: [line["what"] for line in audited(agent)].count("patch") == 2)
            tracer.detach(session_id)
        wait_until(lambda: audited(agent)[-1]["what"] == "detach")
        lines = [line for line in audited(agent) if line["who"] == "token:trace"]
    assert [(line["what"], line["result"]) for line in lines[3:]] == [
        ("preparepatch", "OK"),
        ("commitpatch", "OK"),
        ("patch", "OK"),
        ("unpatch", "OK"),
        ("preparepatch", "OK"),
        ("commitpatch", "OK"),
        ("patch", "NOT_COMMITTED"),
        ("abortpatch", "OK"),
        ("detach", "OK"),
    ]
    assert [line["result"] for line in lines[:3]] == ["OK", "POLICY_DENIED", "POLICY_DENIED"]


def test_guessing_from_one_address_does_not_lock_out_another(tmp_path: Path) -> None:
    # Two addresses of one host: IPv4's and IPv6's loopback.
    with running_agent(tmp_path / "state", "--listen", "[::1]:0") as agent:
        assert agent.process.stdout is not None
        other = agent.process.stdout.readline().removeprefix("listening on ").strip()
        wrong = tmp_path / "wrong"
        by_role(agent, "trace", wrong).close()
        (wrong / "token").write_text("guess")
        reasons = set()
        with SyncAgentClient.connect(other, CredentialOptions(state_directory=wrong)) as guesser:
            for _ in range(10):
                with pytest.raises(AuthenticationError) as caught:
                    guesser.info()
                reasons.add(caught.value.reason)
        assert reasons == {"INVALID_TOKEN", "TOO_MANY_FAILURES"}
        assert caught.value.hint.startswith("try again in ")
        with agent.client() as client:
            assert client.info().hostname
        # It is not for ever.
        options = CredentialOptions(state_directory=agent.state_dir)
        with SyncAgentClient.connect(other, options) as client:
            wait_until(lambda: _answers(client), timeout=20)


def _answers(client: SyncAgentClient) -> bool:
    try:
        client.info()
    except UftraceError:
        return False
    return True


def test_no_secret_is_in_logs_command_lines_or_readable_files(
    tmp_path: Path, home: Path, target: TargetProcess
) -> None:
    with running_agent(tmp_path / "state", "--log-level", "debug") as agent:
        secrets = [agent_command(agent, "--token", role).strip() for role in ROLES]
        keys = [(agent.state_dir / name).read_text() for name in ("ca.key", "server.key")]
        secrets += [key.splitlines()[1] for key in keys]
        login = ("login", agent.address, "--fingerprint", fingerprint_of(agent))
        assert run(home, *login, stdin=secrets[1] + "\n").code == 0
        assert run(home, *login, stdin=secrets[1][:-1] + "x\n").code == 4
        recording = subprocess.Popen(
            [*REMOTE, "live", f"{agent.address}:{target.pid}", "leaf", "--duration", "3s"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(home),
        )
        wait_until(lambda: (agent.state_dir / "audit.jsonl").exists(), timeout=30)
        command_lines = "".join(
            Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
            for pid in (agent.pid, recording.pid)
            for name in ("cmdline", "environ")
        )
        # The lines of every call are not looked at by hand: there are many.
        output = recording.communicate(timeout=60)
        assert recording.returncode == 0, output[1]
        texts = {
            "log": agent.log(),
            "audit": (agent.state_dir / "audit.jsonl").read_text(),
            "command lines": command_lines,
            "output": "".join(output),
        }
        for where, text in texts.items():
            assert text
            assert not any(secret in text for secret in secrets), where
        public = {"ca.pem", "server.pem", "log", "symbols"}
        for path in agent.state_dir.iterdir():
            if path.name not in public:
                assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
        assert stat.S_IMODE(agent.state_dir.stat().st_mode) & 0o022 == 0
