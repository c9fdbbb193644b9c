"""The one thread that changes a process, and the queue before it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVar

_T = TypeVar("_T")
_Job = Callable[[], None]
_NICENESS: Final = -10


class Worker:
    """Runs jobs one after the other; urgent ones before all that wait.

    Args:
        name: Of the thread.
        begin: Called on the thread first.
    """

    def __init__(self, name: str, begin: Callable[[], None] = lambda: None) -> None:
        self._begin = begin
        self._jobs: deque[_Job] = deque()
        self._urgent: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], _T], *, urgent: bool = False) -> Future[_T]:
        """Have something done; what it returns or raises is in the future.

        Raises:
            RuntimeError: The worker has ended.
        """
        future: Future[_T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            if self._is_closed:
                raise RuntimeError("the worker has ended")
            (self._urgent if urgent else self._jobs).append(job)
            self._changed.notify()
        return future

    def breathe(self) -> None:
        """To be called in the middle of a long job, where others may change the process:
        does what is urgent."""
        while self._urgent:
            self._urgent.popleft()()

    def rest(self, until_ns: int) -> None:
        """To be called in the middle of a long job that waits for a moment: does what is
        urgent, and returns when that is done or the moment has come.

        Args:
            until_ns: On CLOCK_MONOTONIC.
        """
        with self._changed:
            if not self._urgent:
                self._changed.wait(max(until_ns - time.monotonic_ns(), 0) / 1e9)
        self.breathe()

    def wake(self) -> None:
        """End a `rest`."""
        with self._changed:
            self._urgent.append(_nothing)
            self._changed.notify()

    def shutdown(self) -> None:
        """Do what is queued, and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        self._begin()
        while True:
            with self._changed:
                while not (self._urgent or self._jobs or self._is_closed):
                    self._changed.wait()
                queue = self._urgent or self._jobs
                if not queue:
                    return
                job = queue.popleft()
            job()


def _nothing() -> None:
    """What a thread does that is woken for its own sake."""


def prefer_this_thread() -> None:
    """Let the calling thread run before others, where that is allowed.

    What it does is short, and while it waits for a processor in the middle of
    a patch, threads of the target wait for it.
    """
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
