"""What docs/ shows can be run as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import AgentProcess
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.targets.build import build

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = DOCS / "examples"


@pytest.fixture
def target() -> Iterator[TargetProcess]:
    with TargetProcess(build("busy8"), niceness=10) as started:
        yield started
        assert_text_unchanged(started.pid)
        assert_not_traced(started.pid)
        started.quit()


def run(name: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_walk_by_reflection(agent: AgentProcess, target: TargetProcess) -> None:
    steps = re.findall(
        r"^\$ \$call (?:--count ([0-9]+) )?(\w+)(?: '(.*)')?$",
        (DOCS / "protocol.md").read_text(),
        re.MULTILINE,
    )
    process: dict[str, Any] = {}
    session_id = ""
    seen: dict[str, list[dict[str, Any]]] = {}
    for count, method, written in steps:
        # GIVEN what the walk says, about this process
        content = json.loads(written or "{}")
        if "name_contains" in content:
            content["name_contains"] = str(target.binary)
        if "process" in content:
            content["process"] = process
        if "session_id" in content:
            content["session_id"] = session_id
        if "patterns" in content:
            content["patterns"] = ["leaf"]
        command = ["--state-dir", str(agent.state_dir), "--count", count or "1"]
        said = run("call.py", *command, agent.address, method, json.dumps(content))
        if method == "list":
            assert {"Attach", "StreamEvents", "PreparePatch"} <= set(said.split())
            continue
        seen[method] = answers = [json.loads(line) for line in said.splitlines()]
        if method == "ListProcesses":
            (process,) = (
                each["process"]
                for each in answers[0]["processes"]
                if each["process"]["pid"] == target.pid
            )
        elif method == "Attach":
            session_id = answers[0]["session"]["session_id"]
    assert seen["Patch"][0]["results"][0]["status"] == "PATCH_STATUS_ENABLED"
    assert len(seen["StreamEvents"]) == 3
    assert seen["Detach"][0]["restored_sites"] == 1
    described = run(
        "call.py", "--state-dir", str(agent.state_dir), agent.address, "describe", "Attach"
    )
    assert "uftrace.agent.v1.AttachRequest\n" in described and "    process\n" in described


def test_a_fleet_is_patched_by_a_program(
    agent: AgentProcess, target: TargetProcess, tmp_path: Path
) -> None:
    inventory = tmp_path / "inventory.toml"
    inventory.write_text(f"[groups.lab]\nhosts = ['{agent.address}']\n")
    said = run(
        "patch_fleet.py",
        *("@lab", str(target.pid), "leaf", "chain_*"),
        UFTRACE_STATE_DIR=str(agent.state_dir),
        UFTRACE_INVENTORY=str(inventory),
    )
    assert said.splitlines()[-2:] == [f"{agent.address}:{target.pid} confirmed", "enabled"]
    with agent.client() as client:
        (session,) = (s for s in client.sessions() if s.process.pid == target.pid)
        assert session.tracepoint_count == 4
        assert [lease.name for lease in session.leases] == ["example"]
        client.detach(session.session_id)
