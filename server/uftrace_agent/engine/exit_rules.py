"""Which functions are traced at their entry only, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from uftrace_agent.engine.model import Refusal

# Return more than once, or on another stack (H37).
_RETURNS_TWICE: Final = re.compile(
    r"_*(sig)?setjmp|__(lib)?c?_?vfork|_*vfork|__libc_vfork|_*getcontext|_*swapcontext|_*clone3?|"
    r"__clone_internal|savectx|__?start_context|_*setcontext"
)
# Look at their own return address, or are known to unwinders by theirs (H33, H41).
_READS_RETURN_ADDRESS: Final = re.compile(
    r"dlopen|dlsym|dlvsym|dlmopen|dladdr1?|_*dl(open|sym|vsym|mopen)|__libc_dl\w+|"
    r"_dl_\w+|__tls_get_addr\w*|_start|__restore(_rt)?|_?mcount|__fentry__|__cyg_profile_\w+|"
    r"__x86[._][\w.]+|__llvm_\w*thunk\w*|__stack_chk_fail|__morestack\w*|"
    r"_Unwind_\w+|__cxa_(throw|rethrow|begin_catch|end_catch|call_\w+)|__gxx_personality\w*|"
    r"__gcc_\w+|__register_frame\w*|__deregister_frame\w*|uw_\w+|unwind_\w+|backtrace|"
    r"__backtrace|pthread_exit|__pthread_exit|__do_cancel|__pthread_unwind\w*|"
    r"__libc_start_main\w*|__libc_start_call_main"
)
_LOADER: Final = re.compile(r"ld(-linux|64|-musl)?(-[-.\w]+)?\.so(\.\d+)?")
_RUNTIME_LIBRARY: Final = re.compile(r"(libc|libpthread|libgcc_s|ld-linux\S*)([-.]\S*)?\.so\S*")
_UNWIND_LIBRARY: Final = re.compile(r"lib(gcc_s|unwind)\S*\.so\S*")


@dataclass(frozen=True, slots=True)
class ProcessTraits:
    """What of a process forbids hijacked returns.

    Attributes:
        has_shadow_stack: Returns are checked by the processor (H43).
        unwinder_refusal: Exceptions can pass, and the unwinder cannot be hooked.
    """

    has_shadow_stack: bool = False
    unwinder_refusal: bool = False


@dataclass(frozen=True, slots=True)
class FunctionTraits:
    """What of a function forbids hijacked returns.

    Attributes:
        names: All linkage names.
        module: File name of its module.
        is_synthetic: It has no name in the file.
        is_fragment: It is jumped to with a frame in place.
        runtime_owns_stacks: Its runtime moves stacks (Go), or takes return addresses from
            them and looks for its own code there (V8, HotSpot, .NET).
    """

    names: tuple[str, ...]
    module: str
    is_synthetic: bool
    is_fragment: bool
    runtime_owns_stacks: bool


def exit_refusal(function: FunctionTraits, process: ProcessTraits) -> Refusal | None:
    """Why the exit of a function is not traced; None where it is."""
    if process.has_shadow_stack:
        return Refusal.SHADOW_STACK
    if function.runtime_owns_stacks:
        return Refusal.MOVING_STACKS
    if function.is_fragment:
        return Refusal.IRREGULAR_FRAME
    if _LOADER.fullmatch(function.module) or _UNWIND_LIBRARY.fullmatch(function.module):
        return Refusal.READS_RETURN_ADDRESS
    if function.is_synthetic and _RUNTIME_LIBRARY.fullmatch(function.module):
        # Stripped C libraries: hand-written assembly cannot be told by name.
        return Refusal.READS_RETURN_ADDRESS
    for name in function.names:
        if _RETURNS_TWICE.fullmatch(name):
            return Refusal.RETURNS_TWICE
        if _READS_RETURN_ADDRESS.fullmatch(name):
            return Refusal.READS_RETURN_ADDRESS
    if process.unwinder_refusal:
        return Refusal.UNWINDER_NOT_HOOKABLE
    return None
