"""Waiting for what must become true, for a limited time."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

_PAUSE_SECONDS = 0.01
# How many times longer everything may take: for emulated processors.
SLOWNESS = float(os.environ.get("UFTRACE_TESTS_SLOWNESS", "1"))


def wait_until(
    condition: Callable[[], object],
    *,
    timeout: float = 30.0,
    otherwise: Callable[[], str] = lambda: "it did not become true",
) -> None:
    """Wait until `condition()` is true; fail with `otherwise()` after `timeout` seconds."""
    deadline = time.monotonic() + SLOWNESS * timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        pause.wait(_PAUSE_SECONDS)


async def wait_until_async(
    condition: Callable[[], object],
    *,
    timeout: float = 30.0,
    otherwise: Callable[[], str] = lambda: "it did not become true",
) -> None:
    """The same beside a running event loop."""
    deadline = time.monotonic() + SLOWNESS * timeout
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        await asyncio.sleep(_PAUSE_SECONDS)
