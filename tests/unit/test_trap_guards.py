"""When a trap may be put into running code."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest

from uftrace_agent.engine.program import ModuleView
from uftrace_agent.engine.trap_guards import module_refusal, process_refusal
from uftrace_agent.errors import TargetGoneError


@dataclass
class Image:
    imports: frozenset[str]
    is_go: bool = False


@dataclass
class Loaded:
    is_main: bool


@dataclass
class View:
    name: str
    image: Image
    loaded: Loaded = field(default_factory=lambda: Loaded(False))


def view(name: str, *imports: str, main: bool = False, go: bool = False) -> ModuleView:
    return cast(ModuleView, View(name, Image(frozenset(imports), go), Loaded(main)))


APP = view("app", "printf", "malloc", "pthread_create", "sigaction", main=True)
LIBC = view("libc.so.6", "__libc_enable_secure", "pthread_sigmask", "fork")


@contextmanager
def sleeper(prepare: Callable[[], None] = lambda: None) -> Iterator[int]:
    """A process that has become `sleep` with what `prepare` leaves to it."""
    process = subprocess.Popen(
        ["sleep", "60"], preexec_fn=prepare, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def refusal(pid: int, *modules: ModuleView) -> str:
    return process_refusal(pid, modules or (APP, LIBC))


def test_an_ordinary_program_may_be_trapped() -> None:
    with sleeper() as pid:
        assert refusal(pid) == ""


def test_h51_a_thread_that_blocks_it() -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTRAP])

    with sleeper(block) as pid:
        assert refusal(pid) == f"thread {pid} blocks SIGTRAP"


def test_h51_all_signals_blocked_is_sigtrap_blocked() -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    with sleeper(block) as pid:
        assert "blocks SIGTRAP" in refusal(pid)


def test_h51_other_signals_may_be_blocked() -> None:
    def block() -> None:
        others = signal.valid_signals() - {signal.SIGTRAP}
        signal.pthread_sigmask(signal.SIG_BLOCK, others)

    with sleeper(block) as pid:
        assert refusal(pid) == ""


def test_h51_a_process_that_ignores_it() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGTRAP, signal.SIG_IGN)

    with sleeper(ignore) as pid:
        assert refusal(pid) == "the process ignores SIGTRAP"


BLOCKING = (
    *("pthread_sigmask", "sigprocmask", "sigblock", "sigsetmask", "sighold", "sigset"),
    *("sigsuspend", "sigpause", "ppoll", "pselect", "epoll_pwait", "epoll_pwait2"),
    "pthread_attr_setsigmask_np",
)


@pytest.mark.parametrize("name", BLOCKING)
@pytest.mark.parametrize("where", ["app", "libplugin.so"])
def test_h51_what_can_block_it(name: str, where: str) -> None:
    module = view(where, "printf", name, main=where == "app")
    with sleeper() as pid:
        assert refusal(pid, *without_app(where), module, LIBC) == (
            f"{where} can block SIGTRAP ({name})"
        )


@pytest.mark.parametrize("name", ["fork", "_Fork", "vfork", "clone", "daemon", "forkpty"])
def test_h61_what_can_fork(name: str) -> None:
    """The child's copy of the code would keep its traps."""
    with sleeper() as pid:
        assert f"app can fork in the middle ({name})" == refusal(
            pid, view("app", "printf", name, main=True), LIBC
        )


@pytest.mark.parametrize("name", ["makecontext", "swapcontext", "setcontext"])
def test_h53_what_runs_on_small_stacks(name: str) -> None:
    with sleeper() as pid:
        assert "too small for a signal" in refusal(pid, view("app", name, main=True), LIBC)


def test_h53_a_go_runtime() -> None:
    with sleeper() as pid:
        assert "Go runtime of app" in refusal(pid, view("app", "printf", main=True, go=True))


def test_a_static_program_has_its_c_library_inside() -> None:
    with sleeper() as pid:
        assert "C library inside" in refusal(pid, view("app", main=True))
        # A module without imports beside the program is nothing of the kind.
        assert refusal(pid, APP, LIBC, view("libdata.so")) == ""


def test_a_process_that_has_ended() -> None:
    with sleeper() as pid:
        pass
    with pytest.raises(TargetGoneError):
        refusal(pid)


@pytest.mark.parametrize(
    "name",
    [
        *("libc.so.6", "libc-2.31.so", "ld-linux-x86-64.so.2", "libpthread.so.0", "librt.so.1"),
        *("libpthread-2.31.so", "ld-musl-x86_64.so.1", "libc.musl-x86_64.so.1", "libanl.so.1"),
    ],
)
def test_h53_the_c_library_and_the_loader(name: str) -> None:
    """They block all signals around clone, abort and the like."""
    assert "all signals blocked" in module_refusal(view(name))


@pytest.mark.parametrize(
    "name", ["app", "libcrypto.so.3", "libcap.so.2", "libcurl.so.4", "ld.bfd", "librtmp.so.1"]
)
def test_other_modules_may_be_trapped(name: str) -> None:
    assert module_refusal(view(name)) == ""


def without_app(where: str) -> Sequence[ModuleView]:
    return () if where == "app" else (APP,)
