# Which writers a request took, and why not a gentler one.
from __future__ import annotations

from collections import Counter

from uftrace_remote.cli import _output
from uftrace_remote.enums import PatchStatus, PatchWriter
from uftrace_remote.values import PatchResult, UnpatchResult

_CHANGED = (PatchStatus.ENABLED, PatchStatus.DISABLED, PatchStatus.NOT_ENABLED)


def print_writers(result: PatchResult | UnpatchResult) -> None:
    """One line, unless every site was changed by one byte."""
    used = Counter(
        each.writer for each in result.results if each.status in _CHANGED and each.writer
    )
    if not used or (set(used) == {PatchWriter.BYTE} and not result.writer_detail):
        return
    counts = ", ".join(f"{number:,} by {writer.name.lower()}" for writer, number in used.items())
    _output.note(f"{counts}; {result.writer_detail}" if result.writer_detail else counts)
