"""What a request that came to nothing had reserved serves the next one."""

from __future__ import annotations

from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_text_unchanged
from tests.targets.build import build
from uftrace_agent.engine.model import Status
from uftrace_agent.engine.report import EngineOptions
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.session.attaching import attach
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache


def test_what_was_planned_in_vain_takes_no_memory() -> None:
    with TargetProcess(build("many@300", "gcc-O2")) as target:
        images = ImageCache()
        attachment = attach(resolve(ProcessId(target.pid)), RecordingOptions(), images)
        engine, layout = attachment.engine, attachment.annex.layout
        functions = attachment.program.select(["*"])
        # WHEN a request is refused as a whole, again and again
        ends = []
        for _ in range(4):
            report = engine.enable(functions, EngineOptions(all_or_nothing=True))
            assert not any(outcome.status is Status.ENABLED for outcome in report.outcomes)
            ends.append([region.cursor for region in layout.regions])
        # THEN its stubs are those of the first time
        assert ends == ends[:1] * len(ends)
        # and the next request's
        report = engine.enable(functions, EngineOptions())
        assert sum(outcome.status is Status.ENABLED for outcome in report.outcomes) > 300
        assert [region.cursor for region in layout.regions] == ends[0]
        target.wait_iterations(2)
        engine.leave()
        attachment.close()
        images.clear()
        assert_text_unchanged(target.pid)
        target.quit()
