# SPDX-License-Identifier: Apache-2.0
"""The kernel's uprobes and uretprobes, through tracefs; for root."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.tracefs import define_uprobe, tracefs
from tests.torture.places import Place
from tests.torture.subject import Subject


class _Uprobes:
    def __init__(self, group: str, count: int) -> None:
        self._folder = tracefs() / "events" / group
        self._known = [self._is_defined(index) for index in range(count)]

    def _is_defined(self, index: int) -> bool:
        return all((self._folder / f"{kind}{index}").exists() for kind in "pr")

    def enable(self, indices: Sequence[int]) -> int:
        return self._switch(indices, "1")

    def disable(self, indices: Sequence[int]) -> int:
        return self._switch(indices, "0")

    def _switch(self, indices: Sequence[int], value: str) -> int:
        known = [index for index in indices if self._known[index]]
        for index in known:
            for kind in "pr":
                _write(self._folder / f"{kind}{index}" / "enable", value)
        return len(known)


@contextmanager
def uprobe_peer(subject: Subject, places: Sequence[Place]) -> Iterator[_Uprobes]:
    """Define an entry and a return probe for each place; gone when the block ends."""
    group = f"torture_{subject.pid}"
    file = subject.target.binary
    defined = []
    try:
        for index, place in enumerate(places):
            for kind in "pr":
                # Some instructions the kernel refuses to run elsewhere.
                with suppress(OSError):
                    define_uprobe(f"{kind}:{group}/{kind}{index} {file}:{place.offset:#x}")
                    defined.append(f"{group}/{kind}{index}")
        yield _Uprobes(group, len(places))
    finally:
        with suppress(OSError):
            _write(tracefs() / "events" / group / "enable", "0")
        for name in defined:
            define_uprobe(f"-:{name}")


def _write(path: Path, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
