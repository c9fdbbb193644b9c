# SPDX-License-Identifier: Apache-2.0
"""System calls that a thread of another process makes for the agent."""

from __future__ import annotations

import ctypes
import errno
import subprocess

from tests.support.target_process import TargetProcess
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_agent.engine.needed_calls import filter_watch
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.remote_calls import RemoteCall, RemoteCaller
from uftrace_agent.process.threads import has_ended, thread_state
from uftrace_agent.runtime.host_library import CLook, library

GETPID = native_machine().calls.getpid


def test_calls_beside_threads_that_come_and_go() -> None:
    load = ("threads=1", "churn=16", "hz=10000")
    with TargetProcess(build("torture"), *load) as target, ProcessMemory(target.pid) as memory:
        caller = RemoteCaller(memory, filter_watch(memory.pid))
        for _ in range(100):
            assert caller.call([RemoteCall(GETPID, ())]) == [target.pid]
        target.quit()


def test_a_thread_that_is_ending_is_not_one_that_may_not_be_traced() -> None:
    """The kernel says EPERM of both (kernel/ptrace.c, ptrace_attach)."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert not has_ended(process.pid, process.pid)
        process.kill()
        wait_until(lambda: getattr(thread_state(process.pid, process.pid), "state", "") == "Z")
        look = CLook(pid=process.pid, tid=process.pid, deadline_nanos=1)
        assert library().uh_look(ctypes.byref(look)) == -errno.EPERM
        assert has_ended(process.pid, process.pid)
    assert has_ended(process.pid, process.pid)
