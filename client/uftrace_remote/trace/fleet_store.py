"""A recording of many processes: written by `record` on a fleet, read by what reads traces.

    fleet.json            who was recorded, where, how far their clocks were from ours, and
                          what came of each of them
    web1_50051-1234/      one ordinary trace directory for each process

fleet.json names the directories from the beginning: a recorder that is killed leaves
traces that are found.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from uftrace_remote.errors import OutputError
from uftrace_remote.trace.store import (
    TRACE_FILES,
    output_failed,
    write_json,
)

FORMAT: Final = "uftrace-remote-fleet"
VERSION: Final = 1
FLEET_FILE: Final = "fleet.json"

_LONGEST_NAME: Final = 200


class FleetWriter:
    """Writes the directory of a recording of many processes.

    Args:
        directory: Made if it is not there; has to be empty unless `force`.
        metadata: What to put into fleet.json (JSON values).
        force: Replace a recording that is there.

    Raises:
        OutputError: The directory is in use or cannot be written.
    """

    def __init__(
        self, directory: Path, metadata: Mapping[str, Any], *, force: bool = False
    ) -> None:
        self.directory = directory
        self._metadata = {"format": FORMAT, "version": VERSION, "complete": False, **metadata}
        self._names: set[str] = set()
        try:
            _prepare(directory, force)
        except OSError as error:
            raise output_failed(directory, error) from error
        self.save()

    def place(self, host: str, pid: int) -> Path:
        """A directory for the trace of one process; no two are the same."""
        name = wanted = f"{re.sub(r'[^A-Za-z0-9._-]+', '_', host)[:_LONGEST_NAME]}-{pid}"
        number = 1
        while name in self._names:
            number += 1
            name = f"{wanted}-{number}"
        self._names.add(name)
        return self.directory / name

    def save(self, news: Mapping[str, Any] | None = None) -> None:
        """Adds to fleet.json.

        Raises:
            OutputError: It could not be replaced; what was there before stays.
        """
        self._metadata |= news or {}
        write_json(self.directory / FLEET_FILE, self._metadata)

    def discard(self) -> None:
        """Removes the directory, where nothing came of it."""
        (self.directory / FLEET_FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.directory.rmdir()


def is_fleet_recording(directory: Path) -> bool:
    """Whether it is a directory of many traces."""
    return (directory / FLEET_FILE).is_file()


def load_fleet_file(directory: Path) -> dict[str, Any]:
    """The contents of fleet.json.

    Raises:
        OutputError: They cannot be read.
    """
    try:
        found = json.loads((directory / FLEET_FILE).read_text())
    except (OSError, ValueError) as error:
        raise OutputError(
            f"cannot read {directory / FLEET_FILE}: {error}",
            reason="NOT_A_TRACE",
            hint="each directory in it is a trace of its own, which can be read",
        ) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise OutputError(
            f"{directory} is no recording of a fleet",
            reason="NOT_A_TRACE",
            hint="name a directory that `uftrace-remote record -o DIR` wrote",
        )
    if found.get("version") != VERSION:
        raise OutputError(
            f"{directory} is a recording of format {found.get('version')}, this client reads "
            f"{VERSION}",
            reason="TRACE_VERSION",
            hint="read it with the version that wrote it",
        )
    return found


def _prepare(directory: Path, force: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    present = sorted(directory.iterdir())
    if not present:
        return
    if not force:
        raise OutputError(
            f"{directory} is not empty",
            reason="OUTPUT_EXISTS",
            hint="choose another directory, or --force to replace the recording in it",
        )
    # Somebody's files: --force is for replacing a recording, not for deleting.
    odd = [path.name for path in present if not _is_ours(path)]
    if odd:
        raise OutputError(
            f"{directory} holds other files than a recording of a fleet: {odd[0]}",
            reason="OUTPUT_EXISTS",
            hint="choose another directory",
        )
    for path in present:
        if path.is_dir():
            for each in path.iterdir():
                each.unlink()
            path.rmdir()
        else:
            path.unlink()


def _is_ours(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return {each.name for each in path.iterdir()} <= TRACE_FILES
    return path.name in (FLEET_FILE, f"{FLEET_FILE}.new")


def member_names(hosts: Sequence[tuple[str, int]]) -> list[str]:
    """What to call processes: by host, and by pid where several are on one.

    Args:
        hosts: Host and pid of each.
    """
    counts: dict[str, int] = {}
    for host, _ in hosts:
        counts[host] = counts.get(host, 0) + 1
    return [host if counts[host] == 1 else f"{host}:{pid}" for host, pid in hosts]
