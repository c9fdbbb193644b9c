"""The `trap` writer on real programs: nobody stands still, no signal is lost, and where it
could be deadly it is not used."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import PatchForm, PatchStatus, PatchWriter, RefusalReason
from uftrace_remote.errors import UftraceError
from uftrace_remote.values import PatchOptions, PatchResult, ProcessRef, UnpatchResult

WRITER_UNSUITABLE = RefusalReason.WRITER_UNSUITABLE
TRAP = PatchOptions(writer=PatchWriter.TRAP)
NAMES = ["leaf", "middle", "outer"]
SIGTRAP_BIT = 1 << 4


def caught(pid: int) -> int:
    """The signals that have a handler."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.M)[1], 16)  # type: ignore[index]


def trap_patch(client: SyncAgentClient, session_id: str, names: list[str]) -> PatchResult:
    """Patch by traps. On a machine that is busy a thread may be kept from leaving libc,
    where all signals are blocked, for so long that it is taken for one that blocks them."""
    for _ in range(10):
        result = client.patch(session_id, names, TRAP)
        reasons = {each.detail for each in result.results if each.status is PatchStatus.REFUSED}
        if not reasons:
            return result
        assert all("blocks SIGTRAP" in reason for reason in reasons), reasons
    raise AssertionError("no moment without a thread in libc")


def trap_unpatch(client: SyncAgentClient, session_id: str) -> UnpatchResult:
    for _ in range(10):
        try:
            return client.unpatch(session_id, writer=PatchWriter.TRAP)
        except UftraceError as error:
            assert error.reason == "TARGET_BUSY", error
    raise AssertionError("no moment for traps")


@contextmanager
def attached(client: SyncAgentClient, pid: int) -> Iterator[str]:
    """A session whose records nobody reads: busy functions make more than a test can."""
    session_id = client.attach(ProcessRef(pid)).session.session_id
    yield session_id
    client.detach(session_id)


# -- a program with a handler of its own ---------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [(), ("own",), ("slow",), ("own", "calls"), ("own", "slow"), ("own", "calls", "slow")],
    ids=" ".join,
)
def test_h52_no_signal_of_the_program_is_lost(
    client: SyncAgentClient, arguments: tuple[str, ...]
) -> None:
    """It counts each SIGTRAP that it causes: breakpoints of its own, sent and queued ones.
    `slow`: handlers of another signal interrupt ours and those of the program, for long
    times. `calls`: its handler calls the functions that change."""
    with TargetProcess(build("trapper"), *arguments) as target:
        before = target.command("disposition")
        with attached(client, target.pid) as session_id:
            for _ in range(20):
                if "own" in arguments:
                    refused = client.patch(session_id, NAMES, TRAP)
                    assert {r.refusal for r in refused.results} == {WRITER_UNSUITABLE}
                    # That it handles it, or that a thread is in that handler.
                    assert "SIGTRAP" in refused.results[0].detail
                    result = client.patch(session_id, NAMES)
                    assert PatchWriter.TRAP not in {r.writer for r in result.results}
                else:
                    result = trap_patch(client, session_id, NAMES)
                    assert {r.writer for r in result.results} == {PatchWriter.TRAP}
                assert text_differences(target.pid)
                target.wait_iterations(3)
                undone = client.unpatch(session_id)
                assert {r.status for r in undone.results} == {PatchStatus.DISABLED}
                assert_text_unchanged(target.pid)
        # Its action is its own again: handler, flags and mask.
        assert target.command("disposition") == before
        assert bool(caught(target.pid) & SIGTRAP_BIT) == ("own" in arguments)
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.quit()


def test_h52_a_program_that_changes_its_action_all_the_time(client: SyncAgentClient) -> None:
    """No traps for it: what counts is that it goes on, and that its action is one of its
    own in the end."""
    with TargetProcess(build("trapper"), "own", "change") as target:
        with attached(client, target.pid) as session_id:
            for _ in range(20):
                client.patch(session_id, NAMES)
                target.wait_iterations(3)
                client.unpatch(session_id)
        assert target.command("disposition").startswith("disposition own ")
        assert_text_unchanged(target.pid)
        target.quit()


def test_h54_between_two_requests_no_handler_is_left(client: SyncAgentClient) -> None:
    """Patched functions need no handler: only the change of them does."""
    with TargetProcess(build("trapper")) as target:
        with attached(client, target.pid) as session_id:
            trap_patch(client, session_id, NAMES)
            assert not caught(target.pid) & SIGTRAP_BIT
            assert target.command("disposition") == "disposition default flags=0 mask=0"
            trap_unpatch(client, session_id)
            assert not caught(target.pid) & SIGTRAP_BIT
        target.quit()


def test_nobody_stands_still_for_long(client: SyncAgentClient) -> None:
    """The longest pause of each thread is told, and so is that no stop was needed."""
    with TargetProcess(build("trapper")) as target:
        with attached(client, target.pid) as session_id:
            result = trap_patch(client, session_id, NAMES)
            assert result.writer_detail == ""
            assert result.longest_pause_ns == max(result.pauses.values(), default=0)
            assert result.longest_pause_ns < 50_000_000  # that of a stop may be as long
            trap_unpatch(client, session_id)
        target.quit()


