# What an export format is.
from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from uftrace_remote.errors import OutputError
from uftrace_remote.trace.store import TraceReader


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written.

    Attributes:
        path: File or directory.
        calls: Calls in it.
        remarks: What the format could not express, in sentences.
    """

    path: Path
    calls: int
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """One format.

    Attributes:
        name: What `--format` takes.
        description: What it is for.
        write: Writes a trace to a path; an OutputError says why not.
    """

    name: str
    description: str
    write: Callable[[TraceReader, Path], ExportResult]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name only when it is complete.

    Raises:
        OutputError: It cannot be written.
    """
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            yield file
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise output_failed(path, error) from error


def output_failed(path: Path, error: OSError) -> OutputError:
    """The client's error for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"disk full while writing {path}",
            reason="DISK_FULL",
            hint="free some space or choose another place",
        )
    return OutputError(f"cannot write {path}: {error.strerror}")
