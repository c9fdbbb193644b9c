"""What the policy's rules look at, read from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from uftrace_agent.errors import NoSuchProcessError
from uftrace_agent.process import executable
from uftrace_agent.process.identity import ProcessId, is_running, resolve


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """A process, as rules see it.

    Attributes:
        process: Which one.
        uid: Its effective user id.
        executable: Path inside its own mount namespace; empty where it cannot be read.
        cgroup: As `listing.describe` says it.
    """

    process: ProcessId
    uid: int
    executable: str
    cgroup: str


def process_facts(process: ProcessId) -> ProcessFacts:
    """Read what rules look at.

    Raises:
        NoSuchProcessError: It is gone, or another one has the pid.
    """
    named = resolve(process)
    proc = Path("/proc", str(named.pid))
    try:
        status = (proc / "status").read_text(errors="replace")
        cgroup = executable.cgroup(str(proc))
    except OSError as error:
        raise NoSuchProcessError(f"there is no process {named.pid}") from error
    uids = next(line for line in status.splitlines() if line.startswith("Uid:"))
    facts = ProcessFacts(named, int(uids.split()[2]), _program(proc), cgroup)
    # All of it was of this very process only if it is still there.
    if not is_running(named):
        raise NoSuchProcessError(f"there is no process {named.pid}")
    return facts


# A file that was replaced by a newer version is still what the rule means.
def _program(proc: Path) -> str:
    try:
        link = os.readlink(proc / "exe")
    except OSError:
        return ""
    return os.fsencode(link).decode(errors="replace").removesuffix(" (deleted)")
