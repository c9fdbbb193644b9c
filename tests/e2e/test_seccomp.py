"""H60: processes under seccomp filters are traced where the filters allow all of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.support import WRITERS, patch, recording
from tests.support import bpf
from tests.support.bpf import Rule
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_agent.engine.needed_calls import needed_calls
from uftrace_agent.process.machine import native_machine
from uftrace_remote import SyncAgentClient, UnsupportedTargetError
from uftrace_remote.values import PatchOptions, ProcessRef

# What the program itself does, and its end.
_OWN_CALLS = ("read", "write", "close", "poll", "futex", "nanosleep", "clock_nanosleep", "mmap",
              "munmap", "mprotect", "madvise", "brk", "rt_sigprocmask", "rt_sigreturn",
              "rt_sigaction", "exit", "exit_group", "getpid", "gettid", "tgkill", "prctl",
              "sigaltstack", "memfd_create", "restart_syscall", "seccomp")  # fmt: skip
_SYSTEMD_DENIES = (
    ("mount", "unshare", "setns"),
    ("init_module", "kexec_load", "reboot", "swapon"),
    ("ptrace", "perf_event_open", "bpf"),
    ("settimeofday", "keyctl", "userfaultfd"),
)


def _only_what_is_needed() -> bytes:
    """All that the program does by itself, and what tracing it needs, or it dies."""
    needed = {call.number for call in needed_calls(native_machine().calls)}
    own = {"read", "write", "poll", "futex", "nanosleep", "clock_nanosleep", "exit", "exit_group"}
    names = [name for name, number in bpf.NUMBERS.items() if number in needed or name in own]
    rules = []
    for name in names:
        protections = [(3, 7), (5, 7)]
        if name == "mmap":  # private data, private code and shared data alone
            rules += [Rule(name, bpf.ALLOW, 2, mask, value) for value, mask in protections]
        elif name == "madvise":  # 4: a thread's end
            rules += [Rule(name, bpf.ALLOW, 2, value=value) for value in (4, 16, 18)]
        elif name == "prctl":
            rules.append(Rule(name, bpf.ALLOW, 0, value=25))
        elif name == "memfd_create":
            rules.append(Rule(name, bpf.ALLOW, 1, value=3))
        else:
            rules.append(Rule(name, bpf.ALLOW))
    return bpf.filter_program(rules, bpf.KILL_PROCESS)


_ALLOWED = {
    "docker": [bpf.docker_like()],
    "systemd": [bpf.allowing(*_OWN_CALLS), *(bpf.denying(bpf.EPERM, *n) for n in _SYSTEMD_DENIES)],
    "memory_deny_write_execute": [bpf.memory_deny_write_execute()],
    "logged": [bpf.denying(bpf.LOG, "mmap", "memfd_create", "gettid")],
    "no_more_than_needed": [_only_what_is_needed()],
}


@contextmanager
def _jailed(
    folder: Path, filters: Sequence[bytes] = (), prefix: str = "", *arguments: str
) -> Iterator[TargetProcess]:
    names = []
    for index, program in enumerate(filters):
        path = folder / f"filter{index}"
        path.write_bytes(program)
        names.append(f"{prefix}{path}")
    with TargetProcess(build("jailed"), *names, *arguments) as target:
        yield target


def _trace(client: SyncAgentClient, target: TargetProcess) -> None:
    """Attach, patch by each writer, record, detach, and see that it lives as before."""
    with recording(client, target.pid) as (session_id, recorder):
        for writer in WRITERS:
            patch(client, session_id, ["leaf", "chain"], PatchOptions(writer=writer))
            before = recorder.recording.records
            wait_until(lambda before=before: recorder.recording.records > before + 1000)
            client.unpatch(session_id)
        patch(client, session_id, ["leaf", "worker", "harness_*"])
        target.burst(1000)
        client.detach(session_id)
    seen = recorder.finish()
    assert seen.entries("leaf") > 1000
    assert_text_unchanged(target.pid)
    assert_not_traced(target.pid)
    target.wait_iterations(100)
    target.quit()


@pytest.mark.parametrize("name", _ALLOWED)
def test_h60_a_filter_that_allows_tracing_is_no_obstacle(
    client: SyncAgentClient, tmp_path: Path, name: str
) -> None:
    with _jailed(tmp_path, _ALLOWED[name]) as target:
        _trace(client, target)


def test_h60_a_process_that_gave_up_gaining_execute_rights(
    client: SyncAgentClient, tmp_path: Path
) -> None:
    """PR_SET_MDWE, as systemd sets it where the kernel has it: code memory is never writable."""
    with _jailed(tmp_path, [], "", "mdwe") as target:
        _trace(client, target)


_EXECUTE = Rule("mmap", bpf.EPERM, 2, 4, 4)
_REFUSED = {
    "memfd_create killed": ([bpf.denying(bpf.KILL_PROCESS, "memfd_create")], "memfd_create"),
    "executable memory": ([bpf.filter_program([_EXECUTE], bpf.ALLOW)], "mmap(PROT_READ|PROT_EXEC)"),
    "one of several": (
        [bpf.docker_like(), bpf.denying(bpf.TRAP, "gettid"), bpf.memory_deny_write_execute()],
        "gettid",
    ),
    "no way back": ([bpf.denying(bpf.KILL_PROCESS, "restart_syscall")], "restart_syscall"),
    "a supervisor's": ([bpf.denying(bpf.TRACE, "mmap")], "mmap(PROT_READ|PROT_WRITE)"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_h60_a_filter_that_forbids_a_call_is_respected(
    client: SyncAgentClient, tmp_path: Path, name: str
) -> None:
    filters, call = _REFUSED[name]
    with _jailed(tmp_path, filters) as target:
        maps = Path(f"/proc/{target.pid}/maps").read_text()
        for _ in range(3):
            with pytest.raises(UnsupportedTargetError) as caught:
                client.attach(ProcessRef(target.pid))
            assert caught.value.reason == "SECCOMP_FILTER"
            assert call in str(caught.value) and caught.value.hint
        assert Path(f"/proc/{target.pid}/maps").read_text() == maps
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        # Nobody was woken, or killed by the stop alone.
        target.wait_iterations(100)
        target.quit()


@pytest.mark.parametrize("call", ["gettid", "restart_syscall"])
def test_h60_the_filter_of_one_thread_counts(
    client: SyncAgentClient, tmp_path: Path, call: str
) -> None:
    with _jailed(tmp_path, [bpf.denying(bpf.KILL_PROCESS, call)], "one:") as target:
        for _ in range(10):
            with pytest.raises(UnsupportedTargetError) as caught:
                client.attach(ProcessRef(target.pid))
            assert caught.value.reason == "SECCOMP_FILTER" and "thread" in str(caught.value)
        target.wait_iterations(100)
        target.quit()


def test_h60_a_filter_of_one_thread_that_allows_tracing(
    client: SyncAgentClient, tmp_path: Path
) -> None:
    with _jailed(tmp_path, [bpf.docker_like()], "one:") as target:
        _trace(client, target)


def test_h60_a_filter_that_comes_after_the_attach(client: SyncAgentClient, tmp_path: Path) -> None:
    """What needs no more calls goes on; the rest is refused, and the process lives."""
    with _jailed(tmp_path, [bpf.denying(bpf.KILL_PROCESS, "mmap")], "later:") as target:
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["leaf"])
            assert target.command("tighten") == "tightened"
            with pytest.raises(UnsupportedTargetError) as caught:
                # Stubs within reach of another module need memory of their own.
                client.patch(session_id, ["*", "libc.so.6!*"])
            assert caught.value.reason == "SECCOMP_FILTER"
            wait_until(lambda: recorder.recording.records > 1000)
            client.detach(session_id)
        assert recorder.finish().entries("leaf") > 0
        assert_text_unchanged(target.pid)
        target.wait_iterations(100)
        target.quit()


# What an agent does, and what it is told.
_ATTACH = """
import sys
from uftrace_agent.errors import AgentError
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.session.attaching import attach
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache
for _ in range(int(sys.argv[1])):
    try:
        attach(resolve(ProcessId(int(sys.argv[2]))), RecordingOptions(1 << 16, 8), ImageCache())
    except AgentError as error:
        print(error.reason, error.message)
"""
_WITHOUT_ADMIN = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")


def test_h60_filters_that_cannot_be_read_are_not_trusted(tmp_path: Path) -> None:
    # One thread's, which sleeps most of the time: the main thread's read is no matter.
    with _jailed(tmp_path, [bpf.denying(bpf.KILL_PROCESS, "restart_syscall")], "one:") as target:
        asked = subprocess.run(
            [*_WITHOUT_ADMIN, sys.executable, "-c", _ATTACH, "10", str(target.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = asked.stdout.splitlines()
        assert len(lines) == 10
        assert all(
            line.startswith("SECCOMP_FILTER ") and "cannot be read" in line for line in lines
        ), lines
        assert_text_unchanged(target.pid)
        target.wait_iterations(100)
        target.quit()
