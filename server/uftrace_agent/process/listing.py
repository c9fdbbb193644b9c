"""The processes of this host, and which of them can be attached to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from uftrace_agent.errors import NoSuchProcessError, TargetGoneError
from uftrace_agent.process import executable
from uftrace_agent.process.identity import boot_id, stat_fields
from uftrace_agent.process.threads import proc_directory
from uftrace_agent.session.types import ProcessId

# include/linux/sched.h: the process is a kernel thread.
_PF_KTHREAD = 0x00200000
# Indices among the fields of stat_fields: proc(5)'s numbers less 3.
_FLAGS = 9 - 3
_START_TIME = 22 - 3
_ELF_CLASS = 4
_ELFCLASS64 = 2

# What a process may do between two reads of its files.
_VANISHED = (FileNotFoundError, ProcessLookupError, NoSuchProcessError, TargetGoneError)


@dataclass(frozen=True, slots=True)
class ProcessDescription:
    """One process, as `ps` shows it.

    Attributes:
        process: Its full name.
        command_name: The kernel's short name for it.
        command_line: Its arguments; empty for kernel threads and zombies.
        executable: Path inside the process's own mount namespace; empty where
            it is not to be known.
        uid: Effective user id.
        thread_count: Its threads.
        resident_bytes: Resident memory.
        refusal_reason: Why the agent cannot attach, as `attachability` says
            it, or empty.
        build_id: GNU build id of the executable in hex; empty where it has
            none or the agent cannot attach.
        cgroup: Path of its cgroup; empty where there is none.
    """

    process: ProcessId
    command_name: str
    command_line: tuple[str, ...]
    executable: str
    uid: int
    thread_count: int
    resident_bytes: int
    refusal_reason: str
    build_id: str = ""
    cgroup: str = ""

    @property
    def attachable(self) -> bool:
        """Whether the agent believes that it can attach."""
        return not self.refusal_reason

    def mentions(self, text: str) -> bool:
        """Whether the command name, executable or command line contains `text`."""
        return (
            text in self.command_name
            or text in self.executable
            or text in " ".join(self.command_line)
        )


def list_processes(
    name_contains: str = "", include_unattachable: bool = False
) -> list[ProcessDescription]:
    """List the processes by rising pid.

    Args:
        name_contains: Keep those that mention this; empty keeps all.
        include_unattachable: Also list kernel threads and zombies. Others that
            cannot be attached to are always listed, with their reason.
    """
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            description = describe(pid)
        except NoSuchProcessError:
            continue
        if description.refusal_reason in ("KERNEL_THREAD", "ZOMBIE") and not include_unattachable:
            continue
        if description.mentions(name_contains):
            found.append(description)
    return found


def describe(pid: int) -> ProcessDescription:
    """Describe one process.

    Raises:
        NoSuchProcessError: It is gone.
    """
    command_name, stat = stat_fields(pid)
    try:
        proc = proc_directory(pid)
        status = _status(proc)
        command_line = _command_line(proc)
        cgroup = executable.cgroup(proc)
        refusal = _refusal(proc, stat, status) or ""
    except _VANISHED as error:
        raise NoSuchProcessError(f"there is no process {pid}") from error
    return ProcessDescription(
        process=ProcessId(pid, int(stat[_START_TIME]), boot_id()),
        command_name=command_name,
        command_line=command_line,
        executable=_executable(proc),
        uid=int(status["Uid"].split()[1]),
        thread_count=int(status["Threads"]),
        # Kernel threads and zombies have no memory and no such line.
        resident_bytes=int(status.get("VmRSS", "0 kB").split()[0]) * 1024,
        refusal_reason=refusal,
        build_id="" if refusal else executable.build_id(proc),
        cgroup=cgroup,
    )


def attachability(pid: int) -> str | None:
    """Tell why the agent cannot attach to a process.

    Returns:
        None where nothing is known to stand against it, or one of
        KERNEL_THREAD, ZOMBIE, AGENT_ITSELF, TRACED_BY_ANOTHER, SECCOMP_STRICT,
        PERMISSION_DENIED, PROCESS_32BIT.

    Raises:
        NoSuchProcessError: It is gone.
    """
    stat = stat_fields(pid)[1]
    try:
        proc = proc_directory(pid)
        return _refusal(proc, stat, _status(proc))
    except _VANISHED as error:
        raise NoSuchProcessError(f"there is no process {pid}") from error


def _refusal(proc: str, stat: list[str], status: Mapping[str, str]) -> str | None:
    if int(stat[_FLAGS]) & _PF_KTHREAD:
        return "KERNEL_THREAD"
    if status["State"][0] in "ZX":
        return "ZOMBIE"
    if int(status["Tgid"]) == os.getpid():
        return "AGENT_ITSELF"
    # The main thread's tracer stands for all: a debugger takes every thread,
    # and one that took a single other thread shows at attach (EPERM).
    if status["TracerPid"] != "0":
        return "TRACED_BY_ANOTHER"
    # Strict mode kills at any system call but read, write, exit, sigreturn.
    if status.get("Seccomp") == "1":
        return "SECCOMP_STRICT"
    try:
        # Opening it is the kernel's own check for PTRACE_MODE_ATTACH, user
        # namespaces, capabilities and Yama included (mm/memory.c, mm_access).
        os.close(os.open(f"{proc}/mem", os.O_RDONLY | os.O_CLOEXEC))
        with open(f"{proc}/exe", "rb") as executable:
            header = executable.read(_ELF_CLASS + 1)
    except PermissionError:
        return "PERMISSION_DENIED"
    except _VANISHED:
        # Its memory went between two looks: it is ending.
        return "ZOMBIE"
    # The kernel also runs x32 programs from files of the 32-bit class.
    return None if header[_ELF_CLASS] == _ELFCLASS64 else "PROCESS_32BIT"


def _status(proc: str) -> dict[str, str]:
    text = Path(proc, "status").read_bytes().decode(errors="replace")
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _command_line(proc: str) -> tuple[str, ...]:
    text = Path(proc, "cmdline").read_bytes().decode(errors="replace")
    # A program that rewrites its title leaves a run of NULs behind it.
    stripped = text.rstrip("\0")
    return tuple(stripped.split("\0")) if stripped else ()


def _executable(proc: str) -> str:
    try:
        link = os.readlink(f"{proc}/exe")
    except OSError:  # kernel thread, zombie, or not ours to look at
        return ""
    # The link may hold bytes that are no UTF-8; the API's strings may not.
    printable = os.fsencode(link).decode(errors="replace")
    return printable.removesuffix(" (deleted)")
