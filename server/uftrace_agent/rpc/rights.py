"""Which role each RPC wants.

One that is missing here wants admin; a test holds the table to the services.
What the policy says comes on top (`access`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from uftrace_agent.trust.roles import Role

_AGENT: Final = "uftrace.agent.v1.AgentService"

# Load balancers and `grpc_health_probe` have no token; health tells nothing.
_OPEN_SERVICES: Final = frozenset({health.SERVICE_NAME})

RIGHTS: Final[Mapping[str, Role]] = {
    f"{_AGENT}/GetAgentInfo": Role.VIEW,
    f"{_AGENT}/ListProcesses": Role.VIEW,
    f"{_AGENT}/ListFunctions": Role.VIEW,
    f"{_AGENT}/ListSessions": Role.VIEW,
    f"{_AGENT}/ListTracepoints": Role.VIEW,
    f"{_AGENT}/StreamEvents": Role.VIEW,
    f"{_AGENT}/AwaitPatch": Role.VIEW,
    f"{_AGENT}/Attach": Role.TRACE,
    f"{_AGENT}/Detach": Role.TRACE,
    f"{_AGENT}/Patch": Role.TRACE,
    f"{_AGENT}/Unpatch": Role.TRACE,
    f"{_AGENT}/PreparePatch": Role.TRACE,
    f"{_AGENT}/CommitPatch": Role.TRACE,
    f"{_AGENT}/AbortPatch": Role.TRACE,
    f"{_AGENT}/SetLimits": Role.TRACE,
    f"{_AGENT}/RenewLease": Role.TRACE,
    f"{_AGENT}/ReleaseLease": Role.TRACE,
    f"{reflection.SERVICE_NAME}/ServerReflectionInfo": Role.VIEW,
}


def is_open(method: str) -> bool:
    """Whether a method (`package.Service/Method`) is for everybody."""
    return method.rpartition("/")[0] in _OPEN_SERVICES


def right_of(method: str) -> Role:
    """The role that a method wants."""
    return RIGHTS.get(method, Role.ADMIN)