@pytest.mark.parametrize(
    ("variant", "form"),
    [
        ("clang-pfe16-8", PatchForm.NEAR),
        ("gcc-O2", PatchForm.PUN),
        ("cyg", PatchForm.CALL),
        ("clang-pfe5", PatchForm.NOP),
        ("xray-bare", PatchForm.SLED),
    ],
)
def test_every_form_can_be_changed_by_traps(
    client: SyncAgentClient, variant: str, form: PatchForm
) -> None:
    """While three threads run through them. A plan that was made for a stop, where one
    byte is worth less, is carried out by traps later."""
    with TargetProcess(build("kinds", variant)) as target:
        with attached(client, target.pid) as session_id:
            seen: set[PatchForm] = set()
            client.patch(session_id, ["kind_*"], PatchOptions(writer=PatchWriter.STOP))
            client.unpatch(session_id)
            for _ in range(10):
                result = trap_patch(client, session_id, ["kind_*"])
                assert {r.writer for r in result.results} == {PatchWriter.TRAP}
                seen |= {r.form for r in result.results}
                target.wait_iterations(20)
                trap_unpatch(client, session_id)
                assert_text_unchanged(target.pid)
        assert form in seen
        target.quit()


def test_auto_says_for_each_function_who_changes_it(client: SyncAgentClient) -> None:
    """One byte: at once. More: by traps. In libc: by a stop, and it is said why."""
    with TargetProcess(build("trapper")) as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        result = client.patch(session_id, ["*", "libc.so.6!str*"])
        writers: dict[str, set[PatchWriter]] = {}
        for each in result.results:
            if each.status is PatchStatus.ENABLED:
                writers.setdefault(each.function.module, set()).add(each.writer)
                if each.writer is PatchWriter.BYTE:
                    assert each.form in (PatchForm.PUN, PatchForm.SLED)
        assert writers["libc.so.6"] <= {PatchWriter.BYTE, PatchWriter.STOP}
        if PatchWriter.STOP in writers["libc.so.6"]:
            assert "libc.so.6 runs with all signals blocked" in result.writer_detail
        client.detach(session_id)
        assert_text_unchanged(target.pid)
        target.quit()


# -- guards ---------------------------------------------------------------------------------

PROGRAM = """
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/syscall.h>
%(declarations)s
volatile unsigned long rounds;
__attribute__((noinline, noipa)) unsigned long work(unsigned long x) { return x * 3 + 1; }
__attribute__((noinline, noipa)) unsigned long other(unsigned long x) { return x * 7 + 2; }
static void *run(void *unused)
{
    for (unsigned long x = 0;; x++, rounds++)
        if (work(x) != x * 3 + 1 || other(x) != x * 7 + 2)
            _exit(3);
    return unused;
}
static void handler(int number) { (void)number; }
int main(void)
{
    pthread_t thread;
    char line[64];
    (void)handler;
    setvbuf(stdout, 0, _IOLBF, 0);
    %(prepare)s
    pthread_create(&thread, 0, run, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        printf("rounds %%lu\\n", rounds);
    return 0;
}
"""
NEVER = "if (getpid() == 1) %s;"  # imported is enough


@dataclass(frozen=True)
class Guard:
    """A program for which traps would be dangerous, and what is said of it."""

    name: str
    hazard: int
    prepare: str
    words: str
    declarations: str = ""
    flags: tuple[str, ...] = ()


def action(flags: str = "0", signals: str = "", number: str = "SIGUSR1") -> str:
    return (
        f"struct sigaction a = {{ .sa_handler = handler, .sa_flags = {flags} }};"
        f"sigemptyset(&a.sa_mask); {signals} sigaction({number}, &a, 0);"
    )


# By the system call, which no import tells of.
BLOCK = "unsigned long set = 1ul << 4; syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, 0, 8);"
GUARDS = [
    Guard("a thread blocks it", 51, BLOCK, "blocks SIGTRAP"),
    Guard("it is ignored", 51, "signal(SIGTRAP, SIG_IGN);", "ignores SIGTRAP"),
    Guard(
        "pthread_sigmask", 51, NEVER % "pthread_sigmask(0, 0, 0)", "can block SIGTRAP (pthread_si"
    ),
    Guard("sigprocmask", 51, NEVER % "sigprocmask(0, 0, 0)", "can block SIGTRAP (sigprocmask"),
    Guard("sigsuspend", 51, NEVER % "sigsuspend(&(sigset_t){0})", "can block SIGTRAP"),
    Guard("fork", 61, NEVER % "fork()", "can fork in the middle (fork)"),
    Guard("vfork", 61, NEVER % "vfork()", "can fork in the middle (vfork)"),
    Guard(
        "swapcontext", 53, NEVER % "swapcontext(0, 0)", "too small for a signal",
        "#include <ucontext.h>",
    ),
    Guard(
        "a handler that blocks it", 51, action(signals="sigaddset(&a.sa_mask, SIGTRAP);"),
        "handler of signal 10 runs with SIGTRAP blocked",
    ),
    Guard(
        "a handler that blocks all", 51, action(signals="sigfillset(&a.sa_mask);"),
        "handler of signal 10 runs with SIGTRAP blocked",
    ),
    Guard(
        "a handler on a stack of its own", 53, action("SA_ONSTACK"), "on a stack of its own"
    ),
    Guard("SA_RESETHAND", 52, action("SA_RESETHAND", number="SIGTRAP"), "handles SIGTRAP itself"),
    Guard("a static program", 53, "", "C library inside", flags=("-static",)),
]  # fmt: skip


