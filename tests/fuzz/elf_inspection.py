"""All that the agent does with a file that a process has mapped, but for changing it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from uftrace_agent.engine.exit_rules import ProcessTraits
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import RefusedError, Writer
from uftrace_agent.engine.planner import Planner, PlanOptions
from uftrace_agent.engine.program import ModuleView, ProgramFunction
from uftrace_agent.engine.unwinder import find_unwinders
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.errors import AgentError
from uftrace_agent.process import address_space
from uftrace_agent.symbols import FunctionPattern, LoadedModule, list_modules
from uftrace_agent.symbols.cache import ImageCache
from uftrace_agent.symbols.module_image import ModuleImage
from uftrace_agent.symbols.process_modules import TextRange
from uftrace_agent.symbols.suggest import suggest

_BASE: Final = 0x5555_5000_0000
_TOP: Final = 1 << 47
_PAGE: Final = 4096
# Of each file so many functions are looked at closely.
_FUNCTIONS: Final = 24


@dataclass(frozen=True, slots=True)
class Inspection:
    """What could be read.

    Attributes:
        functions: How many functions the file has.
        planned: How many of those tried could be patched.
        refusal: What the whole file was refused for; empty if it was not.
    """

    functions: int = 0
    planned: int = 0
    refusal: str = ""


def inspect(path: str, cache: str | None) -> Inspection:
    """Open a file as the agent opens it, read everything, and plan some functions.

    Raises:
        Exception: Anything but the agent's own errors is a bug.
    """
    try:
        images = ImageCache(cache)
        for loaded in _modules(path):
            images.open(loaded.open_path, mapped_path=loaded.path)
        image = images.open(path, mapped_path=path)
        return _inspect_image(image, path)
    except (AgentError, RefusedError) as error:
        assert str(error)
        return Inspection(refusal=type(error).__name__)


# As the kernel would map it, read back out of the process's memory.
def _modules(path: str) -> tuple[LoadedModule, ...]:
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    size = os.stat(path).st_size
    inode = os.stat(path).st_ino
    maps = (
        f"{_BASE:x}-{_BASE + _PAGE:x} r--p 00000000 fe:00 {inode}  {path}\n"
        f"{_BASE + _PAGE:x}-{_BASE + 9 * _PAGE:x} r-xp 00001000 fe:00 {inode}  {path}\n"
    )

    def read_memory(address: int, length: int) -> bytes:
        start = address - _BASE
        if not 0 <= start < size or length > 1 << 20:
            raise OSError("not mapped")
        return head[start : start + length]

    return list_modules(maps, "/proc/self", read_memory).modules


def _inspect_image(image: ModuleImage, path: str) -> Inspection:
    for name in _properties():
        getattr(image, name)
    table = image.functions
    for row in range(0, len(table), max(1, len(table) // _FUNCTIONS)):
        symbol = table.by_index(row)
        assert table.index_of_address(symbol.address) is not None
        table.address_of(symbol.linkage_name)
        table.at_address(symbol.address + symbol.size // 2)
    FunctionPattern.parse("*a*").select(table)
    suggest("mian", [table])
    view = ModuleView(_loaded(image, path), image)
    find_unwinders([view])
    planned = sum(_plan(view)) if view.loaded.end < _TOP else 0
    return Inspection(len(table), planned)


def _properties() -> Iterator[str]:
    for name, value in vars(ModuleImage).items():
        if isinstance(value, property | cached_property) and not name.startswith("__"):
            yield name


def _loaded(image: ModuleImage, path: str) -> LoadedModule:
    loads = image.segments
    start = min((one.vaddr for one in loads), default=0) // _PAGE * _PAGE
    end = -(-max((one.vaddr + one.memsz for one in loads), default=_PAGE) // _PAGE) * _PAGE
    texts = tuple(
        TextRange(_BASE + low, _BASE + high, 0, False) for low, high in image.executable_ranges
    )
    return LoadedModule(
        path=path,
        start=_BASE + start,
        end=_BASE + end,
        load_bias=_BASE,
        dev=1,
        inode=2,
        deleted=False,
        replaced=False,
        text_ranges=texts,
        open_path=path,
        is_main=True,
        build_id=image.build_id,
    )


def _plan(view: ModuleView) -> Iterator[bool]:
    table = view.image.functions
    architecture = X86Architecture()
    span = view.span
    mapping = address_space.Mapping(span.start, span.end, "r-xp", 0, "fe:00", 1, view.loaded.path)
    rows = range(0, len(table), max(1, len(table) // _FUNCTIONS))
    functions = [ProgramFunction(view, row) for row in rows]
    for options in (PlanOptions(Writer.AUTO), PlanOptions(Writer.BYTE), PlanOptions(Writer.STOP)):
        layout = CodeLayout([mapping], 8192, architecture.stub_bytes, architecture.reach)
        planner = Planner(architecture, layout, ProcessTraits())
        for one in planner.plan(functions, 1, options):
            if one.plan is None:
                assert one.detail
            yield one.plan is not None
