"""Requests that come while the process cannot stop, executes, or changes its modules."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.support import enabled_names, patch, recording
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_remote import SyncAgentClient
from uftrace_remote.enums import PatchWriter, RefusalReason
from uftrace_remote.errors import BusyTargetError, UftraceError
from uftrace_remote.values import PatchOptions, ProcessRef


@contextmanager
def _conversation(folder: Path, source: str, *arguments: str) -> Iterator[Conversation]:
    (folder / "program.c").write_text(source)
    binary = folder / "program"
    command = ["gcc", "-O2", "-o", binary, folder / "program.c", "-ldl"]
    subprocess.run(command, check=True)
    process = subprocess.Popen(
        [binary, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    talk = Conversation(process)
    try:
        assert talk.hear() == "ready"
        yield talk
        process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


class Conversation:
    """A program that is told single letters and answers in lines."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    def tell(self, letter: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(letter.encode())

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def ask(self, letter: str) -> str:
        self.tell(letter)
        return self.hear()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# -- threads that do not stop -------------------------------------------------------------

_VFORK = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
__attribute__((noinline, noipa)) long work(long n) { return n * 3 + 1; }
__attribute__((noinline, noipa)) long more(long n) { return n * 5 + 1; }
static void say(const char *line) { if (write(1, line, strlen(line)) < 0) _exit(1); }
int main(void)
{
    char letter;
    volatile long sum = 0;
    say("ready\n");
    while (read(0, &letter, 1) == 1) {
        if (letter == 'v') {
            if (!vfork()) { say("in\n"); _exit(read(0, &letter, 1) != 1); }
            say("out\n");
        } else {
            for (int i = 0; i < 1000; i++) sum += work(i) + more(i);
            say("worked\n");
        }
    }
    return 0;
}
"""


def _assert_does_not_stop(client: SyncAgentClient, session_id: str, name: str) -> None:
    result = client.patch(session_id, [name], PatchOptions(writer=PatchWriter.STOP))
    assert [r.refusal for r in result.results] == [RefusalReason.STOP_TIMED_OUT]
    assert all(r.detail for r in result.results)


def test_h70_a_thread_that_nothing_can_stop(client: SyncAgentClient, tmp_path: Path) -> None:
    """A parent in vfork sleeps until its child is done, whatever happens."""
    with _conversation(tmp_path, _VFORK) as program:
        assert program.ask("v") == "in"
        wait_until(lambda: _state(program.pid) == "D")
        with pytest.raises(BusyTargetError) as caught:
            client.attach(ProcessRef(program.pid))
        assert caught.value.hint
        assert_text_unchanged(program.pid)
        assert_not_traced(program.pid)
        assert program.ask("x") == "out"
        with recording(client, program.pid) as (session_id, recorder):
            patch(client, session_id, ["work"])
            assert program.ask("v") == "in"
            wait_until(lambda: _state(program.pid) == "D")
            _assert_does_not_stop(client, session_id, "more")
            assert_not_traced(program.pid)
            assert program.ask("x") == "out"
            assert program.ask("w") == "worked"
            patch(client, session_id, ["more"], PatchOptions(writer=PatchWriter.STOP))
            assert program.ask("w") == "worked"
            client.detach(session_id)
        seen = recorder.finish()
        assert (seen.entries("work"), seen.entries("more")) == (2000, 1000)
        assert_text_unchanged(program.pid)


class Freezer:
    """A cgroup with one process, which can be frozen.

    Attributes:
        freeze: Freeze it, or let it go on.
        is_first: Whether it is of cgroups' first version: nothing stops a thread then. In the
            second one a frozen thread stops for a tracer, and is frozen again.
    """

    def __init__(self, freeze: Callable[[bool], None], is_first: bool) -> None:
        self.freeze = freeze
        self.is_first = is_first


@contextmanager
def _freezer(pid: int) -> Iterator[Freezer]:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    first = [m[1] for m in mounts if m[2] == "cgroup" and "freezer" in m[3].split(",")]
    second = [m[1] for m in mounts if m[2] == "cgroup2"]
    group = Path((first or second)[0], f"uftrace-test-{os.getpid()}")
    group.mkdir()
    control = group / ("freezer.state" if first else "cgroup.freeze")
    words = ("THAWED", "FROZEN") if first else ("0", "1")
    told = group / ("freezer.state" if first else "cgroup.events")

    def freeze(on: bool) -> None:
        control.write_text(words[on])
        expected = words[on] if first else f"frozen {words[on]}"
        wait_until(lambda: expected in told.read_text())

    procs = group / "cgroup.procs"
    procs.write_text(str(pid))
    try:
        yield Freezer(freeze, bool(first))
    finally:
        control.write_text(words[False])
        with suppress(ProcessLookupError):  # it has ended
            group.parent.joinpath("cgroup.procs").write_text(str(pid))
        wait_until(lambda: not procs.read_text())
        group.rmdir()


def test_h70_a_frozen_process(client: SyncAgentClient) -> None:
    with TargetProcess(build("busy8")) as target, _freezer(target.pid) as freezer:
        freezer.freeze(True)
        with pytest.raises(BusyTargetError) as caught:
            client.attach(ProcessRef(target.pid))
        assert caught.value.hint
        assert_text_unchanged(target.pid)
        freezer.freeze(False)
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["chain_*"])
            wait_until(lambda: recorder.recording.records > 1000)
            freezer.freeze(True)
            if freezer.is_first:
                _assert_does_not_stop(client, session_id, "leaf")
                freezer.freeze(False)
            patch(client, session_id, ["leaf"], PatchOptions(writer=PatchWriter.STOP))
            freezer.freeze(False)
            client.detach(session_id)
        assert recorder.finish().entries("chain_a") > 0
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.wait_iterations(10)
        target.quit()


# -- another program, another module ------------------------------------------------------


@pytest.mark.parametrize("how", ["exec", "threadexec"])
def test_h63_exec_at_any_moment(client: SyncAgentClient, how: str) -> None:
    """A process that executes itself all the time, and requests that do not wait for that."""
    with TargetProcess(build("exec")) as target:
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                try:
                    session_id = client.attach(ProcessRef(target.pid)).session.session_id
                    client.patch(session_id, ["*"])
                    client.unpatch(session_id)
                    client.patch(session_id, ["*"], PatchOptions(writer=PatchWriter.STOP))
                    client.detach(session_id)
                except UftraceError as error:
                    errors.append(error)

        errors: list[UftraceError] = []
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for round_ in range(25):
                target.wait_iterations(50 * (round_ % 4) + 1)
                target.send(how)
                target.wait_ready()
        finally:
            done.set()
            asking.join()
        kinds = {type(error) for error in errors}
        assert all(issubclass(each, UftraceError) for each in kinds)
        assert not [e for e in errors if e.reason in ("INTERNAL", "ENGINE_FAULT")], errors
        wait_until(lambda: not [s for s in client.sessions() if s.process.pid == target.pid])
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["leaf"])
            wait_until(lambda: recorder.recording.records > 1000)
            client.detach(session_id)
        recorder.finish()
        target.quit()


_REUSE = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static void *module;
static long (*work)(long);
static unsigned char *page;
static void load(const char *path)
{
    module = dlopen(path, RTLD_NOW);
    work = (long (*)(long))dlsym(module, "work");
    page = (unsigned char *)((unsigned long)work & ~4095ul);
}
int main(int argc, char **argv)
{
    char letter;
    setvbuf(stdout, 0, _IONBF, 0);
    load(argv[1]);
    puts("ready");
    while (read(0, &letter, 1) == 1) {
        if (letter == 'w') printf("%ld\n", work(5));
        if (letter == 'u') { dlclose(module); module = 0; puts("gone"); }
        if (letter == '2') {
            unsigned char *before = page;
            load(argv[2]);
            puts(page == before ? "same" : "other");
        }
        if (letter == 'a') { /* code made at run time, at the very place */
            void *at = mmap(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
            if (at != page) return 1;
            memset(page, 0x90, 4096);
#ifdef __x86_64__
            memcpy((void *)work, "\x48\x8d\x47\x02\xc3", 5); /* lea 2(%rdi), %rax; ret */
#else
            memcpy((void *)work, "\x00\x08\x00\x91\xc0\x03\x5f\xd6", 8); /* add x0, x0, 2; ret */
#endif
            __builtin___clear_cache((char *)page, (char *)page + 4096);
            puts("made");
        }
        if (letter == 'c') {
            unsigned long sum = 0;
            for (int i = 0; i < 4096; i++) sum += page[i];
            printf("%lu\n", sum);
        }
    }
    return argc != 3;
}
"""


