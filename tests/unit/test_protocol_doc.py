"""docs/protocol.md tells the truth: its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

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
