"""A trace directory: written by `record`, read by `replay`, `report` and `export`.

    trace.json   what was traced, where and when; counts and end once it is over
    events.bin   everything the stream said, in order (see `_frames.py`)

`events.bin` alone is enough to read a trace: a recorder that is killed, or
that fills the disk, leaves a shorter trace, not a broken one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from uftrace_remote.errors import OutputError
from uftrace_remote.trace import _frames
from uftrace_remote.trace.summary import TraceSummary
from uftrace_remote.values import EventBatch

FORMAT = "uftrace-remote-trace"
VERSION = 1
_METADATA = "trace.json"
_EVENTS = "events.bin"
TRACE_FILES = frozenset({_METADATA, _EVENTS, _METADATA + ".new"})


class TraceWriter:
    """Writes a trace directory.

    Args:
        directory: Made if it is not there; has to be empty unless `force`.
        metadata: What to put into trace.json (JSON values).
        force: Replace a trace that is there.

    Raises:
        OutputError: The directory is in use or cannot be written.

    Attributes:
        bytes_written: Size of events.bin.
        record_count: Records in it.
    """

    def __init__(
        self, directory: Path, metadata: Mapping[str, Any], *, force: bool = False
    ) -> None:
        self.directory = directory
        self.bytes_written = 0
        self.record_count = 0
        self._names: dict[int, str] = {}
        self._losses: tuple[object, ...] = ()
        self._metadata = {"format": FORMAT, "version": VERSION, "complete": False, **metadata}
        try:
            _prepare(directory, force)
            self._file = os.open(
                directory / _EVENTS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            raise output_failed(directory, error) from error
        try:
            self._append([_frames.MAGIC])
            self._save_metadata()
        except OutputError:
            os.close(self._file)
            raise

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, batch: EventBatch) -> None:
        """Appends one batch.

        Raises:
            OutputError: The disk is full or failed. What was written before is
                whole, and says so.
        """
        names = {
            thread.tid: thread.name
            for thread in batch.threads
            if thread.name and self._names.get(thread.tid) != thread.name
        }
        losses = tuple(batch.losses)
        news = batch.functions or batch.anchors or batch.modules or batch.end or names
        if news or losses != self._losses:
            self._append(_frames.encode_meta(batch, names))
            self._names |= names
            self._losses = losses
        if batch.threads:
            self._append(_frames.encode_records(batch))
            self.record_count += batch.record_count

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """Marks the trace as complete and adds what is known only at the end.

        Raises:
            OutputError: trace.json could not be replaced; the trace is
                readable all the same.
        """
        self._metadata |= {"complete": True, "records": self.record_count, **outcome}
        self._save_metadata()

    def discard(self) -> None:
        """Removes the trace again, where nothing came of it."""
        for name in (_EVENTS, _METADATA):
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    # One system call for a frame. If it is cut short, the frame is taken back.
    def _append(self, pieces: list[bytes]) -> None:
        wanted = sum(map(len, pieces))
        try:
            written = _write_all(self._file, pieces)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.bytes_written)
            raise output_failed(self.directory, error, self.record_count) from error
        assert written == wanted
        self.bytes_written += written

    def _save_metadata(self) -> None:
        write_json(self.directory / _METADATA, self._metadata, self.record_count)


def write_json(path: Path, value: Mapping[str, Any], records: int | None = None) -> None:
    """Replaces a JSON file by one that is whole.

    Args:
        path: The file, in the directory of a trace.
        value: JSON values.
        records: How many records are safe, for the error.

    Raises:
        OutputError: It cannot be written; what was there stays.
    """
    draft = path.with_name(f"{path.name}.new")
    try:
        draft.write_text(json.dumps(value, indent=2) + "\n")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise output_failed(path.parent, error, records) from error


class TraceReader:
    """Reads a trace directory.

    Args:
        directory: What `TraceWriter` wrote.

    Raises:
        OutputError: It is no trace directory.

    Attributes:
        metadata: trace.json; empty where it is missing.
        truncated: Whether the recorder was cut off in the middle of a frame.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metadata: dict[str, Any] = _load_metadata(directory)
        _check_magic(directory)
        self._end = len(_frames.MAGIC)
        self._summary: TraceSummary | None = None

    @property
    def summary(self) -> TraceSummary:
        """Functions, clock, threads, losses and end of the whole trace."""
        if self._summary is None:
            summary = TraceSummary()
            for batch in self.batches():
                summary.add(batch)
            self._summary = summary
        return self._summary

    @property
    def truncated(self) -> bool:
        """Whether the file ends in a torn frame."""
        _ = self.summary
        return self._end != (self.directory / _EVENTS).stat().st_size

    @property
    def complete(self) -> bool:
        """Whether the recorder came to its end."""
        return bool(self.metadata.get("complete")) and not self.truncated

    def batches(self) -> Iterator[EventBatch]:
        """The batches as they were received; thread names are carried along."""
        names: dict[int, str] = {}
        with (self.directory / _EVENTS).open("rb") as file:
            for frame in _frames.read_frames(file):
                self._end = max(self._end, frame.end)
                if frame.tag == _frames.META:
                    batch, news = _frames.decode_meta(frame.body)
                    names |= news
                    yield batch
                else:
                    batch = _frames.decode_records(frame.body)
                    threads = tuple(
                        replace(thread, name=names.get(thread.tid, "")) for thread in batch.threads
                    )
                    yield replace(batch, threads=threads)


