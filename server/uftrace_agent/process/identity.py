"""Which process is meant: pid, start time and boot together name it for good."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from uftrace_agent.errors import InvalidRequestError, NoSuchProcessError


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, named for good. Zero and empty fields mean "whatever is there now"."""

    pid: int
    start_time_ticks: int = 0
    boot_id: str = ""


# Index of the start time among the fields after the command name. proc(5)
# counts it as field 22; the command name is field 2.
_START_TIME = 22 - 3


@cache
def boot_id() -> str:
    """This boot of the kernel, as in /proc/sys/kernel/random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stat_fields(pid: int) -> tuple[str, list[str]]:
    """Read stat of a process's first thread.

    /proc/PID/stat itself adds up the times of all threads first (fs/proc/array.c,
    `do_task_stat`): of a program with thousands of them that takes milliseconds.

    Returns:
        The command name, and the fields after it: [0] is the state, proc(5)'s
        field 3. Times and faults are that thread's alone.

    Raises:
        NoSuchProcessError: The process is gone.
    """
    try:
        text = Path(f"/proc/{pid}/task/{pid}/stat").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _no_such_process(pid) from error
    # The name is in parentheses and may itself hold spaces and parentheses.
    head, _, tail = text.rpartition(")")
    return head.partition("(")[2], tail.split()


def start_time_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot.

    Raises:
        NoSuchProcessError: The process is gone.
    """
    return int(stat_fields(pid)[1][_START_TIME])


def resolve(process: ProcessId) -> ProcessId:
    """Find the process that is meant and name it in full.

    Args:
        process: With a zero start time or an empty boot id, whatever has that
            pid now is meant.

    Raises:
        InvalidRequestError: The pid is not a positive number.
        NoSuchProcessError: No such process, or another one has its pid by now
            (reason PID_REUSED).
    """
    if process.pid <= 0:
        raise InvalidRequestError(f"{process.pid} is not a process id")
    started = start_time_ticks(process.pid)
    # /proc/TID exists for every thread, though no listing shows it.
    leader = _thread_group(process.pid)
    if leader != process.pid:
        raise NoSuchProcessError(
            f"{process.pid} is a thread of process {leader}, not a process",
            hint=f"name process {leader}",
            metadata={"pid": str(process.pid), "thread_group": str(leader)},
        )
    same_start = process.start_time_ticks in (0, started)
    same_boot = process.boot_id in ("", boot_id())
    if not (same_start and same_boot):
        raise NoSuchProcessError(
            f"process {process.pid} has ended and another one has its id now",
            reason="PID_REUSED",
            hint="list the processes again and name the one you mean",
            metadata={"pid": str(process.pid), "start_time_ticks": str(started)},
        )
    return ProcessId(process.pid, started, boot_id())


def _thread_group(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _no_such_process(pid) from error
    return int(status.partition("\nTgid:")[2].split(maxsplit=1)[0])


def _no_such_process(pid: int) -> NoSuchProcessError:
    return NoSuchProcessError(
        f"there is no process {pid}",
        hint="it may have ended, or live in another pid namespace than the agent",
        metadata={"pid": str(pid)},
    )


def is_running(process: ProcessId) -> bool:
    """Whether that very process still runs."""
    try:
        return start_time_ticks(process.pid) == process.start_time_ticks
    except NoSuchProcessError:
        return False
