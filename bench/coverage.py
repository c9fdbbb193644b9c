"""How much of live programs can be patched, and how fast it is planned.

    python bench/coverage.py [--json] [--examples N] [GROUP...]

Starts Debian's own programs, plans every function of their main binary or
libraries just as `uftrace-remote functions --explain` does, with the `stop`
writer, and prints forms and refusals. Nothing in the programs is changed.
Groups: libraries (libc, libcrypto, libstdc++, libpython in one process),
postgres, gdb, node, python. Those that are not installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.support.programs import postgres
from uftrace_agent.engine.exit_rules import ProcessTraits
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import Writer
from uftrace_agent.engine.planner import Planned, Planner, PlanOptions
from uftrace_agent.engine.program import Program
from uftrace_agent.engine.unwinder import find_unwinders
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.symbols import FunctionKind
from uftrace_agent.symbols.cache import ImageCache

# The shortest function that a tracepoint is promised for.
SHORTEST: Final = 2
LIBRARIES: Final = ("libc.so.6", "libcrypto.so.3", "libstdc++.so.6", "libpython3.11.so.1.0")


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the planner says of one module of a process.

    Attributes:
        module: File name.
        functions: Functions of `SHORTEST` bytes and more; stubs of the PLT and
            resolvers of IFUNCs are none.
        forms: How many can be patched, by form.
        refusals: How many cannot, by reason.
        planned_per_second: All functions of the module, short ones too.
        examples: Refused functions: name, first bytes, reason.
    """

    module: str
    functions: int
    forms: dict[str, int]
    refusals: dict[str, int]
    planned_per_second: float
    examples: tuple[str, ...]

    @property
    def share(self) -> float:
        """Patchable functions of all, 0 to 1."""
        return sum(self.forms.values()) / self.functions


def measure(pid: int, modules: Sequence[str], cache: Path, examples: int = 0) -> list[Coverage]:
    """Plan all functions of some modules of a process, each by itself.

    Args:
        pid: The process; it is not stopped.
        modules: Patterns of file names.
        cache: Folder for symbol indices.
        examples: How many refused functions to name.
    """
    with ProcessMemory(pid) as memory:
        program = Program(memory, ImageCache(str(cache)))
        program.refresh()
        return [_measure_module(program, pid, module, examples) for module in modules]


def _measure_module(program: Program, pid: int, module: str, examples: int) -> Coverage:
    functions = program.select([f"{module}!*"])
    architecture = X86Architecture()
    unwinders = find_unwinders(program.modules)
    layout = CodeLayout(
        read_mappings(pid),
        len(load_blob("x86_64").code),
        architecture.stub_bytes,
        architecture.reach,
    )
    planner = Planner(
        architecture,
        layout,
        ProcessTraits(unwinder_refusal=unwinders.unhookable),
        frozenset(unwinder.address for unwinder in unwinders.hookable),
    )
    started = time.perf_counter()
    planned = planner.plan(functions, 1, PlanOptions(Writer.STOP))
    seconds = time.perf_counter() - started
    counted = [one for one in planned if _counts(one)]
    refused = [one for one in counted if one.plan is None]
    return Coverage(
        functions[0].module.name,
        len(counted),
        dict(Counter(one.plan.form.name for one in counted if one.plan).most_common()),
        dict(Counter(one.refusal.name for one in refused if one.refusal).most_common()),
        len(planned) / seconds,
        tuple(_example(one) for one in refused[:examples]),
    )


def _counts(planned: Planned) -> bool:
    table = planned.function.module.image.functions
    index = planned.function.index
    is_function = int(table.kind[index]) == FunctionKind.FUNCTION
    return is_function and int(table.size[index]) >= SHORTEST


def _example(planned: Planned) -> str:
    symbol = planned.function.symbol
    code = planned.function.module.image.text_bytes(symbol.address, 12).hex()
    return f"{symbol.linkage_name} +{symbol.address:#x} [{symbol.size}] {code}: {planned.detail}"


# -- the programs -----------------------------------------------------------


@contextlib.contextmanager
def libraries() -> Iterator[int]:
    """A process that sleeps with all of `LIBRARIES` loaded."""
    load = "; ".join(f"ctypes.CDLL({name!r})" for name in LIBRARIES)
    script = f"import ctypes; {load}; print('ready', flush=True); input()"
    with _running([sys.executable, "-c", script]) as pid:
        yield pid


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[int]:
    # It says a line when it is ready, and ends with its input.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"{command[0]} ended at once")
        try:
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def _postgres() -> Iterator[int]:
    with postgres() as program:
        yield program.pid


_NODE: Final = "console.log('ready'); process.stdin.resume()"
_PYTHON: Final = "print('ready', flush=True); input()"
_Start = Callable[[], contextlib.AbstractContextManager[int]]
# By name: the program that must be there, how to start it, modules to look at.
_GROUPS: Final[dict[str, tuple[str, _Start, tuple[str, ...]]]] = {
    "libraries": (
        sys.executable,
        libraries,
        tuple(name.replace(".so.6", ".so.6*") for name in LIBRARIES),
    ),
    "postgres": ("/usr/lib/postgresql/15/bin/postgres", _postgres, ("postgres",)),
    "gdb": ("gdb", lambda: _running(["gdb", "-q", "-nx", "-ex", "echo ready\\n"]), ("gdb",)),
    "node": ("node", lambda: _running(["node", "-e", _NODE]), ("node",)),
    "python": (
        "/usr/bin/python3.11",
        lambda: _running(["/usr/bin/python3.11", "-c", _PYTHON]),
        ("python3*",),
    ),
}


def _print(coverage: Coverage) -> None:
    forms = ", ".join(f"{name.lower()} {count}" for name, count in coverage.forms.items())
    refusals = ", ".join(f"{name} {count}" for name, count in coverage.refusals.items())
    print(
        f"{coverage.module:24} {coverage.functions:7} functions  {coverage.share:8.2%}  "
        f"{coverage.planned_per_second:7.0f}/s  {forms}; refused: {refusals or 'none'}",
        flush=True,
    )
    for example in coverage.examples:
        print(f"    {example}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="How much of live programs can be patched.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(_GROUPS))
    parser.add_argument("--json", action="store_true", help="one JSON object a module")
    parser.add_argument("--examples", type=int, default=0, metavar="N")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(_GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as cache:
        for name in options.groups or _GROUPS:
            program, start, modules = _GROUPS[name]
            if shutil.which(program) is None:
                print(f"{name}: {program} is not installed", file=sys.stderr)
                continue
            with start() as pid:
                for coverage in measure(pid, modules, Path(cache), options.examples):
                    if options.json:
                        print(json.dumps({**asdict(coverage), "share": coverage.share}), flush=True)
                    else:
                        _print(coverage)


if __name__ == "__main__":
    main()
