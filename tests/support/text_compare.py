# SPDX-License-Identifier: Apache-2.0
"""Proofs that a process is as it was: its text, and nobody tracing it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+) *(.*)"
)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One executable mapping of a file: a line of ``/proc/PID/maps``."""

    start: int
    end: int
    permissions: str
    offset: int
    inode: int
    path: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A run of bytes that are not what they should be."""

    address: int
    path: str
    offset: int
    want: bytes
    got: bytes

    def __str__(self) -> str:
        return (
            f"{self.address:#x} {self.path}+{self.offset:#x}: "
            f"want {self.want[:16].hex(' ')} got {self.got[:16].hex(' ')} ({len(self.got)} bytes)"
        )


def executable_mappings(pid: int) -> list[Mapping]:
    """Returns the executable mappings of files in a process, in order of address."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = _MAPS_LINE.fullmatch(line)
        if match is None:
            raise AssertionError(f"unreadable maps line: {line!r}")
        start, end, permissions, offset, _, inode, path = match.groups()
        if "x" in permissions and inode != "0":
            found.append(
                Mapping(
                    int(start, 16), int(end, 16), permissions, int(offset, 16), int(inode), path
                )
            )
    return found


def _read_memory(memory: int, mapping: Mapping) -> bytes:
    return os.pread(memory, mapping.end - mapping.start, mapping.start)


def _read_file(pid: int, mapping: Mapping) -> bytes:
    # map_files is the mapped inode itself, even when the path was replaced.
    link = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    try:
        file = os.open(link, os.O_RDONLY)
    except PermissionError:
        file = os.open(f"/proc/{pid}/root{mapping.path}", os.O_RDONLY)
    try:
        if os.fstat(file).st_ino != mapping.inode:
            raise AssertionError(f"{mapping.path} is not the file that is mapped")
        return os.pread(file, mapping.end - mapping.start, mapping.offset)
    finally:
        os.close(file)


def _differences(mapping: Mapping, want: bytes, got: bytes) -> Iterator[Difference]:
    if len(got) < mapping.end - mapping.start:
        raise AssertionError(f"{mapping}: only {len(got)} bytes are readable")
    want = want.ljust(len(got), b"\0")  # behind the end of the file the page is zero
    for page in range(0, len(got), PAGE):
        if want[page : page + PAGE] == got[page : page + PAGE]:
            continue
        at = page
        while at < page + PAGE:
            if want[at] == got[at]:
                at += 1
                continue
            run = at
            while run < page + PAGE and want[run] != got[run]:
                run += 1
            yield Difference(
                mapping.start + at, mapping.path, mapping.offset + at, want[at:run], got[at:run]
            )
            at = run


def text_differences(pid: int) -> list[Difference]:
    """Compares every executable mapping of a file, byte for byte, with its file.

    Returns:
        The differing runs of bytes in order of address; empty when all is as in the files.
    """
    mappings = executable_mappings(pid)
    assert mappings, f"process {pid} has no text"
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return [
            difference
            for mapping in mappings
            for difference in _differences(
                mapping, _read_file(pid, mapping), _read_memory(memory, mapping)
            )
        ]
    finally:
        os.close(memory)


def assert_text_unchanged(pid: int) -> None:
    """Asserts that all text of a process is what its files say."""
    _assert_none(text_differences(pid))


def snapshot_text(pid: int) -> dict[Mapping, bytes]:
    """Reads all text of a process, to be compared later by ``assert_text_as``."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return {mapping: _read_memory(memory, mapping) for mapping in executable_mappings(pid)}
    finally:
        os.close(memory)


def assert_text_as(pid: int, snapshot: dict[Mapping, bytes]) -> None:
    """Asserts that the text at the addresses of a snapshot is unchanged since."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        _assert_none(
            [
                difference
                for mapping, want in snapshot.items()
                for difference in _differences(mapping, want, _read_memory(memory, mapping))
            ]
        )
    finally:
        os.close(memory)


def _assert_none(differences: list[Difference]) -> None:
    first = "\n".join(f"  {difference}" for difference in differences[:10])
    assert not differences, f"text differs in {len(differences)} places:\n{first}"


def thread_states(pid: int) -> dict[int, tuple[str, int]]:
    """Returns (state letter, TracerPid) of every live thread."""
    found = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            status = Path(f"/proc/{pid}/task/{task}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        found[int(task)] = (fields["State"][0], int(fields["TracerPid"]))
    return found


def assert_not_traced(pid: int) -> None:
    """Asserts that no thread is traced or stopped."""
    held = {
        task: state
        for task, state in thread_states(pid).items()
        if state[1] != 0 or state[0] in "tT"
    }
    assert not held, f"threads traced or stopped (state, tracer): {held}"
