"""docs/protocol.md tells the truth: its table is complete and its program runs."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.support.agent_server import running_agent
from tests.support.sessions import ScriptedSessions
from uftrace.agent.v1 import agent_pb2

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "protocol.md").read_text()


def test_every_reason_of_the_agent_is_in_the_table():
    sources = "\n".join(p.read_text() for p in (ROOT / "server").rglob("*.py"))
    used = set(re.findall(r'(?:default_reason = |reason=)"([A-Z0-9_]+)"', sources))
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|", DOC.partition("## Errors")[2], re.MULTILINE)
    told = {reason for row in rows for reason in re.findall(r"`([A-Z0-9_]+)`", row)}
    assert used - told == set()


def test_every_call_is_in_the_table():
    calls = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].methods_by_name
    assert [name for name in calls if f"| `{name}` |" not in DOC] == []


async def test_the_walk_runs_as_it_stands(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    async with running_agent(tmp_path / "state", ScriptedSessions()) as agent:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, str(agent.addresses[0]), str(agent.state.path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    assert "StreamEvents StreamEventsRequest -> StreamEventsResponse" in said
    assert '"bootId"' in said
    assert "INVALID_ARGUMENT a change needs a request id" in said
