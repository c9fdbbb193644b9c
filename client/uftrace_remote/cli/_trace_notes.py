# What a reader of a trace has to know about its quality, on stderr.
from __future__ import annotations

from uftrace_remote.cli import _output
from uftrace_remote.trace.recordings import Recording
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


def note_about_fleet(recording: Recording) -> None:
    """The same for many processes; says also who is missing, and why."""
    lost = {each.name: each.trace.summary.records_lost for each in recording.members}
    if any(lost.values()):
        where = ", ".join(name for name, count in lost.items() if count)
        _output.note(
            f"note: {_output.plural(sum(lost.values()), 'record')} lost while recording on "
            f"{where}; times around them may be wrong"
        )
    for each in recording.members:
        if each.problem:
            _output.note(f"note: {each.name} is not whole: {each.problem}")
        elif not each.trace.complete:
            _output.note(
                f"note: {each.name}: the recorder was cut off; this is what it had written"
            )
    for missing in recording.left_out:
        _output.note(f"note: nothing of {missing}")
