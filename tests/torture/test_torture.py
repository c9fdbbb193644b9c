# SPDX-License-Identifier: Apache-2.0
"""The short form: some seconds of the same torture for every form and writer.

`python -m tests.torture.run` is the long one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.text_compare import assert_text_unchanged
from tests.torture import table
from tests.torture.cell import Work, run_cell
from tests.torture.forms import BY_NAME, FORMS, FormCase
from tests.torture.run import THREADS, load_of
from tests.torture.subject import Load, running
from tests.torture.toggling import Limit
from uftrace_agent.engine.model import Refusal, Status, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.engine.report import EngineOptions
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.session.attaching import attach
from uftrace_agent.session.types import RecordingOptions
from uftrace_agent.symbols.cache import ImageCache

LIMIT = Limit(2000, 0.6)
SITES = 128
GENERATED = [case.name for case in FORMS if case.sites != "compiled"]
COMPILED = [case.name for case in FORMS if case.sites == "compiled"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The same for all: what was found out about a program serves the next test."""
    return Work(LIMIT, seed=1, sites=SITES, index_directory=str(tmp_path_factory.mktemp("index")))


def _assert_good(name: str, load: Load, work: Work) -> None:
    case = BY_NAME[name]
    rows = run_cell([case], case.writers, load, work)
    print(table.head(), *(table.line(row) for row in rows), table.forms(rows), sep="\n")
    for row in rows:
        assert row.is_good, "\n".join(row.failures) or "nothing was done"


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", GENERATED)
def test_sites_change_under_threads_that_execute_them(name: str, threads: int, work: Work) -> None:
    """No wrong result, no crash, no impossible record; text, threads and signal
    handlers as before."""
    _assert_good(name, load_of(threads), work)


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("name", COMPILED)
def test_compilers_sites_change_under_threads_that_execute_them(name: str, work: Work) -> None:
    _assert_good(name, load_of(8), work)


MASKING = replace(BY_NAME["near"], program="torture_masking")


@pytest.mark.parametrize(
    ("case", "load"),
    [(MASKING, Load(2)), (BY_NAME["near"], Load(2, masked=True))],
    ids=["imports sigprocmask", "a handler with SIGTRAP blocked"],
)
def test_h51_no_trap_where_its_signal_may_be_blocked(case: FormCase, load: Load) -> None:
    """H51: the kernel ends a program that meets a trap with SIGTRAP blocked."""
    images = ImageCache()
    with running([case], load) as subject:
        attachment = attach(resolve(ProcessId(subject.pid)), RecordingOptions(), images)
        engine = attachment.engine
        some = attachment.program.select(["near_six_*"])
        # WHEN traps are asked for
        report = engine.enable(some, EngineOptions(PlanOptions(writer=Writer.TRAP)))
        # THEN they are refused
        assert {outcome.refusal for outcome in report.outcomes} == {Refusal.WRITER_UNSUITABLE}
        assert_text_unchanged(subject.pid)
        # AND where the choice is left to the engine, all threads are stopped instead
        report = engine.enable(some, EngineOptions())
        changed = {(outcome.status, outcome.writer) for outcome in report.outcomes}
        assert changed == {(Status.ENABLED, Writer.STOP)}
        assert report.writer_detail
        subject.check_alive()
        engine.leave()
        attachment.close()
        subject.target.quit()
    images.clear()
