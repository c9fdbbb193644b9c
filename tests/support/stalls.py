"""How long a busy machine kept us waiting, for what has to be done within seconds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_NAP_SECONDS = 0.02
# Whoever takes part waits for a processor like we do: a client, an agent, a program.
_PARTIES = 3
# More is no excuse.
_MOST_CROWDED = 4.0


class Stalls:
    """Counts, while it is entered, how much longer short naps take than they should.

    Attributes:
        seconds: The sum so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._nap, daemon=True)

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _nap(self) -> None:
        while not self._is_over.is_set():
            since = time.monotonic()
            if not self._is_over.wait(_NAP_SECONDS):
                self.seconds += max(time.monotonic() - since - 2 * _NAP_SECONDS, 0.0)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done in it takes no longer than that, but for what the machine was not ours:
    naps that took too long, and as much longer as there is more to run than processors."""
    since = time.monotonic()
    with Stalls() as stalls:
        yield
    took = time.monotonic() - since
    crowd = min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0), _MOST_CROWDED)
    allowed = seconds * crowd + _PARTIES * stalls.seconds
    assert took <= allowed, f"{took:.2f} s, of {allowed:.2f} s"
