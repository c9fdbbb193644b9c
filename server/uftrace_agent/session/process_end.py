"""How a process ended."""

from __future__ import annotations


def exit_detail(pid: int) -> str:
    """How a process ended, as far as /proc still tells: "exited with status 0",
    "killed by signal 11"; "exited" where its parent has reaped it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return "exited"
    if fields[0] not in (b"Z", b"X") or len(fields) < 50:
        return "exited"
    # Field 52 of proc(5), in the form of waitpid's status.
    status = int(fields[49])
    if status & 0x7F:
        return f"killed by signal {status & 0x7F}"
    return f"exited with status {status >> 8}"
