"""What the agent prints, and what signals do to it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def agent(tmp_path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.support.scripted_agent", str(tmp_path / "state")),
            *("127.0.0.1:0", f"unix:{tmp_path}/agent.sock"),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process
        process.kill()


def lines_until(process: subprocess.Popen[str], word: str) -> list[str]:
    """Read lines up to the one with `word`; a process that never says it hits the timeout."""
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if word in line:
            return lines
    raise AssertionError(f"ended without saying {word!r}: {lines}")


def test_addresses_are_announced_with_their_real_port(agent, tmp_path):
    lines = lines_until(agent, "listening on unix:")
    port = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", lines[-2])
    assert port and int(port[1]) > 0
    assert lines[-1] == f"listening on unix:{tmp_path}/agent.sock"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_every_process_and_exits_0(agent, number):
    lines_until(agent, "agent is ready")
    agent.send_signal(number)
    lines_until(agent, "shutdown")
    agent.stdin.close()
    lines_until(agent, "restored")
    assert agent.wait(timeout=60) == 0


def test_a_second_signal_does_not_abort_the_restore(agent):
    lines_until(agent, "agent is ready")
    agent.send_signal(signal.SIGTERM)
    lines_until(agent, "shutdown")
    # WHEN people lose patience
    agent.send_signal(signal.SIGINT)
    lines_until(agent, "already ending")
    agent.send_signal(signal.SIGTERM)
    lines_until(agent, "already ending")
    # THEN the restore still goes to its end
    agent.stdin.close()
    lines_until(agent, "restored")
    assert agent.wait(timeout=60) == 0
