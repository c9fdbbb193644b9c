"""What there is to say about the hosts of a merged stream, on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable

from uftrace_remote.cli import _fleet, _output
from uftrace_remote.cli._tracing import describe_end
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import EndReason
from uftrace_remote.fleet.merged_events import Certainty
from uftrace_remote.fleet.stream_values import MERGE, MergedBatch, SourceState, SourceStatus
from uftrace_remote.values import EventBatch

_NOTE_SECONDS = 1.0
_AWAY = (SourceState.SILENT, SourceState.SLOW, SourceState.BROKEN)


class SourceNotes:
    """Says when hosts go and come back, what was lost there, and how complete all is."""

    def __init__(self) -> None:
        self._states: dict[int, SourceState] = {}
        self._missing: tuple[int, ...] = ()
        self._lost: dict[tuple[int, str], int] = {}
        self._noted_at = time.monotonic()

    def show(self, batch: MergedBatch) -> None:
        """Takes the next batch."""
        changes = []
        for source in batch.sources:
            before = self._states.get(source.number, SourceState.WAITING)
            self._states[source.number] = source.state
            if source.state is not before:
                words = _describe_change(before, source)
                if words:
                    changes.append((source.member.agent.endpoint, words))
        _note(changes)
        if time.monotonic() - self._noted_at >= _NOTE_SECONDS:
            self._noted_at = time.monotonic()
            self.show_losses(batch.sources)
            self._show_certainty(batch)

    def show_losses(self, sources: Iterable[SourceStatus]) -> None:
        """What was lost since the last time."""
        notes = []
        for source in sources:
            for stage, count in source.losses.items():
                new = count - self._lost.get((source.number, stage), 0)
                if new > 0:
                    self._lost[source.number, stage] = count
                    words = f"{_output.plural(new, 'record')} lost: {_describe_stage(stage)}"
                    notes.append((source.member.agent.endpoint, words))
        _note(notes)

    def _show_certainty(self, batch: MergedBatch) -> None:
        certainty = batch.certainty
        if certainty.missing == self._missing:
            return
        self._missing = certainty.missing
        where = [batch.sources[number].member.agent.endpoint for number in certainty.missing]
        _output.note(f"# {describe_certainty(certainty, where)}")


def describe_certainty(certainty: Certainty, missing: Iterable[Endpoint]) -> str:
    """`complete to 14:03:27.120 except b, c`."""
    ago_ns = time.monotonic_ns() - certainty.complete_to_ns
    moment = time.time_ns() - ago_ns
    clock = time.strftime("%H:%M:%S", time.localtime(moment // 1_000_000_000))
    text = f"complete to {clock}.{moment // 1_000_000 % 1000:03d}"
    names = _fleet.fold(missing)
    return f"{text} except {names}" if names else text


def _describe_change(before: SourceState, source: SourceStatus) -> str:
    if source.state is SourceState.SILENT:
        return "silent; going on without it"
    if source.state is SourceState.SLOW:
        return "what it sends is old; going on without it"
    if source.state is SourceState.BROKEN:
        return "the connection broke; trying to get it back"
    if source.state is SourceState.LIVE and before in _AWAY:
        return "back"
    if source.state is SourceState.ENDED:
        if source.end is not EndReason.NONE:
            return f"ended: {describe_end(ending(source))}"
        return f"failed: {source.detail}"
    return ""


def ending(source: SourceStatus) -> EventBatch:
    """The last batch of a source that ended."""
    return EventBatch(0, end=source.end, end_detail=source.detail)


def _describe_stage(stage: str) -> str:
    if stage == MERGE:
        return "this command is too slow"
    if stage == "stream":
        return "too fast for this client"
    if stage == "agent":
        return "the agent was away"
    return "the target's rings were full"


def _note(notes: Iterable[tuple[Endpoint, str]]) -> None:
    by_words: dict[str, list[Endpoint]] = {}
    for where, words in notes:
        by_words.setdefault(words, []).append(where)
    for words, hosts in by_words.items():
        _output.note(f"# {_fleet.fold(hosts)}: {words}")
