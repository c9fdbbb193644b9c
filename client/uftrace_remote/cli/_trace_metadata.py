# What a trace says of itself: beside its events, and once its recording is over.
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from uftrace_remote._version import client_version
from uftrace_remote.cli import _output
from uftrace_remote.cli._reading import Counts
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.values import AgentInfo, Process


def trace_metadata(
    info: AgentInfo, process: Process, endpoint: Endpoint, patterns: Sequence[str]
) -> dict[str, Any]:
    """What is known before the first event."""
    return {
        "recorded_by": recorded_by(),
        "recorded_unix_ns": time.time_ns(),
        "agent": agent_metadata(info, endpoint),
        "process": _output.to_json(process),
        "patterns": list(patterns),
    }


def recorded_by() -> str:
    """This program."""
    return f"uftrace-remote {client_version()}"


def agent_metadata(info: AgentInfo, endpoint: Endpoint) -> dict[str, Any]:
    """Who recorded."""
    return {
        "address": str(endpoint),
        "version": info.version,
        "hostname": info.hostname,
        "architecture": info.architecture.name.lower(),
        "kernel_release": info.kernel_release,
        "boot_id": info.boot_id,
    }


def outcome_metadata(counts: Counts, seconds: float, end: str) -> dict[str, Any]:
    """What came of it."""
    return {
        "end": end,
        "seconds": round(seconds, 3),
        "produced": counts.produced,
        "lost": counts.lost,
        "losses": counts.losses,
        "exact": counts.exact,
    }
