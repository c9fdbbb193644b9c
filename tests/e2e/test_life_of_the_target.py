"""States that a process may be in when the agent comes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.support import patch, recording
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_remote import NoSuchProcessError, SyncAgentClient, UnsupportedTargetError
from uftrace_remote.enums import PatchWriter
from uftrace_remote.values import PatchOptions, ProcessRef


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


def test_h64_a_process_whose_main_thread_has_ended(
    client: SyncAgentClient, tmp_path: Path
) -> None:
    source = tmp_path / "leaderless.c"
    source.write_text(
        """
        #include <pthread.h>
        #include <stdio.h>
        #include <unistd.h>
        __attribute__((noinline, noipa)) long work(long n) { return n * 3 + 1; }
        static void *run(void *unused) {
            volatile long sum = 0;
            puts("ready"); fflush(stdout);
            for (;;) { for (int i = 0; i < 1000; i++) sum += work(i); usleep(100); }
            return unused;
        }
        int main(void) {
            pthread_t thread;
            pthread_create(&thread, 0, run, 0);
            pthread_exit(0);
        }
        """
    )
    binary = tmp_path / "leaderless"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", binary, source], check=True)
    process = subprocess.Popen([binary], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        wait_until(lambda: _state(process.pid) == "Z")
        try:
            with recording(client, process.pid) as (session_id, recorder):
                patch(client, session_id, ["work"])
                wait_until(lambda: recorder.recording.records > 1000)
                client.detach(session_id)
            recorder.finish()
        except UnsupportedTargetError as refused:
            # Its /proc entry says no more than that of a process that has ended.
            assert refused.reason == "ZOMBIE"
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_a_zombie_and_a_kernel_thread_are_refused(client: SyncAgentClient) -> None:
    zombie = subprocess.Popen(["true"])
    wait_until(lambda: _state(zombie.pid) == "Z")
    with pytest.raises((UnsupportedTargetError, NoSuchProcessError)) as caught:
        client.attach(ProcessRef(zombie.pid))
    assert caught.value.reason in ("ZOMBIE", "NO_SUCH_PROCESS")
    zombie.wait()
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
