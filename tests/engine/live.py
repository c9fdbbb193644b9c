"""The engine at work on a target, in this process: what an agent does, without its clothes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.text_compare import assert_text_unchanged
from uftrace_agent.engine.model import Status, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.report import EngineOptions, EngineReport
from uftrace_agent.engine.tracepoint import Tracepoint
from uftrace_agent.errors import BusyTargetError
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.runtime.host_library import CLook, library
from uftrace_agent.session.attaching import Attachment, attach
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache

# A stop may have to wait for its turn on a busy machine.
DEADLINE_NS = 2_000_000_000


@dataclass
class Live:
    """An attached process."""

    attachment: Attachment

    @property
    def pid(self) -> int:
        return self.attachment.memory.pid

    def options(self, writer: Writer, allow_multi: bool = False) -> EngineOptions:
        return EngineOptions(
            PlanOptions(writer, allow_multi=allow_multi), stop_deadline_ns=DEADLINE_NS
        )

    def enable(
        self, names: Sequence[str], writer: Writer = Writer.AUTO, allow_multi: bool = False
    ) -> EngineReport:
        """Enable functions, each of which must be."""
        functions = self.attachment.program.select(names)
        options = self.options(writer, allow_multi)
        report = self.attachment.engine.enable(functions, options)
        bad = [
            (each.function.symbol.linkage_name, each.status.name, each.detail)
            for each in report.outcomes
            if each.status not in (Status.ENABLED, Status.ALREADY_ENABLED)
        ]
        assert not bad, bad
        return report

    def disable(self, writer: Writer = Writer.AUTO) -> EngineReport:
        """Disable all that is enabled; a busy machine may need more than one try."""
        engine = self.attachment.engine
        for _ in range(20):
            report = EngineReport([])
            chosen = [address for address, t in engine.tracepoints.items() if t.enabled]
            try:
                engine.disable(chosen, self.options(writer), report)
            except BusyTargetError:
                continue
            assert {each.status for each in report.outcomes} <= {Status.DISABLED}
            return report
        raise AssertionError("the threads never came to a safe point")

    def tracepoint(self, name: str) -> Tracepoint:
        (function,) = self.attachment.program.select([name])
        return self.attachment.engine.tracepoints[function.address]

    def counter_of(self, tid: int) -> int:
        """Where a thread is now."""
        look = CLook(pid=self.pid, tid=tid, deadline_nanos=DEADLINE_NS)
        assert library().uh_look(ctypes.byref(look)) == 0
        return int(look.pc)


@contextmanager
def attached(pid: int, ring_bytes: int = 1 << 16, rings: int = 8) -> Iterator[Live]:
    """Attach, and leave at the end; then all text is as in the files."""
    process = resolve(ProcessId(pid))
    attachment = attach(process, RecordingOptions(ring_bytes, rings), ImageCache())
    try:
        yield Live(attachment)
        attachment.engine.leave(DEADLINE_NS)
        assert_text_unchanged(pid)
    finally:
        attachment.close()
