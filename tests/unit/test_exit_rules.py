"""Which functions are traced at their entry only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uftrace_agent.engine.exit_rules import FunctionTraits, ProcessTraits, exit_refusal
from uftrace_agent.engine.model import Refusal

PLAIN = FunctionTraits(("work",), "app", False, False, False)
PROCESS = ProcessTraits()


def refusal_of(name: str, module: str = "libc.so.6") -> Refusal | None:
    return exit_refusal(replace(PLAIN, names=(name,), module=module), PROCESS)


@pytest.mark.parametrize(
    "name",
    [
        *("work", "main", "malloc", "fork", "longjmp", "setjmp_count", "vfork_server", "cloned"),
        *("Unwind_Cleanup", "_ZN3app6dlopenEv", "my_dlopen", "backtracer", "unwinder", "mcounter"),
        *("pthread_create", "__libc_fork", "start_context_menu", "PyEval_EvalFrame"),
    ],
)
def test_ordinary_functions_are_traced_to_their_exit(name: str) -> None:
    assert refusal_of(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *("setjmp", "_setjmp", "sigsetjmp", "__sigsetjmp", "vfork", "__vfork", "__libc_vfork"),
        *("getcontext", "__getcontext", "swapcontext", "setcontext", "clone", "__clone"),
        *("clone3", "__clone3", "__clone_internal", "savectx", "__start_context"),
    ],
)
def test_h37_what_returns_twice_is_traced_at_entry(name: str) -> None:
    assert refusal_of(name) is Refusal.RETURNS_TWICE


@pytest.mark.parametrize(
    "name",
    [
        *("dlopen", "dlsym", "dlvsym", "dlmopen", "__libc_dlopen_mode", "_dl_runtime_resolve"),
        *("__tls_get_addr", "_start", "__restore_rt", "mcount", "_mcount", "__fentry__"),
        *("__cyg_profile_func_enter", "__x86.get_pc_thunk.bx", "__x86_indirect_thunk_rax"),
        *("_Unwind_RaiseException", "_Unwind_Find_FDE", "__cxa_throw", "__cxa_rethrow"),
        *("__gxx_personality_v0", "backtrace", "pthread_exit", "__libc_start_main"),
        *("__stack_chk_fail", "__morestack", "uw_frame_state_for", "__register_frame_info"),
    ],
)
def test_h41_what_looks_at_its_return_address_is_traced_at_entry(name: str) -> None:
    assert refusal_of(name) is Refusal.READS_RETURN_ADDRESS


def test_every_name_of_a_function_counts() -> None:
    both = replace(PLAIN, names=("__libc_something", "vfork"))
    assert exit_refusal(both, PROCESS) is Refusal.RETURNS_TWICE


@pytest.mark.parametrize(
    "module",
    [
        *("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "ld-linux.so.2", "ld64.so.1"),
        *("ld-musl-x86_64.so.1", "ld-2.31.so", "ld.so", "libgcc_s.so.1", "libunwind.so.8"),
        *("libunwind-x86_64.so.8", "libgcc_s-12.so.1"),
    ],
)
def test_h33_loaders_and_unwinders_are_traced_at_entry(module: str) -> None:
    assert refusal_of("anything", module) is Refusal.READS_RETURN_ADDRESS


@pytest.mark.parametrize(
    "module", ["ldap.so", "ldb.so.2", "libldap-2.5.so.0", "ld", "libgcc.so", "gcc_s.so", "child.so"]
)
def test_names_that_look_like_a_loaders_are_none(module: str) -> None:
    assert refusal_of("anything", module) is None


@pytest.mark.parametrize("module", ["libc.so.6", "libc-2.31.so", "libpthread.so.0"])
def test_h33_nameless_functions_of_the_c_library_are_traced_at_entry(module: str) -> None:
    nameless = replace(PLAIN, is_synthetic=True, module=module)
    assert exit_refusal(nameless, PROCESS) is Refusal.READS_RETURN_ADDRESS


@pytest.mark.parametrize("module", ["libcrypto.so.3", "app", "libcap.so.2"])
def test_nameless_functions_of_others_are_traced_to_their_exit(module: str) -> None:
    assert exit_refusal(replace(PLAIN, is_synthetic=True, module=module), PROCESS) is None


@pytest.mark.parametrize(
    ("function", "process", "wanted"),
    [
        (PLAIN, ProcessTraits(has_shadow_stack=True), Refusal.SHADOW_STACK),
        (replace(PLAIN, runtime_owns_stacks=True), PROCESS, Refusal.MOVING_STACKS),
        (replace(PLAIN, is_fragment=True), PROCESS, Refusal.IRREGULAR_FRAME),
        (PLAIN, ProcessTraits(unwinder_refusal=True), Refusal.UNWINDER_NOT_HOOKABLE),
    ],
)
def test_other_reasons(function: FunctionTraits, process: ProcessTraits, wanted: Refusal) -> None:
    assert exit_refusal(function, process) is wanted


def test_what_nothing_can_be_done_about_is_named_first() -> None:
    everything = FunctionTraits(("vfork",), "libc.so.6", True, True, True)
    assert exit_refusal(everything, ProcessTraits(True, True)) is Refusal.SHADOW_STACK
