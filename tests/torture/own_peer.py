# SPDX-License-Identifier: Apache-2.0
"""This project's engine, as one tool beside others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.torture.places import Place
from tests.torture.subject import Subject
from uftrace_agent.engine.model import Status
from uftrace_agent.engine.program import ProgramFunction
from uftrace_agent.engine.report import EngineOptions, EngineReport
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.recording.rings import RingReader
from uftrace_agent.session.attaching import Attachment, attach
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache

_BUFFER = 16 << 20


class _Engine:
    def __init__(self, attachment: Attachment, functions: Sequence[ProgramFunction]) -> None:
        self._engine = attachment.engine
        self._functions = functions

    def enable(self, indices: Sequence[int]) -> int:
        functions = [self._functions[i] for i in indices]
        report = self._engine.enable(functions, EngineOptions())
        return sum(outcome.status is Status.ENABLED for outcome in report.outcomes)

    def disable(self, indices: Sequence[int]) -> int:
        report = EngineReport([])
        addresses = [self._functions[i].address for i in indices]
        known = [address for address in addresses if address in self._engine.tracepoints]
        self._engine.disable(known, EngineOptions(), report)
        return sum(outcome.status is Status.DISABLED for outcome in report.outcomes)


@contextmanager
def own_peer(subject: Subject, places: Sequence[Place]) -> Iterator[_Engine]:
    """Attach; the rings are emptied until the block ends, then the program is left."""
    images = ImageCache()
    attachment = attach(resolve(ProcessId(subject.pid)), RecordingOptions(), images)
    options = attachment.annex.ring_options
    rings = RingReader(
        attachment.annex.ring_fd,
        options.data_offset,
        options.ring_bytes,
        options.ring_count,
        _BUFFER,
    )
    done = threading.Event()

    def drain() -> None:
        while not done.wait(0.002):
            rings.discard()

    draining = threading.Thread(target=drain)
    draining.start()
    try:
        addresses = {place.address for place in places}
        found = attachment.program.select([subject.cases[0].pattern])
        yield _Engine(attachment, [f for f in found if f.address in addresses])
        attachment.engine.leave()
    finally:
        done.set()
        draining.join()
        rings.close()
        attachment.close()
        images.clear()