def _prepare(directory: Path, force: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    present = {path.name for path in directory.iterdir()}
    if not present:
        return
    if not force:
        raise OutputError(
            f"{directory} is not empty",
            reason="OUTPUT_EXISTS",
            hint="choose another directory, or --force to replace the trace in it",
        )
    if not present <= TRACE_FILES:
        # Somebody's files: --force is for replacing a trace, not for deleting.
        raise OutputError(
            f"{directory} holds other files than a trace: {sorted(present - TRACE_FILES)[0]}",
            reason="OUTPUT_EXISTS",
            hint="choose another directory",
        )
    for name in present:
        (directory / name).unlink()


def _write_all(file: int, pieces: list[bytes]) -> int:
    # IOV_MAX is 1024; a batch of more threads than that is joined first.
    if len(pieces) > 1000:
        pieces = [b"".join(pieces)]
    total = sum(map(len, pieces))
    written = os.writev(file, pieces)
    if written < total:
        # A nearly full disk takes a part; asking again gives the reason.
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            count = os.write(file, rest)
            written += count
            rest = rest[count:]
    return written


def _load_metadata(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / _METADATA).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    if found.get("version", VERSION) != VERSION:
        raise OutputError(
            f"{directory} is a trace of format {found['version']}, this client reads {VERSION}",
            reason="TRACE_VERSION",
            hint="read it with the version that wrote it",
        )
    return found


def _check_magic(directory: Path) -> None:
    try:
        with (directory / _EVENTS).open("rb") as file:
            magic = file.read(len(_frames.MAGIC))
    except OSError as error:
        raise _no_trace(directory) from error
    if magic != _frames.MAGIC:
        raise _no_trace(directory)


def _no_trace(directory: Path) -> OutputError:
    return OutputError(
        f"{directory} is no trace directory",
        reason="NOT_A_TRACE",
        hint="name a directory that `uftrace-remote record -o DIR` wrote",
    )


def output_failed(directory: Path, error: OSError, records: int | None = None) -> OutputError:
    """The error for a directory that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    kept = "" if records is None else f"; the {records:,} records so far are kept and readable"
    return OutputError(
        f"{'disk full while writing' if full else 'cannot write'} {directory}"
        f"{'' if full else f': {error.strerror}'}{kept}",
        reason="DISK_FULL" if full else "OUTPUT_FAILED",
        hint="free some space or choose another directory" if full else "",
    )
