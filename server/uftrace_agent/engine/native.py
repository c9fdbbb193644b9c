"""Which engine serves this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from uftrace_agent.engine.aarch64.bench_code import AArch64BenchCode
from uftrace_agent.engine.aarch64.forms import AArch64Architecture
from uftrace_agent.engine.architecture import Architecture
from uftrace_agent.engine.bench_code import BenchCode
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.x86_64.bench_code import X86BenchCode
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.errors import UnsupportedTargetError
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.machine import native_machine
from uftrace_agent.runtime.blob import load_blob

_Engine = TypeVar("_Engine")

# By the kernel's name of the machine.
_ARCHITECTURES: Final[Mapping[str, Callable[[], Architecture]]] = {
    "aarch64": AArch64Architecture,
    "x86_64": X86Architecture,
}
_BENCH_CODES: Final[Mapping[str, Callable[[], BenchCode]]] = {
    "aarch64": AArch64BenchCode,
    "x86_64": X86BenchCode,
}


def native_architecture() -> Architecture:
    """The engine of this machine's instruction set.

    Raises:
        UnsupportedTargetError: There is none yet.
    """
    return _of_this_machine(_ARCHITECTURES)


def native_bench_code() -> BenchCode:
    """What measures probes of this machine's instruction set.

    Raises:
        UnsupportedTargetError: There is none yet.
    """
    return _of_this_machine(_BENCH_CODES)


def _of_this_machine(makers: Mapping[str, Callable[[], _Engine]]) -> _Engine:
    name = native_machine().name
    if name not in makers:
        raise UnsupportedTargetError(
            f"there is no patch engine for {name} yet", reason="ARCHITECTURE_UNSUPPORTED"
        )
    return makers[name]()


def scratch_layout(pid: int, architecture: Architecture) -> CodeLayout:
    """A layout of a process for plans that will not be carried out."""
    return CodeLayout(
        read_mappings(pid),
        len(load_blob(architecture.name).code),
        architecture.stub_bytes,
        architecture.reach,
    )
