"""The session's worker: one thing at a time, what is urgent first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from uftrace_agent.session.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("worker")
    yield made
    made.shutdown()


def test_answers_and_errors_come_back(worker: Worker) -> None:
    assert worker.submit(lambda: 5).result(10) == 5
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 // 0).result(10)
    assert worker.submit(threading.get_ident).result(10) != threading.get_ident()


def test_what_is_urgent_passes_a_long_queue(worker: Worker) -> None:
    may_begin, order = threading.Event(), list[str]()
    worker.submit(lambda: may_begin.wait(10))
    last = [worker.submit(lambda: order.append("patch")) for _ in range(100)][-1]
    worker.submit(lambda: order.append("urgent"), urgent=True)
    may_begin.set()
    last.result(10)
    assert order == ["urgent"] + ["patch"] * 100


def test_what_is_urgent_does_not_wait_for_the_end_of_what_takes_long(worker: Worker) -> None:
    begun, asked, order = threading.Event(), threading.Event(), list[str]()

    def long() -> None:
        begun.set()
        asked.wait(10)
        worker.breathe()
        order.append("patched")

    done = worker.submit(long)
    begun.wait(10)
    worker.submit(lambda: order.append("urgent"), urgent=True)
    asked.set()
    done.result(10)
    assert order == ["urgent", "patched"]


def test_a_rest_ends_at_its_moment_and_for_what_is_urgent(worker: Worker) -> None:
    order = list[str]()
    begun, far_ns = threading.Event(), time.monotonic_ns() + 3600 * 10**9

    def long() -> int:
        begun.set()
        worker.rest(far_ns)
        order.append("woken")
        worker.rest(far_ns)
        until_ns = time.monotonic_ns() + 20_000_000
        while time.monotonic_ns() < until_ns:
            worker.rest(until_ns)
        return time.monotonic_ns() - until_ns

    done = worker.submit(long)
    begun.wait(10)
    worker.submit(lambda: order.append("urgent"), urgent=True).result(10)
    worker.wake()
    assert done.result(10) >= 0
    assert order == ["urgent", "woken"]


def test_the_end_does_what_is_queued_and_takes_nothing_more() -> None:
    made, order = Worker("worker"), list[int]()
    for number in range(10):
        made.submit(lambda number=number: order.append(number))  # type: ignore[misc]
    made.shutdown()
    assert order == list(range(10))
    with pytest.raises(RuntimeError):
        made.submit(lambda: None)
