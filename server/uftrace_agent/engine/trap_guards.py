"""When a trap may be put into running code: the kernel kills a thread that meets one
while it blocks or ignores SIGTRAP, handler or not (kernel/signal.c,
force_sig_info_to_task; H51).

A look at the threads tells of this moment only. So it is also asked what the
program could do in the next milliseconds: one that can block signals, or fork (the
child's copy of the code would keep its traps), is stopped instead.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Final

from uftrace_agent.engine.program import ModuleView
from uftrace_agent.process.threads import status_field, thread_ids
from uftrace_agent.runtime.host_library import library

_SIGTRAP_BIT: Final = 1 << 4
_LOOKS: Final = 20
_BETWEEN_LOOKS: Final = 0.002

# C libraries and loaders block all signals around clone, abort and the like (H53).
_BLOCKS_SIGNALS: Final = re.compile(
    r"(libc|libpthread|librt|libanl|ld-linux[^/]*|ld-musl[^/]*|libc\.musl[^/]*)[-.][^/]*"
)

_CAN_BLOCK: Final = "can block SIGTRAP"
_CAN_FORK: Final = "can fork in the middle"
_CAN_SWITCH: Final = "may run on stacks too small for a signal"
_IMPORTS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "pthread_sigmask",
            "pthread_attr_setsigmask_np",
            "sigprocmask",
            "sigblock",
            "sigsetmask",
            "sighold",
            "sigset",
            "sigsuspend",
            "sigpause",
            "ppoll",
            "pselect",
            "epoll_pwait",
            "epoll_pwait2",
        ),
        _CAN_BLOCK,
    ),
    **dict.fromkeys(("fork", "_Fork", "vfork", "clone", "daemon", "forkpty"), _CAN_FORK),
    **dict.fromkeys(("makecontext", "swapcontext", "setcontext"), _CAN_SWITCH),
}


def module_refusal(view: ModuleView) -> str:
    """Why no trap may be put into a module; empty where one may."""
    if _BLOCKS_SIGNALS.fullmatch(view.name):
        return f"{view.name} runs with all signals blocked at times"
    return ""


def process_refusal(pid: int, modules: Iterable[ModuleView]) -> str:
    """Why no trap may be put into a process's code; empty where one may.

    Raises:
        TargetGoneError: It ended.
    """
    return _program_refusal(modules) or _thread_refusal(pid) or _processor_refusal()


def _program_refusal(modules: Iterable[ModuleView]) -> str:
    for view in modules:
        imports = view.image.imports
        if view.loaded.is_main and not imports:
            return f"{view.name} has its C library inside, which blocks signals at times"
        if view.image.is_go:
            return f"the Go runtime of {view.name} has its own ways with signals and stacks"
        if _BLOCKS_SIGNALS.fullmatch(view.name):
            continue
        for name, reason in _IMPORTS.items():
            if name in imports:
                return f"{view.name} {reason} ({name})"
    return ""


# The C library blocks all signals while it makes a thread or ends one. That passes,
# and is in its own code: only who still blocks it after a while is in the way.
def _thread_refusal(pid: int) -> str:
    if int(status_field(pid, "SigIgn") or "0", 16) & _SIGTRAP_BIT:
        return "the process ignores SIGTRAP"
    blocking = set(thread_ids(pid))
    for _ in range(_LOOKS):
        blocking = {tid for tid in blocking if _blocks(pid, tid)}
        if not blocking:
            return ""
        time.sleep(_BETWEEN_LOOKS)
    return f"thread {min(blocking)} blocks SIGTRAP"


def _blocks(pid: int, tid: int) -> bool:
    return bool(int(status_field(pid, "SigBlk", tid) or "0", 16) & _SIGTRAP_BIT)


def _processor_refusal() -> str:
    if library().uh_can_visit_processors():
        return "the agent is kept from some processors, so it cannot make them see a change"
    return ""
