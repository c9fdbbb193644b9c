"""Which writer changes which site."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator

import pytest

from tests.unit.test_trap_guards import APP, LIBC, view
from uftrace_agent.engine.model import Form, Refusal, Status, Writer
from uftrace_agent.engine.program import ModuleView, ProgramFunction
from uftrace_agent.engine.site import Patch, ProbeKind, SitePlan
from uftrace_agent.engine.writer_choice import WriterChoice, most_intrusive, writer_fits

FORKING = view("app", "printf", "fork", main=True)


@pytest.fixture
def pid() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def site(form: Form, writer: Writer, *others: SitePlan) -> SitePlan:
    return SitePlan(
        function=0x1000,
        form=form,
        writer=writer,
        head=Patch(0x1000, b"\x55", b"\xe9"),
        tail=None,
        stub=0x2000,
        writes=(),
        probe=ProbeKind.ENTRY,
        has_exit=True,
        others=others,
    )


ONE_BYTE = site(Form.PUN, Writer.BYTE)
MORE = site(Form.NEAR, Writer.STOP)
MULTI = site(Form.MULTI, Writer.STOP)


def in_module(module: ModuleView) -> ProgramFunction:
    return ProgramFunction(module, 0)


def choose(
    pid: int, asked: Writer, plan: SitePlan, main: ModuleView = APP, of: ModuleView | None = None
) -> tuple[Writer, str]:
    choice = WriterChoice(pid, [main, LIBC], asked)
    return choice.of_site(in_module(of or main), plan), choice.detail


def test_the_least_intrusive_writer_is_taken(pid: int) -> None:
    assert choose(pid, Writer.AUTO, ONE_BYTE) == (Writer.BYTE, "")
    assert choose(pid, Writer.AUTO, MORE) == (Writer.TRAP, "")


def test_where_no_trap_may_be_the_threads_are_stopped_and_it_is_said_why(pid: int) -> None:
    assert choose(pid, Writer.AUTO, ONE_BYTE, FORKING) == (Writer.BYTE, "")
    writer, detail = choose(pid, Writer.AUTO, MORE, FORKING)
    assert writer is Writer.STOP
    assert detail == "stop, not trap: app can fork in the middle (fork)"


def test_h53_in_the_c_library_no_trap_is_put(pid: int) -> None:
    writer, detail = choose(pid, Writer.AUTO, MORE, of=LIBC)
    assert writer is Writer.STOP
    assert "libc.so.6 runs with all signals blocked" in detail


def test_several_moved_instructions_need_a_stop(pid: int) -> None:
    assert choose(pid, Writer.AUTO, MULTI) == (Writer.STOP, "")


@pytest.mark.parametrize("plan", [ONE_BYTE, MORE, MULTI])
def test_a_stop_that_was_asked_for_is_a_stop(pid: int, plan: SitePlan) -> None:
    assert choose(pid, Writer.STOP, plan) == (Writer.STOP, "")


@pytest.mark.parametrize("plan", [ONE_BYTE, MORE])
def test_traps_that_were_asked_for_are_used_for_single_bytes_too(pid: int, plan: SitePlan) -> None:
    assert choose(pid, Writer.TRAP, plan) == (Writer.TRAP, "")


def test_traps_that_may_not_be_are_refused_with_the_reason(pid: int) -> None:
    refused = WriterChoice(pid, [FORKING, LIBC], Writer.TRAP).refusal(in_module(FORKING))
    assert refused is not None
    assert (refused.status, refused.refusal) == (Status.REFUSED, Refusal.WRITER_UNSUITABLE)
    assert refused.detail == "trap: app can fork in the middle (fork); use auto or stop"


def test_on_a_machine_without_traps_none_is_used(pid: int) -> None:
    """AArch64: a word is written at once, or in a stop."""
    choice = WriterChoice(pid, [APP, LIBC], Writer.AUTO, has_trap=False)
    assert choice.of_site(in_module(APP), ONE_BYTE) is Writer.BYTE
    assert choice.detail == ""
    assert choice.of_site(in_module(APP), MORE) is Writer.STOP
    assert choice.detail == "stop: an instruction that may not change while it is executed"
    assert choice.refusal(in_module(APP)) is None


def test_on_a_machine_without_traps_they_are_refused(pid: int) -> None:
    choice = WriterChoice(pid, [APP, LIBC], Writer.TRAP, has_trap=False)
    refused = choice.refusal(in_module(APP))
    assert refused is not None
    assert (refused.status, refused.refusal) == (Status.REFUSED, Refusal.WRITER_UNSUITABLE)
    assert refused.detail == "trap: this machine has no such writer; use auto or stop"


@pytest.mark.parametrize("asked", [Writer.AUTO, Writer.BYTE, Writer.STOP])
def test_nothing_else_is_refused(pid: int, asked: Writer) -> None:
    assert WriterChoice(pid, [FORKING, LIBC], asked).refusal(in_module(FORKING)) is None


def test_the_process_is_looked_at_only_when_a_site_needs_it() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    choice = WriterChoice(gone.pid, [APP, LIBC], Writer.AUTO)
    assert choice.of_site(in_module(APP), ONE_BYTE) is Writer.BYTE
    assert choice.refusal(in_module(APP)) is None


def test_each_reason_is_told_once(pid: int) -> None:
    choice = WriterChoice(pid, [APP, LIBC], Writer.AUTO)
    for module in (LIBC, view("ld-linux-x86-64.so.2"), LIBC):
        choice.of_site(in_module(module), MORE)
    assert choice.detail.count("libc.so.6") == 1
    assert len(choice.detail.split("; ")) == 2


def test_a_functions_writer_is_that_of_its_worst_site(pid: int) -> None:
    choice = WriterChoice(pid, [APP, LIBC], Writer.AUTO)
    both = site(Form.PUN, Writer.BYTE, MORE)
    assert choice.of_function(in_module(APP), both) is Writer.TRAP
    assert choice.of_function(in_module(APP), ONE_BYTE) is Writer.BYTE


def test_the_order_of_intrusion() -> None:
    order = [Writer.BYTE, Writer.TRAP, Writer.STOP]
    for chosen in itertools.product(order, repeat=2):
        assert most_intrusive(chosen) is order[max(map(order.index, chosen))]


def test_an_old_plan_must_fit_the_writer_that_is_asked_for() -> None:
    assert writer_fits(ONE_BYTE, Writer.BYTE)
    assert not writer_fits(MORE, Writer.BYTE)
    assert not writer_fits(site(Form.PUN, Writer.BYTE, MORE), Writer.BYTE)
    assert all(writer_fits(MORE, asked) for asked in (Writer.AUTO, Writer.TRAP, Writer.STOP))