@contextmanager
def running(binary: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0, out
    finally:
        process.kill()
        process.communicate()


def rounds(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("rounds\n")
    process.stdin.flush()
    return int(process.stdout.readline().split()[1])


@pytest.mark.parametrize("guard", GUARDS, ids=[f"h{guard.hazard} {guard.name}" for guard in GUARDS])
def test_h51_h52_h53_h61_where_traps_could_kill_none_is_put(
    client: SyncAgentClient, tmp_path: Path, guard: Guard
) -> None:
    source, binary = tmp_path / "guarded.c", tmp_path / "guarded"
    source.write_text(PROGRAM % {"prepare": guard.prepare, "declarations": guard.declarations})
    command = ["gcc", "-O2", "-pthread", *guard.flags, "-o", str(binary), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    with running(binary) as process:
        session_id = client.attach(ProcessRef(process.pid)).session.session_id
        # WHEN traps are asked for
        result = client.patch(session_id, ["work", "other"], TRAP)
        # THEN that is refused, with the reason and what to do
        assert {r.status for r in result.results} == {PatchStatus.REFUSED}
        assert {r.refusal for r in result.results} == {RefusalReason.WRITER_UNSUITABLE}
        assert all(guard.words in r.detail for r in result.results), result.results[0].detail
        assert all("use auto or stop" in r.detail for r in result.results)
        changed = {each.address for each in text_differences(process.pid)}
        assert not changed & {r.function.address + n for r in result.results for n in range(16)}
        # WHEN it is left to the agent
        for _ in range(3):
            result = client.patch(session_id, ["work", "other"])
            # THEN it is done, without traps, and where by a stop it is said why
            assert {r.status for r in result.results} == {PatchStatus.ENABLED}
            writers = {r.writer for r in result.results}
            assert writers <= {PatchWriter.BYTE, PatchWriter.STOP}
            if PatchWriter.STOP in writers:
                assert guard.words in result.writer_detail
            seen = rounds(process)
            client.unpatch(session_id)
            assert rounds(process) >= seen
        client.detach(session_id)
        assert_text_unchanged(process.pid)


def test_h53_no_trap_is_put_into_the_c_library(client: SyncAgentClient) -> None:
    with TargetProcess(build("trapper")) as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        for module in ("libc.so.6", "ld-linux-x86-64.so.2"):
            name = "strlen" if module.startswith("libc") else "_dl_catch_exception"
            names = [f"{module}!*{name}*"]
            result = client.patch(session_id, names, TRAP)
            refusals = {r.refusal for r in result.results}
            assert RefusalReason.WRITER_UNSUITABLE in refusals
            assert not result.enabled_count
        client.detach(session_id)
        assert_text_unchanged(target.pid)
        target.quit()


def test_h53_no_trap_is_put_into_a_go_program(client: SyncAgentClient) -> None:
    with TargetProcess(build("gopher", "go")) as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        result = client.patch(session_id, ["main.*"], TRAP)
        assert {r.refusal for r in result.results} == {RefusalReason.WRITER_UNSUITABLE}
        client.detach(session_id)
        assert_text_unchanged(target.pid)
        target.quit()


def test_threads_that_come_and_go_meanwhile(client: SyncAgentClient) -> None:
    """In the C library, which makes and ends them, all signals are blocked; but there is
    no trap."""
    with TargetProcess(build("threads_churn", "gcc-O2")) as target:
        used: set[PatchWriter] = set()
        with attached(client, target.pid) as session_id:
            for _ in range(15):
                used |= {r.writer for r in client.patch(session_id, ["*"]).results}
                client.unpatch(session_id)
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.quit()


def test_two_clients_toggle_by_different_writers(client: SyncAgentClient) -> None:
    """Requests of one session never overlap, whoever makes them."""
    with TargetProcess(build("trapper")) as target:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        errors: list[BaseException] = []

        def toggle(name: str, writer: PatchWriter) -> None:
            try:
                for _ in range(10):
                    client.patch(session_id, [name], PatchOptions(writer=writer))
                    client.unpatch(session_id, [name])
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=toggle, args=each)
            for each in (("leaf", PatchWriter.TRAP), ("middle", PatchWriter.STOP),
                         ("outer", PatchWriter.AUTO))
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        client.detach(session_id)
        assert_text_unchanged(target.pid)
        target.quit()
