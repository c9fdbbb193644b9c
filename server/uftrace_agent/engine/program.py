"""The functions of a live process: modules, symbols, original code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uftrace_agent.engine.architecture import ModuleSpan
from uftrace_agent.engine.exit_rules import FunctionTraits
from uftrace_agent.engine.model import Refusal, RefusedError, SiteKind
from uftrace_agent.engine.site import FunctionCode, Gap, LiveSled
from uftrace_agent.errors import NoSuchFunctionError, TargetGoneError, UnsupportedTargetError
from uftrace_agent.process.machine import native_machine
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.process.threads import proc_directory
from uftrace_agent.symbols import (
    FunctionKind,
    FunctionPattern,
    FunctionSymbol,
    LoadedModule,
    ProcessModules,
    list_modules,
)
from uftrace_agent.symbols.cache import ImageCache
from uftrace_agent.symbols.module_image import ModuleImage
from uftrace_agent.symbols.suggest import suggest

# Enough for the longest instruction, a jump and the prologue of gcc -pg.
_CODE_BYTES: Final = 64
_LONGEST_GAP: Final = 64
_LONGEST_BEFORE: Final = 8192
# The most of a sled that is looked at, with the instruction behind it.
_SLED_BYTES: Final = 40
_LONGEST_BODY: Final = 1 << 20
# What follows a function, for a jump that ends in it.
_BEHIND_BYTES: Final = 8
_ABI0: Final = ".abi0"
_PROFILERS: Final = (
    "__fentry__",
    "mcount",
    "_mcount",
    "__cyg_profile_func_enter",
    "__cyg_profile_func_exit",
)


# The last of sorted addresses that is not above `address`; -1 where there is none.
def _last_up_to(addresses: NDArray[np.uint64], address: int) -> int:
    at = int(np.searchsorted(addresses, np.uint64(address), side="right"))
    return int(addresses[at - 1]) if at else -1


@dataclass(frozen=True, slots=True)
class ProgramFunction:
    """One function of a live process."""

    module: ModuleView
    index: int

    @property
    def address(self) -> int:
        """Live entry address."""
        table = self.module.image.functions
        return int(table.address[self.index]) + self.module.loaded.load_bias

    @property
    def symbol(self) -> FunctionSymbol:
        """Names, link-time address, size, kind."""
        return self.module.image.functions.by_index(self.index)


class ModuleView:
    """One mapped file with its symbols."""

    def __init__(self, loaded: LoadedModule, image: ModuleImage) -> None:
        self.loaded = loaded
        self.image = image
        self.name = os.path.basename(loaded.path)

    @property
    def span(self) -> ModuleSpan:
        """Live addresses of the whole image."""
        return ModuleSpan(self.loaded.start, self.loaded.end)

    def executable(self) -> Iterator[tuple[int, bytes]]:
        """(live address, original bytes) of each executable segment."""
        for start, end in self.image.executable_ranges:
            yield start + self.loaded.load_bias, self.image.text_bytes(start, end - start)

    @cached_property
    def _profiled(self) -> Mapping[int, str]:
        bias = self.loaded.load_bias
        found = {
            slot + bias: "mcount" if "mcount" in name else name
            for slot, name in self.image.got_slots.items()
            if name in _PROFILERS
        }
        for name in _PROFILERS:
            for linkage_name in (name, f"{name}@plt"):
                address = self.image.address_of(linkage_name)
                if address is not None:
                    found[address + bias] = "mcount" if "mcount" in name else name
        return found

    @cached_property
    def _runtime_owns_stacks(self) -> bool:
        return self.image.is_go or self.image.walks_stacks

    @cached_property
    def is_shared(self) -> bool:
        """Whether code is mapped so that a write would reach the file."""
        return any(text.shared for text in self.loaded.text_ranges)

    def traits(self, symbol: FunctionSymbol) -> FunctionTraits:
        """What the exit rules look at."""
        return FunctionTraits(
            names=(symbol.linkage_name, *symbol.aliases),
            module=self.name,
            is_synthetic=symbol.is_synthetic,
            is_fragment=symbol.is_fragment or self._is_jumped_to(symbol.address),
            runtime_owns_stacks=self._runtime_owns_stacks,
        )

    def _is_jumped_to(self, address: int) -> bool:
        frames = self.image.frames
        row = int(np.searchsorted(frames.start, np.uint64(address)))
        if row >= len(frames.start) or int(frames.start[row]) != address:
            return False
        return not bool(frames.is_entry[row])

    def code_of(self, index: int) -> FunctionCode:
        """The original bytes of a function, from the file.

        Raises:
            RefusedError: It is no function that can be patched.
        """
        table = self.image.functions
        kind = FunctionKind(int(table.kind[index]))
        if kind is FunctionKind.PLT_STUB:
            raise RefusedError(
                Refusal.PLT_STUB, "a stub that jumps to another module: trace the function there"
            )
        if kind is FunctionKind.IFUNC_RESOLVER:
            raise RefusedError(
                Refusal.IFUNC_RESOLVER,
                "the resolver runs once, at start: trace the implementation it chose",
            )
        if self.is_shared:
            raise RefusedError(
                Refusal.SHARED_TEXT, "its code is mapped shared: a change would reach the file"
            )
        if self.loaded.replaced:
            raise RefusedError(
                Refusal.MODULE_REPLACED,
                f"{self.loaded.path} was replaced since the process started: restart the process",
            )
        address = int(table.address[index])
        live = address + self.loaded.load_bias
        if not any(text.start <= live < text.end for text in self.loaded.text_ranges):
            raise RefusedError(Refusal.NOT_IN_TEXT, "its address is not in executable memory")
        for start, length in self.image.restartable_sequences:
            # A later instruction may become the site.
            if start < address + _CODE_BYTES and address < start + length:
                raise RefusedError(
                    Refusal.RESTARTABLE_SEQUENCE,
                    "it lies in a restartable sequence, which a jump would abort",
                )
        return FunctionCode(
            address=live,
            size=int(table.size[index]),
            code=self.image.text_bytes(address, _CODE_BYTES),
            profiled=self._profiled,
            gaps=lambda: list(self._gaps(index)),
            text=self,
            next_entry=int(table.address[index + 1]) + self.loaded.load_bias
            if index + 1 < len(table)
            else 0,
            kind=self._kind(index),
            sleds=self._sleds(address),
            body=lambda: self._body(index),
            behind=lambda: self.image.text_bytes(address + int(table.size[index]), _BEHIND_BYTES),
            is_go=self.image.is_go,
            is_go_compiled=self.image.is_go and self._is_go_compiled(index),
        )

    # Wrappers for assembly (ABI0) are compiled too, and find their g themselves.
    def _is_go_compiled(self, index: int) -> bool:
        table = self.image.functions
        compiled = self.image.go_compiled
        address = np.uint64(table.address[index])
        row = int(np.searchsorted(compiled, address))
        if row >= len(compiled) or compiled[row] != address:
            return False
        symbol = table.by_index(index)
        return not any(
            name.endswith(_ABI0) for name in (symbol.linkage_name, symbol.name, *symbol.aliases)
        )

    @cached_property
    def _is_plain(self) -> bool:
        image = self.image
        return not (len(image.sleds) or len(image.mcount_loc) or len(image.patchable_sites))

    def _kind(self, index: int) -> SiteKind:
        if self._is_plain:
            return SiteKind.PLAIN
        table = self.image.functions
        address = int(table.address[index])
        if self.image.sleds.of_function(address):
            return SiteKind.SLEDS
        # Behind endbr64, if there is one: patchable nops begin there.
        for start in (address, address + 4):
            if _last_up_to(self.image.mcount_loc, start) == start:
                return SiteKind.FENTRY_NOP
        # Of -fpatchable-function-entry=N,M the first M lie before the entry.
        before = 0
        if index:
            before = int(table.address[index - 1]) + max(int(table.size[index - 1]), 1)
        if before <= _last_up_to(self.image.patchable_sites, address + 4) != -1:
            return SiteKind.PATCHABLE_NOPS
        return SiteKind.PLAIN

    def _sleds(self, address: int) -> tuple[LiveSled, ...]:
        if self._is_plain:
            return ()
        return tuple(
            LiveSled(
                sled.address + self.loaded.load_bias,
                sled.kind,
                self.image.text_bytes(sled.address, _SLED_BYTES),
            )
            for sled in self.image.sleds.of_function(address)
        )

    def _body(self, index: int) -> bytes:
        size = int(self.image.functions.size[index])
        if not 0 < size <= _LONGEST_BODY:
            return b""
        return self.image.text_bytes(int(self.image.functions.address[index]), size)

    def _gaps(self, index: int) -> Iterator[Gap]:
        table = self.image.functions
        for before in (index, index - 1):
            if not 0 <= before < len(table) - 1 or not int(table.size[before]):
                continue
            address, size = int(table.address[before]), int(table.size[before])
            start, end = address + size, int(table.address[before + 1])
            if 5 <= end - start <= _LONGEST_GAP and size <= _LONGEST_BEFORE:
                yield Gap(
                    start + self.loaded.load_bias,
                    self.image.text_bytes(start, end - start),
                    self.image.text_bytes(address, size),
                )


class Program:
    """What is mapped in a process now, with symbols.

    Args:
        memory: The process's memory.
        images: Opened files, shared between processes.
    """

    def __init__(self, memory: ProcessMemory, images: ImageCache) -> None:
        self.memory = memory
        self._images = images
        self._views: dict[tuple[int, int, int], ModuleView] = {}
        self.modules: list[ModuleView] = []
        self.listing: ProcessModules = ProcessModules((), None, ())
        self.unreadable: list[str] = []

    def refresh(self) -> None:
        """Look at /proc/PID/maps again.

        Raises:
            TargetGoneError: The process is gone.
        """
        proc = proc_directory(self.memory.pid)
        try:
            maps = Path(proc, "maps").read_text(errors="surrogateescape")
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetGoneError(f"process {self.memory.pid} is gone") from error
        if not maps:
            raise TargetGoneError(f"process {self.memory.pid} has ended")
        self.listing = list_modules(maps, proc, self.memory.read)
        self.modules = []
        self.unreadable = []
        for loaded in self.listing.modules:
            key = (loaded.start, loaded.dev, loaded.inode)
            view = self._views.get(key)
            if view is None:
                try:
                    image = self._images.open(
                        loaded.open_path, root=f"{proc}/root", mapped_path=loaded.path
                    )
                except OSError as error:
                    self.unreadable.append(f"{loaded.path}: {error.strerror}")
                    continue
                except UnsupportedTargetError as error:
                    self.unreadable.append(f"{loaded.path}: {error.message}")
                    continue
                if image.machine != native_machine().name:
                    # As emulators map the programs that they run.
                    self.unreadable.append(f"{loaded.path}: code of another machine")
                    continue
                view = ModuleView(loaded, image)
                self._views[key] = view
            self.modules.append(view)
        # The main program first: patterns without a module mean it first.
        self.modules.sort(key=lambda view: not view.loaded.is_main)

    def function_at(self, address: int) -> ProgramFunction | None:
        """The function that begins at a live address."""
        for view in self.modules:
            index = view.image.functions.index_of_address(address - view.loaded.load_bias)
            if index is not None:
                return ProgramFunction(view, index)
        return None

    def select(self, patterns: Sequence[str]) -> list[ProgramFunction]:
        """The functions that the patterns mean, each address once.

        A pattern without a module means the main program; if it has no such
        function, all modules.

        Raises:
            InvalidRequestError: A pattern is malformed.
            NoSuchFunctionError: A pattern matches nothing; near names are in
                the metadata.
        """
        chosen, unmatched = self.select_known(patterns)
        if unmatched:
            raise self.nothing_found(unmatched[0])
        return chosen

    def select_known(self, patterns: Sequence[str]) -> tuple[list[ProgramFunction], list[str]]:
        """The same, of the patterns that match something; and those that do not.

        Raises:
            InvalidRequestError: A pattern is malformed.
        """
        chosen: dict[int, ProgramFunction] = {}
        unmatched: list[str] = []
        for text in patterns:
            found = self._matches(FunctionPattern.parse(text))
            if not found:
                unmatched.append(text)
            for function in found:
                chosen.setdefault(function.address, function)
        return [chosen[address] for address in sorted(chosen)], unmatched

    def _matches(self, pattern: FunctionPattern) -> list[ProgramFunction]:
        found: list[ProgramFunction] = []
        for view in self.modules:
            if not pattern.matches_module(view.name):
                continue
            indices = pattern.select(view.image.functions).tolist()
            found += [ProgramFunction(view, index) for index in indices]
            if found and not pattern.module and view.loaded.is_main:
                break
        return found

    def nothing_found(self, text: str) -> NoSuchFunctionError:
        """What to say of a pattern that matches nothing."""
        pattern = FunctionPattern.parse(text)
        searched = [view for view in self.modules if pattern.matches_module(view.name)]
        if not searched:
            names = ", ".join(view.name for view in self.modules)
            return NoSuchFunctionError(
                f"no module of the process matches {text!r}",
                reason="NO_SUCH_MODULE",
                hint=f"mapped are: {names}",
            )
        near = suggest(pattern.function, [view.image.functions for view in searched])
        return NoSuchFunctionError(
            f"no function matches {text!r}",
            hint=f"did you mean {', '.join(near)}?"
            if near
            else "`uftrace-remote functions` lists what there is",
            metadata={"pattern": text, "suggestions": ",".join(near)},
        )
