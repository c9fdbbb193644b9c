"""What all tests share: markers by folder, and a check that nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc import aio
from hypothesis import settings

from tests.support.waiting import wait_until

TESTS = Path(__file__).parent
# The same examples in every run: a run that fails can be run again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
# Tests compile programs with zig: its cache is the build's, not one in $HOME.
for _variable in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
    os.environ.setdefault(_variable, str(TESTS.parent / "build" / "zig-cache"))

KINDS = {"unit", "engine", "e2e", "fleet", "arm", "fuzz", "torture"}

# gRPC keeps one poller for as long as the process lives, and an event loop
# keeps its executor until the loop is closed, which is after the test.
LASTING_THREADS = ("_poll_wrapper", "asyncio_")
LASTING_FILES = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[timerfd]")
SETTLING_SECONDS = 10.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = item.path.relative_to(TESTS).parts[0]
        if kind in KINDS:
            item.add_marker(kind)


@dataclass(frozen=True)
class Possessions:
    """What this process has that a test could leave behind."""

    files: tuple[str, ...]
    threads: frozenset[threading.Thread]
    children: frozenset[int]

    @classmethod
    def now(cls) -> Possessions:
        return cls(_open_files(), _threads(), _children())

    def added_to(self, before: Possessions) -> list[str]:
        """Name what is here that was not there before."""
        files = list(self.files)
        for name in before.files:
            if name in files:
                files.remove(name)
        return [
            *(f"open file {name}" for name in files),
            *(f"thread {thread.name}" for thread in self.threads - before.threads),
            *(f"child process {pid}" for pid in self.children - before.children),
        ]


@pytest.fixture(scope="session")
def started_grpc() -> None:
    """gRPC with the files that it opens at its first use and never closes."""

    async def start() -> None:
        aio.init_grpc_aio()

    # In a thread of its own: the main thread's event loop is pytest-asyncio's.
    starting = threading.Thread(target=asyncio.run, args=(start(),))
    starting.start()
    starting.join()


@pytest.fixture
def no_leaks(started_grpc: None) -> Iterator[None]:
    """Fail the test if it leaves open files, threads or child processes behind."""
    before = Possessions.now()
    yield
    if Possessions.now().added_to(before):
        # What only waits for the collector of cycles, which comes by count and not by time.
        gc.collect()
    wait_until(
        lambda: not Possessions.now().added_to(before),
        timeout=SETTLING_SECONDS,
        otherwise=lambda: f"left behind: {', '.join(Possessions.now().added_to(before))}",
    )


def _open_files() -> tuple[str, ...]:
    names = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        # A socket's number says nothing, and another one is as good.
        name = "socket" if name.startswith("socket:") else name
        if name not in LASTING_FILES:
            names.append(name)
    return tuple(names)


def _threads() -> frozenset[threading.Thread]:
    return frozenset(
        thread
        for thread in threading.enumerate()
        if not any(word in thread.name for word in LASTING_THREADS)
        and not isinstance(thread, threading._DummyThread)
    )


def _children() -> frozenset[int]:
    children: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        # A thread may end meanwhile; its children go to another one.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children.update(map(int, listing.read_text().split()))
    return frozenset(children)
