# What a reader of a trace has to know about its quality, on stderr.
from __future__ import annotations

from uftrace_remote.cli import _output
from uftrace_remote.trace.store import TraceReader


def note_about(trace: TraceReader) -> None:
    """Says if records were lost or the recorder was cut off."""
    lost = trace.summary.records_lost
    if lost:
        _output.note(
            f"note: {_output.plural(lost, 'record')} lost while recording; times around "
            "them may be wrong"
        )
    if not trace.complete:
        _output.note("note: the recorder was cut off; this is what it had written")
