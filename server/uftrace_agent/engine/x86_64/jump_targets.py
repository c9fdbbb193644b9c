"""Which addresses of a module some jump in it may lead to."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.engine.site import ModuleText

_CHUNK: Final = 1 << 20
# Opcodes whose one operand byte is a distance: jcc, loop*, jrcxz, jmp.
_SHORT: Final = np.zeros(256, bool)
_SHORT[0x70:0x80] = _SHORT[0xE0:0xE4] = _SHORT[0xEB] = True


class JumpTargets:
    """Marks every address that four bytes anywhere in a module's code could be
    the distance to, and every address that a short jump at any byte could reach.

    Instructions are not told from their insides, so this errs on the safe side
    only: it sees `jmp`, `call`, `jcc` and `lea` of whatever disassembly is the
    right one, and some that are none. It does not see jump tables.
    """

    def __init__(self, text: ModuleText) -> None:
        self._marks: list[tuple[int, NDArray[np.bool_]]] = []
        for address, code in text.executable():
            data = np.frombuffer(code, "u1")
            marks = np.zeros(len(data), bool)
            for start in range(0, len(data), _CHUNK):
                _mark(marks, data, start, min(start + _CHUNK, len(data)))
            self._marks.append((address, marks))

    def __contains__(self, address: int) -> bool:
        return any(
            start <= address < start + len(marks) and bool(marks[address - start])
            for start, marks in self._marks
        )


def _mark(marks: NDArray[np.bool_], data: NDArray[np.uint8], start: int, end: int) -> None:
    short = start + np.flatnonzero(_SHORT[data[start : min(end, len(data) - 1)]])
    reached = [short + 2 + data[short + 1].view("i1")]
    for first in range(start, min(start + 4, len(data) - 3)):
        count = (min(end + 3, len(data)) - first) // 4
        distances = np.frombuffer(data[first : first + 4 * count].tobytes(), "<i4")
        ends = np.arange(first + 4, first + 4 + 4 * count, 4)
        reached.append(ends + distances)
    for targets in reached:
        marks[targets[(targets >= 0) & (targets < len(marks))]] = True


class JumpTargetsCache:
    """Looks through each module once, when it is first asked about."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[ModuleText, JumpTargets] = WeakKeyDictionary()

    def of(self, text: ModuleText) -> JumpTargets:
        """The jump targets of a module."""
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = JumpTargets(text)
        return found
