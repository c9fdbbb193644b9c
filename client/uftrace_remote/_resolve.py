# Which process the user means; no I/O.
from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from uftrace_remote.endpoint import DEFAULT_PORT
from uftrace_remote.errors import NoSuchProcessError, UsageError
from uftrace_remote.target import ProcessSelector
from uftrace_remote.values import Process

_COMM_BYTES = 15
_LISTED = 8


def choose_process(selector: ProcessSelector, processes: Sequence[Process]) -> Process:
    """Picks the one process that is meant.

    Raises:
        NoSuchProcessError: None fits.
        UsageError: Several fit.
    """
    found = [process for process in processes if _fits(selector, process)]
    attachable = [process for process in found if process.attachable]
    if len(attachable) == 1 or len(found) == 1:
        return (attachable or found)[0]
    if found:
        raise _ambiguous(selector, found)
    raise _none(selector, processes)


def choose_processes(
    selector: ProcessSelector, processes: Sequence[Process]
) -> tuple[Process, ...]:
    """Picks every process that is meant, as a target of a fleet does.

    Returns:
        Those that can be attached to; where that is none of them, all that
        fit, so that the agent says why not.

    Raises:
        NoSuchProcessError: None fits.
    """
    found = tuple(process for process in processes if _fits(selector, process))
    if not found:
        raise _none(selector, processes)
    return tuple(process for process in found if process.attachable) or found


def _none(selector: ProcessSelector, processes: Sequence[Process]) -> NoSuchProcessError:
    if selector.pid:
        hint = "list processes with: uftrace-remote ps"
        if selector.pid == DEFAULT_PORT:
            hint = f"{DEFAULT_PORT} is the agent's port: write HOST:{DEFAULT_PORT}:PID"
        return NoSuchProcessError(f"no process has the pid {selector.pid}", hint=hint)
    if selector.build_id or selector.cgroup:
        what = (
            f"runs a program with the build id {selector.build_id}"
            if selector.build_id
            else f"is in the cgroup {selector.cgroup}"
        )
        return NoSuchProcessError(
            f"no process {what}",
            hint="see both of every process with: uftrace-remote ps --json",
        )
    near = [process for process in processes if _is_near(selector, process)]
    hint = f"did you mean {_candidates(near)}?" if near else "list them with: uftrace-remote ps"
    return NoSuchProcessError(f"no process is called '{selector}'", hint=hint)


def _fits(selector: ProcessSelector, process: Process) -> bool:
    if selector.pid:
        return process.pid == selector.pid
    if selector.executable:
        return process.executable.removesuffix(" (deleted)") == selector.executable
    if selector.build_id:
        return process.build_id.startswith(selector.build_id)
    if selector.cgroup:
        return f"{process.cgroup}/".startswith(f"{selector.cgroup.rstrip('/')}/")
    return selector.name in _names(process)


def _names(process: Process) -> set[str]:
    names = {process.command_name, PurePosixPath(process.executable).name}
    if process.command_line:
        names.add(PurePosixPath(process.command_line[0]).name)
    names.discard("")
    return names


def _is_near(selector: ProcessSelector, process: Process) -> bool:
    wanted = selector.name or PurePosixPath(selector.executable).name
    return any(
        wanted.lower() in name.lower() or wanted[:_COMM_BYTES] == name for name in _names(process)
    )


def _ambiguous(selector: ProcessSelector, found: Sequence[Process]) -> UsageError:
    return UsageError(
        f"{len(found)} processes are {_called(selector)}",
        reason="AMBIGUOUS_PROCESS",
        hint=f"name one by its pid: {_candidates(found)}",
    )


def _called(selector: ProcessSelector) -> str:
    if selector.build_id:
        return f"of the build id {selector.build_id}"
    return f"in the cgroup {selector.cgroup}" if selector.cgroup else f"called '{selector}'"


def _candidates(processes: Sequence[Process]) -> str:
    shown = [
        f"{process.pid} ({' '.join(process.command_line)[:40].strip() or process.command_name})"
        for process in processes[:_LISTED]
    ]
    more = len(processes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
