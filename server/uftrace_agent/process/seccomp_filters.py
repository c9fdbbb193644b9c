"""Whether the seccomp filters of a process's threads let them work for the agent (H60).

Every thread has its own filters: it can add some for itself. All that happens then is
that more is forbidden, so what was found for a thread holds for as long as the number
of its filters is the same.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from uftrace_agent.errors import AgentError, TargetGoneError, UnsupportedTargetError
from uftrace_agent.process.pauses import Pauses
from uftrace_agent.process.seccomp import Denial, FilteredCall, MalformedFilterError, denials
from uftrace_agent.process.threads import status_field, thread_ids
from uftrace_agent.runtime.host_library import CFilters, error_for, library

# MAX_INSNS_PER_PATH of kernel/seccomp.c: of all filters of a thread, each of which
# counts for at least five.
_MOST_INSTRUCTIONS: Final = 32768
_MOST_FILTERS: Final = _MOST_INSTRUCTIONS // 5
_INSTRUCTION_BYTES: Final = 8
_DEADLINE_NS: Final = 2_000_000_000
_STRICT: Final = "1"
_FILTERED: Final = "2"
_NAMED_AT_MOST: Final = 4
# Field 22 of proc(5), behind the command's name and the state.
_START_TIME: Final = 22 - 4


def read_filters(pid: int, tid: int, pauses: Pauses) -> list[bytes]:
    """All filters of one thread, each an array of struct sock_filter; it stops for a moment.

    Raises:
        UnsupportedTargetError: They cannot be read.
        TargetGoneError: The thread ended.
        ForbiddenError: Tracing is not allowed.
        BusyTargetError: It did not stop in time.
    """
    instructions = (ctypes.c_char * (_MOST_INSTRUCTIONS * _INSTRUCTION_BYTES))()
    sizes = (ctypes.c_uint32 * _MOST_FILTERS)()
    order = CFilters(
        pid=pid,
        tid=tid,
        deadline_nanos=_DEADLINE_NS,
        instructions=ctypes.addressof(instructions),
        sizes=sizes,
        instruction_capacity=_MOST_INSTRUCTIONS,
        size_capacity=_MOST_FILTERS,
    )
    code = library().uh_read_filters(ctypes.byref(order))
    pauses.add(order.pause_nanos, tid)
    if code in (-errno.ESRCH, -errno.EPERM, -errno.ETIMEDOUT):
        raise error_for(code, pid, "being asked for its seccomp filters")
    if code:
        raise _unreadable(pid, code)
    data = bytes(instructions)
    found: list[bytes] = []
    at = 0
    for size in sizes[: order.count]:
        found.append(data[at : at + size * _INSTRUCTION_BYTES])
        at += size * _INSTRUCTION_BYTES
    return found


def _unreadable(pid: int, code: int) -> UnsupportedTargetError:
    name = errno.errorcode.get(-code, str(code))
    return UnsupportedTargetError(
        f"process {pid} runs under a seccomp filter, which cannot be read ({name})",
        reason="SECCOMP_FILTER",
        hint="the system calls that tracing needs might kill the process, and only the "
        "filter tells: the kernel shows it to an agent with CAP_SYS_ADMIN that runs under "
        "no filter itself, outside of containers",
    )


class FilterWatch:
    """The filters of one process's threads.

    Args:
        pid: The process.
        architecture: The AUDIT_ARCH of its calls.
        calls: All that its threads will be made to do.
    """

    def __init__(self, pid: int, architecture: int, calls: Sequence[FilteredCall]) -> None:
        self._pid = pid
        self._architecture = architecture
        self._calls = tuple(calls)
        # By thread: when it was born, and the number of its filters.
        self._good: dict[int, tuple[str, str]] = {}
        self.pauses = Pauses()

    def check(self) -> None:
        """Look at all threads.

        Raises:
            UnsupportedTargetError: One of them may not make the calls (SECCOMP_FILTER,
                SECCOMP_STRICT), or its filters cannot be read.
            ForbiddenError: Tracing is not allowed.
            BusyTargetError: A thread did not stop in time.
        """
        for tid in thread_ids(self._pid):
            try:
                self.check_thread(tid)
            except TargetGoneError:
                continue  # the thread ended; the process says so itself

    def check_thread(self, tid: int) -> None:
        """Look at one thread; nothing happens to it where it has no filters.

        Raises:
            UnsupportedTargetError, ForbiddenError, BusyTargetError: As `check`.
            TargetGoneError: It ended.
        """
        mode, state = self._state(tid)
        if mode == _STRICT:
            raise UnsupportedTargetError(
                f"thread {tid} of process {self._pid} runs under strict seccomp and could make "
                "no system call",
                reason="SECCOMP_STRICT",
            )
        if mode != _FILTERED or self._good.get(tid) == state:
            return
        programs = read_filters(self._pid, tid, self.pauses)
        try:
            denied = denials(programs, self._architecture, self._calls)
        except MalformedFilterError as error:
            raise UnsupportedTargetError(
                f"the seccomp filter of process {self._pid} cannot be understood: {error}",
                reason="SECCOMP_FILTER",
                hint="the system calls that tracing needs might kill the process",
            ) from error
        if denied:
            raise self._denied(tid, denied)
        self._good[tid] = state

    # The mode, and what tells one state of the thread from another; most processes
    # have no filters, and are asked for no more than that.
    def _state(self, tid: int) -> tuple[str, tuple[str, str]]:
        mode = self._field(tid, "Seccomp")
        if mode != _FILTERED:
            return mode, ("", "")
        try:
            stat = Path(f"/proc/{self._pid}/task/{tid}/stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError) as error:
            raise self._ended(tid) from error
        letter, *rest = stat.rpartition(")")[2].split()
        if letter in ("Z", "X"):
            raise self._ended(tid)
        return mode, (rest[_START_TIME], self._field(tid, "Seccomp_filters"))

    def _field(self, tid: int, name: str) -> str:
        value = status_field(self._pid, name, tid)
        if value is None:
            if status_field(self._pid, "State", tid) is None:
                raise self._ended(tid)
            return ""  # a kernel without seccomp
        return value

    def _ended(self, tid: int) -> TargetGoneError:
        return TargetGoneError(f"thread {tid} of process {self._pid} is gone")

    def _denied(self, tid: int, denied: Sequence[Denial]) -> AgentError:
        names = [f"{each.call.name} ({each.action.name})" for each in denied]
        more = len(names) - _NAMED_AT_MOST
        listed = ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
        who = f"process {self._pid}"
        if tid != self._pid:
            who = f"thread {tid} of {who}"
        return UnsupportedTargetError(
            f"{who} runs under a seccomp filter that does not allow {listed}",
            reason="SECCOMP_FILTER",
            hint="tracing makes threads of the process perform these system calls; allow them "
            "in the filter (a container's seccomp profile, SystemCallFilter= of a systemd "
            "unit), or start the process without it",
            metadata={"denied_calls": ",".join(each.call.name for each in denied)},
        )
