"""Logging in to an agent, by a person and by a script: real agents, the real client."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import AgentProcess, running_agent
from tests.e2e.trust import (
    REMOTE,
    agent_command,
    environment,
    fingerprint_of,
    kept_files,
    run,
)


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