def test_h83_the_addresses_of_a_patched_module_are_used_again(
    client: SyncAgentClient, tmp_path: Path
) -> None:
    """By code that no file holds, then by another module."""
    modules = []
    for name, factor in (("one", 3), ("two", 7)):
        source, module = tmp_path / f"{name}.c", tmp_path / f"{name}.so"
        source.write_text(f"long work(long n) {{ return n * {factor} + 1; }}\n")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", module, source], check=True)
        modules.append(str(module))
    with _conversation(tmp_path, _REUSE, *modules) as program:
        with recording(client, program.pid) as (session_id, recorder):
            patch(client, session_id, ["one.so!work"])
            assert program.ask("w") == "16"
            assert program.ask("u") == "gone"
            assert program.ask("a") == "made"
            before = program.ask("c")
            # Nothing of ours is written there, neither by a request nor by the detach.
            client.unpatch(session_id)
            assert program.ask("w") == "7"
            client.detach(session_id)
            assert program.ask("c") == before
        recorder.finish()
    with _conversation(tmp_path, _REUSE, *modules) as program:
        with recording(client, program.pid) as (session_id, recorder):
            patch(client, session_id, ["one.so!work"])
            assert program.ask("w") == "16"
            assert program.ask("u") == "gone"
            assert program.ask("2") == "same"
            assert program.ask("w") == "36"
            assert enabled_names(patch(client, session_id, ["two.so!work"])) == {"work"}
            assert program.ask("w") == "36"
            client.detach(session_id)
        assert recorder.finish().entries("work") == 2
        assert_text_unchanged(program.pid)
        assert program.ask("w") == "36"
