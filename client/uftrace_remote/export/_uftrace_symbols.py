# Which function lies at which offset of which file, for uftrace's symbol files.
from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from uftrace_remote.values import MappedModule, TracedFunction

# Where functions are put that lie in no known module.
_ELSEWHERE = 0x10000
_SPACING = 16
_ALIGNMENT = 4096


@dataclass(slots=True)
class ModuleSymbols:
    """One mapped file and the traced functions in it.

    Attributes:
        offset_of: Offsets from `start`, by function id.
        symbols: Offsets by symbol name.
    """

    path: str
    build_id: str
    start: int
    end: int
    offset_of: dict[int, int] = field(default_factory=dict)
    symbols: dict[str, int] = field(default_factory=dict)


def place_functions(
    functions: Mapping[int, TracedFunction],
    modules: Sequence[MappedModule],
    executable: str,
) -> list[ModuleSymbols]:
    """Distributes functions to modules.

    The executable always is one of them: uftrace looks for its symbols first.
    A function without a known module gets a made-up address in a made-up one.
    """
    found = _by_path(modules)
    used: dict[str, ModuleSymbols] = {}
    lost: list[TracedFunction] = []
    for function in functions.values():
        module = next(
            (each for each in found.values() if each.start <= function.address < each.end), None
        )
        if module is None:
            lost.append(function)
            continue
        used[module.path] = module
        _add(module, function, function.address - module.start)
    if executable in found:
        used.setdefault(executable, found[executable])
    placed = sorted(used.values(), key=lambda module: module.start)
    if lost:
        end = _ELSEWHERE + (len(lost) * _SPACING // _ALIGNMENT + 1) * _ALIGNMENT
        elsewhere = ModuleSymbols(executable if not placed else "/unknown", "", _ELSEWHERE, end)
        for place, function in enumerate(lost):
            _add(elsewhere, function, place * _SPACING)
        placed.insert(0, elsewhere)
    _make_names_distinct(placed)
    return placed


# A file has several mappings; uftrace takes the first as the base.
def _by_path(modules: Sequence[MappedModule]) -> dict[str, ModuleSymbols]:
    found: dict[str, ModuleSymbols] = {}
    for module in modules:
        if not module.path.startswith("/"):
            continue
        path = module.path.removesuffix(" (deleted)")
        known = found.get(path)
        if known is None:
            found[path] = ModuleSymbols(path, module.build_id, module.start, module.end)
        else:
            known.start = min(known.start, module.start)
            known.end = max(known.end, module.end)
    return found


def _add(module: ModuleSymbols, function: TracedFunction, offset: int) -> None:
    module.offset_of[function.function_id] = offset
    # uftrace demangles by itself. A space would end the name in its file.
    name = (function.linkage_name or function.name).replace("\n", " ")
    if module.symbols.get(name, offset) != offset:
        # Static functions of one name: the offset tells them apart.
        name = f"{name}@{offset:x}"
    module.symbols[name] = offset


# Symbol files are named after the last part of the path only.
def _make_names_distinct(modules: Sequence[ModuleSymbols]) -> None:
    seen: set[str] = set()
    for module in modules:
        base = posixpath.basename(module.path)
        turn = 2
        while posixpath.basename(module.path) in seen:
            module.path = posixpath.join(posixpath.dirname(module.path), f"{base}.{turn}")
            turn += 1
        seen.add(posixpath.basename(module.path))
