"""The command `uftrace-agent`: what it prints, and its exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from uftrace_agent import __version__

COMMAND = [sys.executable, "-m", "uftrace_agent.cli"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@contextlib.contextmanager
def agent(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        yield process
        process.kill()


def test_version():
    assert run("--version").stdout == f"uftrace-agent, version {__version__}\n"


def test_help_says_the_defaults():
    said = run("--help").stdout
    assert "127.0.0.1:50051" in said
    assert "UFTRACE_STATE_DIR" in said


@pytest.mark.parametrize("address", ["::1:80", "host:port", "unix:"])
def test_a_bad_address_is_wrong_usage(address):
    result = run("--listen", address)
    assert result.returncode == 2
    assert "--listen" in result.stderr


def test_a_state_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    result = run("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "file" / "sub"))
    assert result.returncode == 4
    assert "--state-dir" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run("--listen", address, "--state-dir", str(tmp_path / "state"))
    assert result.returncode == 3
    assert f"cannot listen on {address}: the address is in use" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_it_listens_where_it_says_and_ends_with_0(tmp_path):
    listen = ["--listen", "127.0.0.1:0", "--listen", f"unix:{tmp_path}/a.sock"]
    with agent(*listen, UFTRACE_STATE_DIR=str(tmp_path / "state")) as process:
        first, second = process.stdout.readline(), process.stdout.readline()
        host, _, port = first.removeprefix("listening on ").rstrip().rpartition(":")
        socket.create_connection((host, int(port))).close()
        assert second == f"listening on unix:{tmp_path}/a.sock\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "state" / "token").exists()
    assert not Path(tmp_path / "a.sock").exists()


def test_the_json_log_is_one_object_a_line(tmp_path):
    state = ["--state-dir", str(tmp_path / "state"), "--log-format", "json"]
    with agent("--listen", "127.0.0.1:0", "--insecure", *state) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert [line["level"] for line in lines if "no TLS" in line["event"]] == ["warning"]
    assert any(line["event"] == "agent is ready" and line["ca_sha256"] for line in lines)
