"""The threads of a process, and which of them may lend itself to a remote call."""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from uftrace_agent.errors import TargetGoneError
from uftrace_agent.process.machine import native_machine
from uftrace_agent.runtime.host_library import library


class Suitability(IntEnum):
    """How little a thread would notice of being used; lower is better."""

    IDLE_CALL = 0
    RUNNING = 1
    RESTARTABLE_CALL = 2
    REPAIRED_CALL = 3
    STOPPED = 4


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What /proc says of a thread without touching it.

    Attributes:
        tid: Thread id.
        state: The letter of /proc/PID/task/TID/stat.
        call: Number of the system call it is blocked in, or None while it runs.
        sp: Stack pointer, where it is blocked.
        pc: Program counter, where it is blocked.
        arguments: Of the call, where it is blocked in one.
    """

    tid: int
    state: str
    call: int | None = None
    sp: int = 0
    pc: int = 0
    arguments: tuple[int, ...] = ()


_WITHOUT_TIMEOUT = ("pipe:", "/dev/")
_USUAL_THREADS = 1024


def thread_ids(pid: int) -> list[int]:
    """The ids of all threads that live meanwhile, by rising number.

    Some of those that begin or end meanwhile may be among them. No listing of
    /proc/PID/task is enough for this (H95).

    Raises:
        TargetGoneError: The process is gone.
    """
    room = _USUAL_THREADS
    while True:
        tids = (ctypes.c_int32 * room)()
        count = library().uh_list_threads(pid, tids, room)
        if count > 0:
            return tids[:count]
        if count != -errno.E2BIG:
            raise TargetGoneError(f"process {pid} is gone")
        room *= 4


def proc_directory(pid: int) -> str:
    """The directory of /proc that shows what the process's threads share: memory, files.

    A main thread that has ended shows none of it, though the process goes on (H64).
    /proc/TID is there for every thread (fs/proc/base.c, proc_pid_lookup): then it is
    that of the oldest one that lives.
    """
    if _letter(pid, pid) in _ENDED:
        for tid in thread_ids(pid):
            if _letter(pid, tid) not in _ENDED:
                return f"/proc/{tid}"
    return f"/proc/{pid}"


_ENDED = ("Z", "X", "")


def _letter(pid: int, tid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/task/{tid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(b")")[2].split()[0].decode()


def thread_state(pid: int, tid: int) -> ThreadState | None:
    """What the thread does now; None where it has ended."""
    base = Path(f"/proc/{pid}/task/{tid}")
    try:
        state = base.joinpath("stat").read_bytes().rpartition(b")")[2].split()[0].decode()
        text = base.joinpath("syscall").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.split()
    if fields[0] == "running":
        return ThreadState(tid, state)
    return ThreadState(
        tid,
        state,
        call=int(fields[0]),
        sp=int(fields[-2], 16),
        pc=int(fields[-1], 16),
        arguments=tuple(int(field, 16) for field in fields[1:-2]),
    )


def has_ended(pid: int, tid: int) -> bool:
    """Whether the thread is gone, or is about to go and runs no code any more."""
    state = thread_state(pid, tid)
    return state is None or state.state in _ENDED


def thread_name(pid: int, tid: int) -> str:
    """The name a thread gave itself; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text(errors="replace").rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def remote_call_candidates(pid: int) -> list[ThreadState]:
    """Threads that could perform a system call for the agent, best first."""
    states = [thread_state(pid, tid) for tid in thread_ids(pid)]
    usable = [state for state in states if state and state.state not in "ZXD"]
    return sorted(usable, key=_suitability)


def calm_threads(pid: int, most: int) -> list[int]:
    """Up to `most` threads that may be looked at and will not notice, if the agent dies
    in the middle of it: not those whose calls end with EINTR by a stop, if there are others.
    """
    found = remote_call_candidates(pid)
    not_restarted = native_machine().waits.not_restarted
    calm = [thread for thread in found if thread.call not in not_restarted]
    return [thread.tid for thread in (calm or found[:1])[:most]]


def _is_idle(thread: ThreadState) -> bool:
    waits = native_machine().waits
    if thread.call == waits.read:
        try:
            file = os.readlink(f"/proc/{thread.tid}/fd/{thread.arguments[0]}")
        except OSError:
            return False
        return file.startswith(_WITHOUT_TIMEOUT)
    return thread.call in waits.endless or (thread.call == waits.futex and not thread.arguments[3])


def _suitability(thread: ThreadState) -> tuple[Suitability, int]:
    if thread.state in "tT":
        return Suitability.STOPPED, thread.tid
    if _is_idle(thread):
        return Suitability.IDLE_CALL, thread.tid
    if thread.call is None or thread.call == -1:
        return Suitability.RUNNING, thread.tid
    if thread.call in native_machine().waits.not_restarted:
        return Suitability.REPAIRED_CALL, thread.tid
    return Suitability.RESTARTABLE_CALL, thread.tid


def status_field(pid: int, name: str, tid: int | None = None) -> str | None:
    """One line of /proc/PID/status (or of a thread's); None where it is not there."""
    path = f"/proc/{pid}/task/{tid}/status" if tid is not None else f"/proc/{pid}/status"
    try:
        text = Path(path).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return None
