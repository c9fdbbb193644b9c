"""Signs of life on stderr, only where stderr is a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE_SECONDS = 1.0
_FRAME_SECONDS = 0.12
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """Shows that work goes on if it takes longer than a second."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_spin, args=(what, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _spin(what: str, done: threading.Event) -> None:
    if done.wait(_PATIENCE_SECONDS):
        return
    turn = 0
    while not done.wait(_FRAME_SECONDS):
        sys.stderr.write(f"\r{_FRAMES[turn % len(_FRAMES)]} {what} ... ")
        sys.stderr.flush()
        turn += 1
    clear_line()


def clear_line() -> None:
    """Removes a progress line."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def show_line(text: str) -> None:
    """Replaces the progress line."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
