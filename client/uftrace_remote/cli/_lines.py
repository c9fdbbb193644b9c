"""Lines of the call tree in uftrace's format, and a thread that writes them.

# DURATION     TID     FUNCTION
            [  1234] | parent() {
   1.234 us [  1234] |   leaf();
  12.345 us [  1234] | } /* parent */
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterable

from uftrace_remote.cli import _output
from uftrace_remote.trace.tree import LineKind, TreeLine

HEADER = "# DURATION     TID     FUNCTION"

# Colours of uftrace: milliseconds, seconds, minutes stand out.
_COLORS = ((60_000_000_000, "\x1b[31m"), (1_000_000_000, "\x1b[33m"), (1_000_000, "\x1b[32m"))
_GREY = "\x1b[90m"
_RESET = "\x1b[0m"
_BLANK = " " * 10

_LINES_AT_ONCE = 500


class LineFormatter:
    """Formats lines.

    Args:
        name_of: The name behind a function id.
        color: Whether to use colours.
    """

    def __init__(self, name_of: Callable[[int], str], color: bool) -> None:
        self._name_of = name_of
        self._color = color

    def format(self, line: TreeLine) -> str:
        """One line, without the line end."""
        name = self._name_of(line.function_id)
        indent = "  " * line.depth
        took = _BLANK if line.duration_ns is None else _output.duration(line.duration_ns)
        if self._color and line.duration_ns is not None:
            took = self._colored(took, line.duration_ns)
        if line.kind is LineKind.END:
            text = f"}} /* {name}{' (skipped)' if line.skipped else ''} */"
            if self._color:
                text = f"}} {_GREY}{text[2:]}{_RESET}"
        else:
            # A C++ name comes with its parameters.
            call = name if name.endswith(")") else f"{name}()"
            text = f"{call} {{" if line.kind is LineKind.BEGIN else f"{call};"
            if line.skipped:
                text += " /* skipped */"
        return f" {took} [{line.tid:6d}] | {indent}{text}"

    def format_all(self, lines: Iterable[TreeLine]) -> list[str]:
        """All lines."""
        return [self.format(line) for line in lines]

    def _colored(self, text: str, nanoseconds: int) -> str:
        for least, color in _COLORS:
            if nanoseconds >= least:
                return f"{color}{text}{_RESET}"
        return text


class LinePrinter:
    """Writes lines to stdout on a thread of its own: a slow terminal holds up nobody.

    Args:
        on_broken_pipe: Called, on that thread, when nobody reads any more.

    Attributes:
        broken: Whether nobody reads any more; further lines are dropped.
    """

    def __init__(self, on_broken_pipe: Callable[[], object]) -> None:
        self.broken = False
        self._on_broken_pipe = on_broken_pipe
        self._queue: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._backlog = 0
        self._thread = threading.Thread(target=self._write, name="printer", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Lines that wait to be written."""
        return self._backlog

    def print(self, lines: list[str]) -> None:
        """Queues some lines."""
        for start in range(0, len(lines), _LINES_AT_ONCE):
            piece = lines[start : start + _LINES_AT_ONCE]
            with self._lock:
                self._backlog += len(piece)
            self._queue.put(piece)

    def close(self) -> None:
        """Waits until everything is written."""
        self._queue.put(None)
        self._thread.join()

    def _write(self) -> None:
        while (lines := self._queue.get()) is not None:
            if not self.broken:
                try:
                    sys.stdout.write("\n".join(lines) + "\n")
                    sys.stdout.flush()
                except BrokenPipeError:
                    self.broken = True
                    self._on_broken_pipe()
            with self._lock:
                self._backlog -= len(lines)


def use_color(color: bool | None) -> bool:
    """Whether to colour stdout: as asked for, else if it is a terminal."""
    return sys.stdout.isatty() if color is None else color
