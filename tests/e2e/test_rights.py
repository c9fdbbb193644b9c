"""What a role, a token and the policy let do, and what is written down of it."""

from __future__ import annotations

import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import AgentProcess, running_agent
from tests.e2e.support import Recorder, patch
from tests.e2e.trust import (
    MINUTE,
    REMOTE,
    ROLES,
    agent_command,
    audited,
    by_role,
    environment,
    fingerprint_of,
    run,
)
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_text_unchanged
from tests.support.waiting import wait_until
from uftrace_remote import AuthenticationError, SyncAgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.errors import PermissionDeniedError, UftraceError
from uftrace_remote.values import Lease, Limits, PatchOptions, ProcessRef


def test_what_each_token_lets_do(
    agent: AgentProcess, tmp_path: Path, checked_target: TargetProcess
) -> None:
    process = ProcessRef(checked_target.pid)
    with by_role(agent, "view", tmp_path / "view") as viewer:
        with by_role(agent, "trace", tmp_path / "trace") as tracer:
            assert any(each.reference.pid == checked_target.pid for each in viewer.processes())
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
            checked_target.burst(10)
            tracer.detach(session_id)
            assert recorder.finish().entries("leaf") > 0


def test_a_rule_denies_by_name_and_the_target_is_untouched(
    tmp_path: Path, home: Path, checked_target: TargetProcess
) -> None:
    rules = tmp_path / "policy.toml"
    policy = f"""
    [defaults]
    max_budget = "4%"
    max_lease = "10m"

    [[rule]]
    name = "no-busy8"
    effect = "deny"
    executables = ["{checked_target.binary.resolve().parent}/*"]
    """
    rules.write_text(policy)
    rules.chmod(0o600)
    with running_agent(tmp_path / "state", "--policy", str(rules)) as agent:
        with by_role(agent, "trace", tmp_path / "trace") as tracer:
            where = f"{agent.address}:{checked_target.pid}"
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
                tracer.attach(ProcessRef(checked_target.pid))
            assert "the policy was NOT reread" in agent.log()
            # WHEN the rule goes THEN the maxima are left
            rules.write_text(policy.partition("[[rule]]")[0])
            attached = tracer.attach(ProcessRef(checked_target.pid)).session
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
            assert_text_unchanged(checked_target.pid)
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
    assert (denied_line["who"], denied_line["pid"]) == ("token:trace", checked_target.pid)
    done = [(line["what"], line["who"]) for line in lines if line["result"] == "OK"]
    assert done == [
        ("attach", "token:trace"),
        ("patch", "token:trace"),
        ("setlimits", "token:admin"),
        ("detach", "token:trace"),
    ]
    assert all(line["executable"] == str(checked_target.binary.resolve()) for line in lines)


def test_a_patch_in_two_steps_is_under_the_same_rules(
    tmp_path: Path, checked_target: TargetProcess
) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text('[defaults]\nmax_lease = "10m"\n')
    rules.chmod(0o600)
    with running_agent(tmp_path / "state", "--policy", str(rules)) as agent:
        with by_role(agent, "trace", tmp_path / "trace") as tracer:
            session_id = tracer.attach(ProcessRef(checked_target.pid)).session.session_id
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
    tmp_path: Path, home: Path, checked_target: TargetProcess
) -> None:
    with running_agent(tmp_path / "state", "--log-level", "debug") as agent:
        secrets = [agent_command(agent, "--token", role).strip() for role in ROLES]
        keys = [(agent.state_dir / name).read_text() for name in ("ca.key", "server.key")]
        secrets += [key.splitlines()[1] for key in keys]
        login = ("login", agent.address, "--fingerprint", fingerprint_of(agent))
        assert run(home, *login, stdin=secrets[1] + "\n").code == 0
        assert run(home, *login, stdin=secrets[1][:-1] + "x\n").code == 4
        recording = subprocess.Popen(
            [*REMOTE, "live", f"{agent.address}:{checked_target.pid}", "leaf", "--duration", "3s"],
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
