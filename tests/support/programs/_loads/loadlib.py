# SPDX-License-Identifier: Apache-2.0
"""What the load generators share: clients in threads, counts, and the protocol with the test.

A generator runs as ``python KIND.py LIMIT ARGUMENTS``: says {"pids": [...]} when
every client is connected, works until stdin is closed (or LIMIT seconds), and
says {"requests": N, "errors": N, "detail": "..."}.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

REPLY_DEADLINE = 20.0


class Tally:
    """Counts requests and errors of many threads."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.details: list[str] = []
        self._lock = threading.Lock()

    def add(self, requests: int) -> None:
        """Counts requests that were answered right."""
        with self._lock:
            self.requests += requests

    def error(self, text: str, count: int = 1) -> None:
        """Counts errors and keeps the first few."""
        with self._lock:
            self.errors += count
            if len(self.details) < 10:
                self.details.append(text)

    def note(self, text: str) -> None:
        """Adds a line that is not an error."""
        with self._lock:
            self.details.append(text)

    def check(self, what: str, got: object, want: object) -> None:
        """Counts one request, and an error when its answer is not the one wanted."""
        self.add(1)
        if got != want:
            self.error(f"{what}: got {str(got)[:200]!r} want {str(want)[:200]!r}")


class Client:
    """A socket that is read by lines and by counts."""

    def __init__(self, address: int | str) -> None:
        if isinstance(address, int):
            self.socket = socket.create_connection(("127.0.0.1", address), REPLY_DEADLINE)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(REPLY_DEADLINE)
            self.socket.connect(address)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        """Sends all of it."""
        self.socket.sendall(data)

    def _more(self) -> None:
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        self._buffer += chunk

    def line(self) -> bytes:
        """The next line, without its CR LF."""
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def take(self, count: int) -> bytes:
        """The next bytes."""
        while len(self._buffer) < count:
            self._more()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


# Runs until it is told to stop: client(tally, stop, started).
Worker = Callable[[Tally, threading.Event], None]


def run(
    workers: list[Worker],
    *,
    pids: Callable[[], list[int]] = list,
    connected: threading.Barrier | None = None,
    after: Callable[[Tally], None] | None = None,
) -> None:
    """Runs the workers until stdin ends, and prints what they found.

    Args:
        workers: Each runs in a thread; an exception in it is an error of the load.
        pids: Gives the server's working processes, once all are connected.
        connected: A barrier that workers pass when connected; one party is ours.
        after: Runs when all workers ended, for checks of totals.
    """
    tally = Tally()
    stop = threading.Event()

    def guarded(worker: Worker) -> None:
        try:
            worker(tally, stop)
        except Exception:
            tally.error(traceback.format_exc(limit=-3))
            if connected is not None:
                connected.abort()

    threads = [threading.Thread(target=guarded, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        if connected is not None:
            connected.wait(30)
        print(json.dumps({"pids": pids()}), flush=True)
        wait_for_end(float(sys.argv[1]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if after is not None:
        after(tally)
    detail = "\n".join(tally.details)
    print(json.dumps({"requests": tally.requests, "errors": tally.errors, "detail": detail}))


def wait_for_end(limit: float) -> None:
    """Returns when stdin is closed or the time is up."""
    until = time.monotonic() + limit
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], left)
        if ready and not os.read(0, 4096):
            return
