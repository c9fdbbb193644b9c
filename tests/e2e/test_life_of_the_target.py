"""States that a process may be in when the agent comes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.support import WRITERS, patch, recording
from tests.support.target_process import TargetProcess
from tests.support.text_compare import (
    assert_not_traced,
    assert_text_unchanged,
    text_differences,
)
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_remote import NoSuchProcessError, SyncAgentClient, UnsupportedTargetError
from uftrace_remote.enums import EndReason, PatchWriter
from uftrace_remote.values import PatchOptions, ProcessRef

# Only x86-64 has instructions that a trap can take the place of while they change.


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_h67_a_stopped_process_is_patched_and_stays_stopped(client: SyncAgentClient) -> None:
    with TargetProcess(build("busy8", "gcc-O2")) as target:
        os.kill(target.pid, signal.SIGSTOP)
        wait_until(lambda: _state(target.pid) == "T")
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["chain_*"], PatchOptions(writer=PatchWriter.STOP))
            wait_until(lambda: _state(target.pid) == "T")
            os.kill(target.pid, signal.SIGCONT)
            wait_until(lambda: recorder.recording.records > 1000)
            os.kill(target.pid, signal.SIGSTOP)
            wait_until(lambda: _state(target.pid) == "T")
            client.detach(session_id)
        recorder.finish()
        assert _state(target.pid) == "T"
        assert_text_unchanged(target.pid)
        os.kill(target.pid, signal.SIGCONT)
        target.quit()


_LEADERLESS = """
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((noinline, noipa)) long work(long n) { return n * 3 + 1; }
__attribute__((noinline, noipa)) long more(long n) { return n * 5 + 1; }
static void *run(void *unused) {
    volatile long sum = 0;
    for (;;) { for (int i = 0; i < 1000; i++) sum += work(i) + more(i); usleep(100); }
    return unused;
}
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, run, 0);
    puts("ready"); fflush(stdout);
    getchar();
    pthread_exit(0);
}
"""


@contextmanager
def _leaderless(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A program whose main thread ends when its stdin does."""
    source, binary = folder / "leaderless.c", folder / "leaderless"
    source.write_text(_LEADERLESS)
    subprocess.run(["gcc", "-O2", "-pthread", "-o", binary, source], check=True)
    process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def _end_main_thread(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    process.stdin.write("x\n")
    process.stdin.flush()
    wait_until(lambda: _state(process.pid) == "Z")
    # Its own directory shows nothing any more; that of a thread does.
    (thread,) = set(os.listdir(f"/proc/{process.pid}/task")) - {str(process.pid)}
    return int(thread)


def test_h64_a_process_whose_main_thread_has_ended(client: SyncAgentClient, tmp_path: Path) -> None:
    with _leaderless(tmp_path) as process:
        thread = _end_main_thread(process)
        (listed,) = [each for each in client.processes("leaderless") if each.pid == process.pid]
        assert listed.attachable and "leaderless" in listed.executable
        for writer in WRITERS:
            with recording(client, process.pid) as (session_id, recorder):
                patch(client, session_id, ["work"], PatchOptions(writer=writer))
                wait_until(lambda recorder=recorder: recorder.recording.records > 1000)
                client.detach(session_id)
            assert recorder.finish().entries("work") > 0
            assert_text_unchanged(thread)
        assert_not_traced(process.pid)


def test_h64_the_main_thread_ends_while_the_process_is_traced(
    client: SyncAgentClient, tmp_path: Path
) -> None:
    with _leaderless(tmp_path) as process:
        with recording(client, process.pid) as (session_id, recorder):
            patch(client, session_id, ["work"])
            thread = _end_main_thread(process)
            patch(client, session_id, ["more"])
            before = recorder.recording.records
            wait_until(lambda: recorder.recording.records > before + 1000)
            client.detach(session_id)
        seen = recorder.finish()
        assert seen.end is EndReason.DETACHED
        assert seen.entries("more") > 0
        assert_text_unchanged(thread)


def test_a_zombie_is_refused(client: SyncAgentClient) -> None:
    zombie = subprocess.Popen(["true"])
    wait_until(lambda: _state(zombie.pid) == "Z")
    with pytest.raises((UnsupportedTargetError, NoSuchProcessError)) as caught:
        client.attach(ProcessRef(zombie.pid))
    assert caught.value.reason in ("ZOMBIE", "NO_SUCH_PROCESS")
    zombie.wait()


@pytest.mark.host
def test_a_kernel_thread_is_refused(client: SyncAgentClient) -> None:
    with pytest.raises(UnsupportedTargetError) as caught:
        client.attach(ProcessRef(2))
    assert caught.value.reason == "KERNEL_THREAD"


def test_h65_threads_created_while_sites_are_written(client: SyncAgentClient) -> None:
    with TargetProcess(build("threads_churn", "gcc-O2")) as target:
        with recording(client, target.pid) as (session_id, recorder):
            for _ in range(20):
                patch(client, session_id, ["*"], PatchOptions(writer=PatchWriter.STOP))
                client.unpatch(session_id)
            client.detach(session_id)
        recorder.finish()
        assert_text_unchanged(target.pid)
        assert_not_traced(target.pid)
        target.quit()


def test_h84_a_module_loaded_later_can_be_patched(client: SyncAgentClient) -> None:
    with TargetProcess(build("dlopen", "gcc-O2")) as target:
        target.command("unload")
        with recording(client, target.pid) as (session_id, recorder):
            patch(client, session_id, ["*"])
            target.command("load")
            patch(client, session_id, ["plugin*!*"])
            target.wait_iterations(5)
            # H83: the module goes, with its sites, and comes again.
            target.command("unload")
            target.command("load")
            patch(client, session_id, ["plugin*!*"])
            target.wait_iterations(5)
            report = client.detach(session_id)
        recorder.finish()
        assert report.restored_sites > 0
        assert_text_unchanged(target.pid)
        target.quit()


_HOST = """
#include <dlfcn.h>
#include <stdio.h>
typedef int (*run_t)(int (*)(int (*)(int), int), int);
__attribute__((noinline, noipa)) int traced_call(int (*inner)(int), int n)
{
    int result = inner(n);
    __asm__ volatile("" : "+r"(result));
    return result + 1;
}
int main(int argc, char **argv)
{
    char line[64];
    run_t run;
    puts("ready"); fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 1;
    run = (run_t)dlsym(dlopen(argv[1], RTLD_NOW), "run");
    puts("loaded"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("%d\\n", run(traced_call, 7)); fflush(stdout);
    }
    return argc != 2;
}
"""
_PLUGIN = """
static int throws(int n) { if (n) throw n; return 0; }
extern "C" int run(int (*call)(int (*)(int), int), int n)
{
    try { return call(throws, n); } catch (int caught) { return 100 + caught; }
}
"""


def test_h39_an_unwinder_that_is_loaded_later_sees_through_the_thunks(
    client: SyncAgentClient, tmp_path: Path
) -> None:
    """A C program loads a C++ module, whose exception then passes a traced C frame."""
    (tmp_path / "host.c").write_text(_HOST)
    (tmp_path / "plugin.cc").write_text(_PLUGIN)
    host, plugin = tmp_path / "host", tmp_path / "plugin.so"
    subprocess.run(
        ["gcc", "-O2", "-fexceptions", "-o", host, tmp_path / "host.c", "-ldl"], check=True
    )
    subprocess.run(
        ["g++", "-O2", "-shared", "-fPIC", "-o", plugin, tmp_path / "plugin.cc"], check=True
    )
    process = subprocess.Popen(
        [host, plugin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with recording(client, process.pid) as (session_id, recorder):
            patch(client, session_id, ["traced_call"])
            process.stdin.write("load\n")
            process.stdin.flush()
            assert process.stdout.readline() == "loaded\n"
            wait_until(lambda: _changed_files(process.pid) >= {"libgcc_s.so.1"})
            for _ in range(100):
                process.stdin.write("run\n")
                process.stdin.flush()
                assert process.stdout.readline() == "107\n"
            client.detach(session_id)
        assert recorder.finish().entries("traced_call") == 100
        assert_text_unchanged(process.pid)
        process.communicate(timeout=10)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def _changed_files(pid: int) -> set[str]:
    return {Path(each.path).name for each in text_differences(pid)}
