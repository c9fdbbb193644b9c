"""Which engine serves this machine: the one place that asks."""

from __future__ import annotations

import platform

from uftrace_agent.engine.architecture import Architecture
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.errors import UnsupportedTargetError
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.runtime.blob import load_blob


def native_architecture() -> Architecture:
    """The engine of this machine's instruction set.

    Raises:
        UnsupportedTargetError: There is none yet.
    """
    if platform.machine() != "x86_64":
        raise UnsupportedTargetError(
            f"there is no patch engine for {platform.machine()} yet",
            reason="ARCHITECTURE_UNSUPPORTED",
        )
    return X86Architecture()


def scratch_layout(pid: int, architecture: Architecture) -> CodeLayout:
    """A layout of a process for plans that will not be carried out."""
    return CodeLayout(
        read_mappings(pid),
        len(load_blob(architecture.name).code),
        architecture.stub_bytes,
        architecture.reach,
    )
