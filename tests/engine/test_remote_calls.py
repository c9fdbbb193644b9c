"""System calls by the target's threads, all in one go: whoever lends itself sees nothing."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.engine.live import Live, attached
from tests.support.architecture import here
from tests.support.target_process import DEADLINE, TargetProcess
from tests.support.text_compare import assert_not_traced, thread_states
from tests.support.waiting import wait_until
from tests.targets.build import build
from uftrace_agent.engine.needed_calls import filter_watch
from uftrace_agent.errors import TargetGoneError
from uftrace_agent.process import remote_calls
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.remote_calls import RemoteCall, RemoteCaller
from uftrace_agent.process.threads import thread_ids, thread_state
from uftrace_agent.runtime.layout import define

CALLS = native_machine().calls
GETPID, GETTID, MUNMAP, MADVISE = CALLS.getpid, CALLS.gettid, CALLS.munmap, CALLS.madvise
NANOSLEEP, GETPPID = here(x86_64=(35, 110), aarch64=(101, 173))


def borrow(monkeypatch: pytest.MonkeyPatch, tid: int) -> None:
    """From now on this thread makes the calls, however unfit it is."""

    def only(pid: int) -> list[object]:
        state = thread_state(pid, tid)
        return [state] if state else []

    monkeypatch.setattr(remote_calls, "remote_call_candidates", only)


def caller_of(live: Live, how: str) -> RemoteCaller:
    """`one go`: by the routine in the annex; `singly`: each by itself."""
    if how == "one go":
        return live.attachment.annex.caller
    return RemoteCaller(live.attachment.memory, filter_watch(live.pid))


def calls_in(tid_calls: Sequence[int], calls: int = 5) -> Sequence[RemoteCall]:
    return [RemoteCall(number, ()) for number in tid_calls] * calls


HOW = pytest.mark.parametrize("how", ["one go", "singly"])


# -- the thread itself ---------------------------------------------------------------------


@HOW
def test_h29_h31_h76_a_busy_thread_keeps_all_its_registers(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """General, vector and mask registers, x87 and MXCSR, the red zone; its signal mask and
    its alternate stack: the program holds values in all of them and looks."""
    with TargetProcess(build("steady")) as target:
        tids = [int(word) for word in target.command("tids").split()[1:]]
        with attached(target.pid) as live:
            caller = caller_of(live, how)
            for turn in range(60):
                tid = tids[turn % 2]
                borrow(monkeypatch, tid)
                wanted = [target.pid, tid, os.getpid()] * 5
                assert caller.call(calls_in([GETPID, GETTID, GETPPID])) == wanted
            assert set(tids) <= caller.take_pauses().by_thread.keys()
        target.wait_iterations(50)
        assert_not_traced(target.pid)
        target.quit()


@HOW
def test_h68_h69_no_waiting_thread_sees_an_eintr(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """nanosleep, epoll_wait, recv with a timeout, semtimedop, sigtimedwait, futex, accept and
    others, each made to lend itself: the program reports every EINTR that it did not cause."""
    with TargetProcess(build("blocked")) as target:
        kinds = set()
        with attached(target.pid) as live:
            caller = caller_of(live, how)
            for tid in thread_ids(target.pid):
                borrow(monkeypatch, tid)
                state = thread_state(target.pid, tid)
                assert state is not None
                kinds.add(state.call)
                for _ in range(5):
                    assert caller.call(calls_in([GETPID, GETTID])) == [target.pid, tid] * 5
                wait_until(lambda tid=tid: thread_states(target.pid)[tid][0] == "S")
        assert len(kinds) >= 9, "in as many system calls"
        target.command("poke")
        target.quit()


@HOW
def test_h56_handlers_run_at_a_high_rate_meanwhile(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Timers and storms of signals, on small alternate stacks, into the very threads."""
    with TargetProcess(build("signals")) as target:
        running = [t for t in thread_ids(target.pid) if is_running(target.pid, t)]
        assert running
        with attached(target.pid) as live:
            caller = caller_of(live, how)
            until = time.monotonic() + 3
            made = 0
            # On a loaded machine a thread takes long to stop.
            while time.monotonic() < until or made < 20:
                assert time.monotonic() < until + DEADLINE
                tid = running[made % len(running)]
                borrow(monkeypatch, tid)
                assert caller.call(calls_in([GETPID, GETTID])) == [target.pid, tid] * 5
                made += 1
        before = target.counters()["calls_on_profile"]
        wait_until(lambda: target.counters()["calls_on_profile"] > before + 100)
        target.quit()


def is_running(pid: int, tid: int) -> bool:
    states = [thread_state(pid, tid) for _ in range(20)]
    return sum(state is not None and state.call is None for state in states) > 5


def test_threads_that_wait_without_an_end_are_taken_first(target: TargetProcess) -> None:
    """main, which reads a pipe: the busy ones are left in peace."""
    with attached(target.pid) as live:
        caller = live.attachment.annex.caller
        caller.take_pauses()
        by_main = 0
        for _ in range(20):
            caller.call(calls_in([GETPID]))
            by_main += caller.take_pauses().by_thread.keys() == {target.pid}
        # Now and then it is not in its call yet.
        assert by_main >= 15


