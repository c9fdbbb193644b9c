# SPDX-License-Identifier: Apache-2.0
"""Where the sites of a form are: for tools that want addresses, or offsets in the file."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.text_compare import executable_mappings
from tests.torture.subject import Subject
from uftrace_agent.engine.program import Program
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.symbols.cache import ImageCache


@dataclass(frozen=True, slots=True)
class Place:
    """A function: its name, live address, and offset in the program's file."""

    name: str
    address: int
    offset: int


def places_of(subject: Subject, most: int) -> list[Place]:
    """The first `most` sites of a subject's form, by rising address. Nothing attaches."""
    images = ImageCache()
    with ProcessMemory(subject.pid) as memory:
        program = Program(memory, images)
        program.refresh()
        found = [
            (function.symbol.linkage_name, function.address)
            for function in program.select([subject.cases[0].pattern])[:most]
        ]
    images.clear()
    mappings = executable_mappings(subject.pid)
    places = []
    for name, address in found:
        text = next(m for m in mappings if m.start <= address < m.end)
        places.append(Place(name, address, address - text.start + text.offset))
    return places
