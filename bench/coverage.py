"""How much of live programs can be patched, and how.

    python -m bench.coverage [--json] [--examples N] [GROUP...]

Starts Debian's own programs, plans every function of their main binary or
libraries just as `uftrace-remote functions --explain` does, and prints forms and
refusals. Nothing in the programs is changed. Three plans are made of each module: as
by default (`patchable` and the forms), with `multi` allowed (what that adds), and with
the writer `byte` alone (what one byte each can do). Groups: libraries (libc, ld.so,
libm, libcrypto, libssl, libstdc++, libpython in one process), postgres, gdb, node,
builds (a program of tests/targets in each way of preparing it for tracers). What is
not installed is left out.

    python -m bench.coverage uftrace

How many functions uftrace's own dynamic tracing patches of the same programs, by what
it says itself (`uftrace record -P . -v`), and what became of the program.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench.support import Figures, finish
from tests.support.programs import postgres
from tests.support.target_process import TargetProcess
from tests.targets.build import build
from uftrace_agent.engine.exit_rules import ProcessTraits
from uftrace_agent.engine.layout import CodeLayout
from uftrace_agent.engine.model import Form, Refusal, Writer
from uftrace_agent.engine.planner import Planned, Planner, PlanOptions
from uftrace_agent.engine.program import Program, ProgramFunction
from uftrace_agent.engine.unwinder import find_unwinders
from uftrace_agent.engine.x86_64.forms import X86Architecture
from uftrace_agent.process.address_space import read_mappings
from uftrace_agent.process.memory import ProcessMemory
from uftrace_agent.runtime.blob import load_blob
from uftrace_agent.symbols import FunctionKind
from uftrace_agent.symbols.cache import ImageCache

# The shortest function that a tracepoint is promised for.
SHORTEST: Final = 2
GOAL: Final = 0.985
LIBRARIES: Final = (
    "libc.so.6",
    "ld-linux-x86-64.so.2",
    "libm.so.6",
    "libcrypto.so.3",
    "libssl.so.3",
    "libstdc++.so.6",
    "libpython3.11.so.1.0",
)
# The ways to prepare a program for tracers (variants of tests/targets).
BUILDS: Final = {
    "gcc-O2": "gcc, nothing special",
    "clang-O2": "clang, nothing special",
    "pg": "-pg",
    "fentry": "-pg -mfentry",
    "fentry-nop": "-pg -mfentry -mnop-mcount",
    "cyg": "-finstrument-functions",
    "pfe5": "gcc -fpatchable-function-entry=5",
    "clang-pfe5": "clang -fpatchable-function-entry=5",
    "xray": "clang -fxray-instrument",
}
_BUILT: Final = "shapes"
_FORMS: Final = (Form.SLED, Form.NOP, Form.CALL, Form.PUN, Form.NEAR, Form.HOP)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the planner says of one module of a process.

    Attributes:
        module: File name.
        functions: Functions of `SHORTEST` bytes and more; stubs of the PLT and
            resolvers of IFUNCs are none, nor is what is not mapped as code (V8 maps a
            part of node a second time, without the rest).
        forms: How many can be patched, by form.
        multi: How many more with `multi`.
        one_byte: How many by changing one byte.
        refusals: How many cannot, by reason.
        planned_per_second: All functions of the module, short ones too.
        examples: Refused functions: name, first bytes, reason.
    """

    module: str
    functions: int
    forms: dict[str, int]
    multi: int
    one_byte: int
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
    started = time.perf_counter()
    planned = _plan(program, pid, functions, PlanOptions(Writer.STOP))
    seconds = time.perf_counter() - started
    refused = [one for one in planned if one.plan is None and _counts(one)]
    rest = [one.function for one in refused]
    with_multi = _plan(program, pid, rest, PlanOptions(Writer.STOP, allow_multi=True))
    by_byte = _plan(program, pid, functions, PlanOptions(Writer.BYTE))
    return Coverage(
        functions[0].module.name,
        sum(1 for one in planned if _counts(one)),
        dict(Counter(one.plan.form.name for one in planned if one.plan and _counts(one))),
        sum(1 for one in with_multi if one.plan and one.plan.form is Form.MULTI),
        sum(1 for one in by_byte if one.plan and _counts(one)),
        dict(Counter(one.refusal.name for one in refused if one.refusal).most_common()),
        len(planned) / seconds,
        tuple(_example(one) for one in refused[:examples]),
    )


def _plan(
    program: Program, pid: int, functions: Sequence[ProgramFunction], options: PlanOptions
) -> list[Planned]:
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
    return planner.plan(functions, 1, options)


def _counts(planned: Planned) -> bool:
    table = planned.function.module.image.functions
    index = planned.function.index
    is_function = int(table.kind[index]) == FunctionKind.FUNCTION
    is_mapped = planned.refusal is not Refusal.NOT_IN_TEXT
    return is_function and is_mapped and int(table.size[index]) >= SHORTEST


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
}


def _of_builds(cache: Path, examples: int) -> Iterator[tuple[str, Coverage]]:
    for variant, name in BUILDS.items():
        with TargetProcess(build(_BUILT, variant)) as target:
            yield f"{_BUILT}, {name}", measure(target.pid, [_BUILT], cache, examples)[0]
            target.quit()