# -- the calls -----------------------------------------------------------------------------


@pytest.fixture
def target() -> Iterator[TargetProcess]:
    with TargetProcess(build("busy8")) as started:
        yield started
        assert_not_traced(started.pid)
        started.quit()


@HOW
def test_results_come_in_order_and_errors_are_results(target: TargetProcess, how: str) -> None:
    with attached(target.pid) as live:
        caller = caller_of(live, how)
        calls = [
            RemoteCall(GETPID, ()),
            RemoteCall(MUNMAP, (1, 4096)),  # no multiple of a page
            RemoteCall(GETPPID, ()),
            RemoteCall(MADVISE, (4096, 4096, 4)),  # nothing is mapped there
            RemoteCall(9999, ()),
            RemoteCall(GETPID, ()),
        ]
        expected = [target.pid, -errno.EINVAL, os.getpid(), -errno.ENOMEM, -errno.ENOSYS]
        assert caller.call(calls) == [*expected, target.pid]


@pytest.mark.parametrize("count", [1, 2, 500, 1023, 1024])
def test_any_number_of_calls(target: TargetProcess, count: int) -> None:
    """More than the table holds are made one by one."""
    assert define("CALLS_CAPACITY") == 1023
    with attached(target.pid) as live:
        calls = [RemoteCall((GETPID, GETPPID)[n % 3 == 1], ()) for n in range(count)]
        results = live.attachment.annex.caller.call(calls)
        assert results == [(target.pid, os.getpid())[n % 3 == 1] for n in range(count)]


def test_all_six_arguments_arrive(target: TargetProcess) -> None:
    """A mapping that is exactly where, what and how it was asked for."""
    with attached(target.pid) as live:
        mmap, place, size = CALLS.mmap, 0x7000_0000_0000, 0x5000
        flags = 0x2 | 0x20 | 0x100000  # private, anonymous, only there
        caller = live.attachment.annex.caller
        (result,) = caller.call([RemoteCall(mmap, (place, size, 1, flags, -1, 0))])
        assert result == place
        maps = f"{place:x}-{place + size:x} r--p"
        with open(f"/proc/{target.pid}/maps") as file:
            assert any(line.startswith(maps) for line in file)
        assert caller.call([RemoteCall(MUNMAP, (place, size))]) == [0]


# -- interruptions ---------------------------------------------------------------------------


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    done: list[object] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, done


def sleeping_calls(live: Live, milliseconds: int, times: int) -> list[RemoteCall]:
    """Calls that take a while."""
    place = live.attachment.annex.data.control + 64
    live.attachment.memory.write(place, struct.pack("<QQ", 0, milliseconds * 1_000_000))
    return [RemoteCall(NANOSLEEP, (place, 0))] * times + [RemoteCall(GETPID, ())]


def is_sleeping(pid: int, tid: int) -> bool:
    state = thread_state(pid, tid)
    return state is not None and state.call == NANOSLEEP


def test_h67_a_process_that_is_stopped_in_the_middle(target: TargetProcess) -> None:
    """SIGSTOP while a thread makes its calls: the rest is made all the same, and the
    process stays stopped."""
    with attached(target.pid) as live:
        calls = sleeping_calls(live, 100, 5)
        thread, done = in_background(lambda: live.attachment.annex.caller.call(calls))
        wait_until(lambda: is_sleeping(target.pid, target.pid))
        os.kill(target.pid, signal.SIGSTOP)
        try:
            thread.join(30)
            assert not thread.is_alive()
            results = done[0]
            assert isinstance(results, list), results
            assert results[-1] == target.pid
            assert set(results[:-1]) <= {0, -errno.EINTR}
            wait_until(lambda: {s for s, _ in thread_states(target.pid).values()} == {"T"})
        finally:
            os.kill(target.pid, signal.SIGCONT)
        target.wait_iterations(50)


def test_h72_whoever_is_left_in_the_middle_ends_by_itself(target: TargetProcess) -> None:
    """The agent that ordered the calls is gone: the thread makes them all, and goes on
    where it was. (Killed at every step: e2e/test_leftovers.py.)"""
    with attached(target.pid) as live:
        calls = sleeping_calls(live, 50, 4)
        child = os.fork()
        if not child:
            try:
                live.attachment.annex.caller.call(calls)
            finally:
                os._exit(1)
        wait_until(lambda: is_sleeping(target.pid, target.pid))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert_not_traced(target.pid)
        # Its table is another's until then: the next calls wait for it.
        assert live.attachment.annex.caller.call(calls_in([GETPID])) == [target.pid] * 5
        target.burst(1000)


def test_h64_a_process_that_is_killed_in_the_middle() -> None:
    with TargetProcess(build("busy8")) as target:
        memory = ProcessMemory(target.pid)
        with pytest.raises((TargetGoneError, AssertionError)), attached(target.pid) as live:
            calls = sleeping_calls(live, 100, 10)
            thread, done = in_background(lambda: live.attachment.annex.caller.call(calls))
            wait_until(lambda: is_sleeping(target.pid, target.pid))
            os.kill(target.pid, signal.SIGKILL)
            thread.join(30)
            assert not thread.is_alive()
            assert isinstance(done[0], TargetGoneError), done
            raise done[0]
        memory.close()
