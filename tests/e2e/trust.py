"""What tests of who gets in do: a user's command, the agent's own, files and tokens."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.conftest import AgentProcess, CommandResult
from tests.support.waiting import SLOWNESS
from uftrace_remote import SyncAgentClient
from uftrace_remote.credentials import CredentialOptions

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
        timeout=60 * SLOWNESS,
        env=environment(home),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return CommandResult(done.returncode, done.stdout, done.stderr)


def agent_command(agent: AgentProcess, *arguments: str) -> str:
    command = [*COMMAND, "--state-dir", str(agent.state_dir), "credentials", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60 * SLOWNESS
    ).stdout


def fingerprint_of(agent: AgentProcess) -> str:
    found = re.search(r"SHA-256\): ([0-9A-F:]{95})", agent_command(agent))
    assert found
    return found[1]


def kept_files(home: Path) -> dict[str, int]:
    return {
        str(path.relative_to(home)): stat.S_IMODE(path.stat().st_mode)
        for path in sorted(home.rglob("*"))
    }


def fleet_client(agent: AgentProcess, folder: Path) -> SyncAgentClient:
    options = CredentialOptions(tls_directory=folder)
    return SyncAgentClient.connect(agent.address, options, timeout=30.0 * SLOWNESS)


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
    return SyncAgentClient.connect(agent.address, options, timeout=30.0 * SLOWNESS)
