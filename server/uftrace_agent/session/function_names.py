"""From the engine's functions to those of the API."""

from __future__ import annotations

from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.session.types import FunctionRef


def function_ref(function: ProgramFunction) -> FunctionRef:
    """Names and addresses of a function."""
    symbol = function.symbol
    return FunctionRef(
        name=symbol.name,
        linkage_name=symbol.linkage_name,
        module=function.module.name,
        address=function.address,
        size=symbol.size,
        aliases=symbol.aliases,
        file_address=symbol.address,
    )
