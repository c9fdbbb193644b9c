"""The kernel's own probes (uprobes), through tracefs; for root."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

_MOUNT_POINT = Path("/sys/kernel/tracing")


@cache
def tracefs() -> Path:
    """Where it is; mounted if nobody has done so, as in a minimal system."""
    if not (_MOUNT_POINT / "uprobe_events").exists():
        subprocess.run(["mount", "-t", "tracefs", "nodev", str(_MOUNT_POINT)], check=True)
    return _MOUNT_POINT


def define_uprobe(line: str) -> None:
    """Define a probe, or remove it; see Documentation/trace/uprobetracer.rst.

    Raises:
        OSError: If the kernel does not like it.
    """
    # One write, at no place: the file cannot be sought in.
    events = os.open(tracefs() / "uprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(events, line.encode())
    finally:
        os.close(events)
