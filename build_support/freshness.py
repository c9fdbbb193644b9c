"""Make's rule: an output is stale when an input is newer than it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def is_fresh(outputs: Iterable[Path], inputs: Iterable[Path]) -> bool:
    """Tell whether every output exists and none is older than any input."""
    newest_input = max((path.stat().st_mtime_ns for path in inputs), default=0)
    return all(path.exists() and path.stat().st_mtime_ns >= newest_input for path in outputs)
