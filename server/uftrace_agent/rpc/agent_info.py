"""What the agent says about itself."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from uftrace.agent.v1 import agent_pb2, event_pb2, tracepoint_pb2
from uftrace_agent import __version__
from uftrace_agent.engine.model import Form, Writer
from uftrace_agent.engine.probe_cost import ProbeCost
from uftrace_agent.process.identity import boot_id
from uftrace_agent.recording.clock import Anchor
from uftrace_agent.rpc import convert
from uftrace_agent.session.budget import Limits


@dataclass(frozen=True, slots=True)
class _Capability:
    architecture: agent_pb2.Architecture
    forms: tuple[Form, ...]
    writers: tuple[Writer, ...]


# By the kernel's name of the machine. What is not listed here, this agent
# cannot trace, but it still lists processes.
_CAPABILITIES: Mapping[str, _Capability] = {
    "x86_64": _Capability(
        agent_pb2.ARCHITECTURE_AMD64,
        (Form.SLED, Form.NOP, Form.CALL, Form.PUN, Form.NEAR, Form.HOP, Form.MULTI),
        (Writer.AUTO, Writer.BYTE, Writer.TRAP, Writer.STOP),
    ),
    "aarch64": _Capability(
        agent_pb2.ARCHITECTURE_ARM64,
        (Form.SLED, Form.NOP, Form.CALL, Form.WORD),
        (Writer.AUTO, Writer.BYTE, Writer.STOP),
    ),
}
_UNKNOWN = _Capability(agent_pb2.ARCHITECTURE_UNSPECIFIED, (), ())


def agent_info(
    started_unix_ns: int, session_count: int, now: Anchor, cost: ProbeCost, limits: Limits
) -> agent_pb2.GetAgentInfoResponse:
    """Describe this agent.

    Args:
        started_unix_ns: When it started.
        session_count: How many sessions it holds.
        now: This moment on all clocks of the host.
        cost: What a probe costs.
        limits: What a session may cost.
    """
    machine = platform.machine()
    capability = _CAPABILITIES.get(machine, _UNKNOWN)
    return agent_pb2.GetAgentInfoResponse(
        version=__version__,
        hostname=socket.gethostname(),
        architecture=capability.architecture,
        kernel_release=platform.release(),
        boot_id=boot_id(),
        pid=os.getpid(),
        started_unix_nanos=started_unix_ns,
        session_count=session_count,
        now=event_pb2.ClockAnchor(
            ticks=now.ticks,
            monotonic_nanos=now.monotonic_ns,
            realtime_nanos=now.realtime_ns,
            ticks_per_second=now.ticks_per_second,
        ),
        forms=[tracepoint_pb2.PatchForm.Name(form) for form in capability.forms],
        writers=[tracepoint_pb2.PatchWriter.Name(writer) for writer in capability.writers],
        probe_cost=agent_pb2.ProbeCost(
            call_nanos=cost.call_ns,
            entry_nanos=cost.entry_ns,
            measured=cost.measured,
            detail=cost.detail,
        ),
        limits=convert.limits(limits),
    )
