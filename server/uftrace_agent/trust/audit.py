"""The file of changes: one JSON object a line.

No request waits for it or fails because of it. Lines go through a bounded
queue to a thread of their own; what finds the queue full or the disk full is
counted, and the next line that can be written says how many are missing.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog

_QUEUED_LINES: Final = 10_000
_CLOSE_SECONDS: Final = 5.0

_log = structlog.stdlib.get_logger(__name__)


class AuditFile:
    """Appends lines to a file of mode 0600.

    A file that was renamed or removed (logrotate) is made anew with the next line.

    Args:
        path: The file; None keeps none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._queue: queue.Queue[str | None] = queue.Queue(_QUEUED_LINES)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._lost = 0
        self._broken = False
        self._descriptor = -1

    @property
    def lost(self) -> int:
        """Lines that are missing and not told of yet."""
        with self._lock:
            return self._lost

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line, some time soon. Never blocks, never raises."""
        if self._path is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        try:
            self._queue.put_nowait(json.dumps({"time": now, **entry}, default=str))
        except queue.Full:
            self._count_lost(1)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what is queued and close the file; a disk that hangs is not waited for."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_SECONDS)
        self._thread.join(_CLOSE_SECONDS)
        self._thread = None

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            self._append(line)
        self._close_file()

    def _append(self, line: str) -> None:
        lost = self.lost
        text = line + "\n"
        if lost:
            text = json.dumps({"what": "audit", "lost": lost}) + "\n" + text
        try:
            self._reopen_if_renamed()
            _append_whole(self._descriptor, text.encode())
        except OSError as error:
            self._count_lost(1)
            if not self._broken:
                self._broken = True
                _log.error("the audit file cannot be written", error=str(error))
            return
        if self._broken:
            self._broken = False
            _log.warning("the audit file is written again", lost=lost)
        self._count_lost(-lost)

    def _count_lost(self, count: int) -> None:
        with self._lock:
            self._lost += count

    def _reopen_if_renamed(self) -> None:
        assert self._path is not None
        if self._descriptor >= 0:
            held = os.fstat(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                named = os.stat(self._path)
                if (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino):
                    return
            self._close_file()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        # An umask only takes away, but a file that was there may be open to all.
        os.fchmod(self._descriptor, 0o600)

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


# A full disk takes the beginning of a line: it is taken back, for readers want lines.
def _append_whole(descriptor: int, data: bytes) -> None:
    before = os.fstat(descriptor).st_size
    written = os.write(descriptor, data)
    if written != len(data):
        os.ftruncate(descriptor, before)
        raise OSError(28, os.strerror(28))