def run(groups: Sequence[str] = (), examples: int = 0) -> Figures:
    """Plan and count.

    Args:
        groups: Which; all where none is named.
        examples: How many refused functions to name in the notes.
    """
    figures = Figures(
        "Functions that can be patched, by form",
        (
            "binary",
            f"functions of {SHORTEST} bytes and more",
            "patchable",
            *(form.name.lower() for form in _FORMS),
            "more with multi",
            "by one byte",
            "refused",
            "planned per second",
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for name, (program, start, modules) in _GROUPS.items():
            if groups and name not in groups:
                continue
            if shutil.which(program) is None:
                figures.notes.append(f"{name}: {program} is not installed")
                continue
            with start() as pid:
                for coverage in measure(pid, modules, cache, examples):
                    _add(figures, coverage.module, coverage, is_goal=True)
        if not groups or "builds" in groups:
            for name, coverage in _of_builds(cache, examples):
                _add(figures, name, coverage, is_goal=False)
            figures.notes.append(
                f"{_BUILT} has functions in assembly that stand against every form (packed_*)"
            )
    return figures


def _add(figures: Figures, name: str, coverage: Coverage, *, is_goal: bool) -> None:
    refusals = ", ".join(f"{count} {reason.lower()}" for reason, count in coverage.refusals.items())
    figures.rows.append(
        (
            name,
            f"{coverage.functions:,}",
            f"{coverage.share:.2%}",
            *(str(coverage.forms.get(form.name, 0)) for form in _FORMS),
            str(coverage.multi),
            f"{coverage.one_byte / coverage.functions:.1%}",
            refusals,
            f"{coverage.planned_per_second:,.0f}",
        )
    )
    figures.values[name] = {**asdict(coverage), "share": coverage.share}
    if is_goal:
        text = f"{name}: {coverage.share:.2%}, at least {GOAL:.1%}"
        figures.goals.append((text, coverage.share >= GOAL))
    figures.notes += [f"{name}: {example}" for example in coverage.examples]


# -- uftrace's own --------------------------------------------------------

_PATCH_STATISTICS: Final = re.compile(r"(total|patched|failed|skipped):\s+(\d+)")
_UFTRACE_PROGRAMS: Final = (
    ("shapes", "gcc-O2"),
    ("shapes", "clang-O2"),
    ("many", "gcc-O2"),
    ("many", "clang-O2"),
)


def beside_uftrace() -> Figures:
    """What uftrace patches of programs that were built without anything for it.

    Raises:
        RuntimeError: It is not installed.
    """
    if shutil.which("uftrace") is None:
        raise RuntimeError("uftrace is not installed")
    version = subprocess.run(
        ["uftrace", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    figures = Figures(
        "Functions that can be patched, beside uftrace",
        ("program", "build", f"uftrace {version} -P .", "and the program", "uftrace-remote"),
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, variant in _UFTRACE_PROGRAMS:
            program = build(name, variant)
            with TargetProcess(program, deadline=60) as target:
                own = measure(target.pid, [name], Path(folder))[0]
                target.quit()
            patched, total, end = _uftrace(program, Path(folder))
            figures.rows.append(
                (
                    name,
                    variant,
                    f"{patched / total:.1%} ({patched:,} of {total:,})" if total else "nothing",
                    end,
                    f"{own.share:.1%} ({sum(own.forms.values()):,} of {own.functions:,})",
                )
            )
            figures.values[f"{name} {variant}"] = {
                "uftrace": {"patched": patched, "total": total, "end": end},
                "own": asdict(own),
            }
    figures.notes.append(
        f"functions as each of the two counts them; ours have {SHORTEST} bytes and more"
    )
    return figures


# How many it patched, of how many, and how the program ended.
def _uftrace(program: Path, folder: Path) -> tuple[int, int, str]:
    data = folder / "uftrace.data"
    shutil.rmtree(data, ignore_errors=True)
    command = ["uftrace", "record", "-d", str(data), "-P", ".", "-v", "--no-event", str(program)]
    # In a session of its own, so that the program goes with it.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=folder,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate("quit\n", 60)
        except subprocess.TimeoutExpired:
            output = ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    # It leaves its shared memory behind where the program died.
    for session in re.findall(r"new session started: (\w+)", output):
        for segment in Path("/dev/shm").glob(f"uftrace-{session}-*"):
            segment.unlink()
    counts = {name: int(count) for name, count in _PATCH_STATISTICS.findall(output)}
    ended = re.search(r"terminated by signal: \d+: (.*)", output)
    if ended:
        end = f"died: {ended[1]}"
    else:
        end = "ended well" if re.search(r"^ok \d", output, re.MULTILINE) else "did not end"
    return counts.get("patched", 0), counts.get("total", 0), end


def main() -> None:
    """See the module."""
    names = [*_GROUPS, "builds", "uftrace"]
    parser = argparse.ArgumentParser(description="How much of live programs can be patched.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(names))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--examples", type=int, default=0, metavar="N")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(names):
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    if options.groups != ["uftrace"]:
        finish(run(options.groups, options.examples), options.json)
    if not options.groups or "uftrace" in options.groups:
        finish(beside_uftrace(), options.json)


if __name__ == "__main__":
    main()
