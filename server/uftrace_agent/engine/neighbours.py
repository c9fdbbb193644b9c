"""Other tracers that work inside a process."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from uftrace_agent.engine.program import ModuleView

# They hijack returns and take over the calls of -pg, each on the assumption that
# nobody else does.
_TRACERS: Final = (
    (re.compile(r"libmcount(-[a-z]+)*\.so.*"), "uftrace records this process (libmcount)"),
    (re.compile(r"(frida-agent|frida-gadget|libfrida).*\.so.*"), "Frida is in this process"),
    (re.compile(r"liborbit.*\.so.*"), "Orbit is in this process"),
)


def other_tracer(modules: Iterable[ModuleView]) -> str:
    """Which tracer forbids us to patch; empty where there is none."""
    for view in modules:
        for pattern, sentence in _TRACERS:
            if pattern.fullmatch(view.name):
                return f"{sentence}: end that first, and start the process again"
    return ""
