"""SIGKILL for the agent at every step of every operation, in every kind of target.

    python -m tests.torture.kill_matrix [--targets NAME...] [--stride N] [--table FILE]

A step is the moment before, or after, a system call by which the engine looks at,
stops or changes the process (tests/engine/kill_at.c). In each cell of the matrix the
engine attaches, patches, unpatches and leaves, and is killed at step 1, 2, 3, ... of
each until it gets through. After each death: the target lives, nobody traces it, and
restoring it with no agent brings its code back bit for bit, and its own action for
SIGTRAP. Each program checks its own results all the time, and reports every EINTR and
every lost signal that it did not cause; at the end it must leave with status 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.kill_rounds import Driver, build_shim, catches_sigtrap, driving
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.targets.build import build
from uftrace_agent.process.identity import ProcessId, resolve
from uftrace_agent.session.restoring import restore_process

MOST_STEPS = 3000


WRITERS = ("auto", "byte", "trap", "stop")


@dataclass(frozen=True)
class Kind:
    """A kind of target.

    Attributes:
        what: What its threads do.
        blocks: They make no progress by themselves.
        writers: Those that it is worth trying with.
        leaves: Whether the agent is killed while it leaves too.
    """

    program: str
    variant: str
    patterns: tuple[str, ...]
    what: str
    arguments: tuple[str, ...] = ()
    blocks: bool = False
    writers: tuple[str, ...] = WRITERS
    leaves: bool = True


# Who dies while all threads are stopped leaves it to the kernel to wake them: calls such
# as epoll_wait end with EINTR then, as they do after SIGSTOP and SIGCONT (signal(7)). So
# those that wait in them are tried with what stops nobody.
KINDS = (
    Kind(
        "steady",
        "gcc-O2",
        ("*",),
        "spin with all registers in use (AVX, x87, masks)",
        (),
        False,
        ("auto", "byte", "stop"),
    ),
    Kind(
        "blocked",
        "gcc-O2",
        ("*",),
        "wait in a dozen system calls",
        blocks=True,
        writers=("byte",),
        leaves=False,
    ),
    Kind(
        "signals",
        "gcc-O2",
        ("*",),
        "handle timers and storms of signals, or wait",
        writers=("byte",),
        leaves=False,
    ),
    # No traps for a program that forks (H62).
    Kind("forker", "gcc-O2", ("*",), "fork and wait", writers=("auto", "byte", "stop")),
    Kind("threads_churn", "gcc-O2", ("*",), "are born and end"),
    Kind("kinds", "clang-pfe5", ("kind_*",), "call nops of five bytes", ("1",)),
    Kind("kinds", "xray-bare", ("kind_*",), "call XRay's sleds", ("1",)),
    Kind("busy8", "gcc-O2", ("*",), "call ordinary functions, eight of them"),
)


@dataclass
class Cell:
    """What became of one kind of target and one writer."""

    kind: Kind
    writer: str
    attach: int = 0
    toggle: int = 0
    leave: int = 0
    restored: int = 0
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """Deaths in all."""
        return self.attach + self.toggle + self.leave

    def row(self) -> str:
        """One line of the table."""
        cells = (
            f"{self.kind.program} ({self.kind.variant}): threads {self.kind.what}",
            self.writer,
            *(f"{count:,}" for count in (self.attach, self.toggle, self.leave)),
            f"{self.restored:,}",
            "0",
            "as in the file",
        )
        return "| " + " | ".join(cells) + " |"


HEADER = (
    "| target | writer | killed in attach | in patch and unpatch | in leave | "
    "code was changed then | targets lost | code after restore |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def after_a_death(target: TargetProcess, owns: bool, cell: Cell, number: int) -> None:
    """The target goes on, and can be set back."""
    pid = target.pid
    assert_not_traced(pid)
    cell.restored += bool(text_differences(pid))
    restore_process(resolve(ProcessId(pid)))
    assert_text_unchanged(pid)
    assert catches_sigtrap(pid) == owns
    if not cell.kind.blocks and number % 10 == 0:
        target.wait_iterations(1)


def killed_at_each_step(
    kill: Callable[[int], bool], checked: Callable[[int], None], stride: int
) -> int:
    """How many steps there were: the engine dies at each until it gets through."""
    died = 0
    for step in range(1, MOST_STEPS, stride):
        if not kill(step):
            return died
        died += 1
        checked(died)
    return died


def run_cell(shim: Path, kind: Kind, writer: str, stride: int) -> Cell:
    """All deaths of one cell, in one process.

    It runs at the lowest priority: busy threads would leave the engine no time, and are
    interrupted at more places for it.
    """
    cell = Cell(kind, writer)
    started = time.monotonic()
    program = build(kind.program, kind.variant)
    with TargetProcess(program, *kind.arguments, wrapper=("nice", "-n", "19")) as target:
        owns = catches_sigtrap(target.pid)

        def checked(number: int) -> None:
            after_a_death(target, owns, cell, number)

        with driving(shim, target.pid, writer, "any", *kind.patterns) as driver:
            cell.attach = killed_at_each_step(driver.attach_and_die, checked, stride)
            cell.toggle = killed_at_each_step(lambda n: _toggle(driver, n), checked, stride)
            if kind.leaves:
                cell.leave = killed_at_each_step(lambda n: _leave(driver, n), checked, stride)
        assert_text_unchanged(target.pid)
        if kind.blocks:
            target.command("poke")
        else:
            target.wait_iterations(2)
        target.quit()
    cell.seconds = time.monotonic() - started
    return cell


def _toggle(driver: Driver, step: int) -> bool:
    driver.attach()
    return not driver.go(step)


def _leave(driver: Driver, step: int) -> bool:
    driver.attach()
    return not driver.go(0, step)


def main() -> int:
    """The command line; 1 where a target was lost."""
    parser = argparse.ArgumentParser(description="Kill the agent at every step.")
    parser.add_argument("--targets", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--writers", nargs="*", default=list(WRITERS), choices=WRITERS)
    parser.add_argument("--stride", type=int, default=1, help="take every N-th step")
    arguments = parser.parse_args()
    cells: list[Cell] = []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        shim = build_shim(Path(folder))
        for kind in KINDS:
            if arguments.targets and kind.program not in arguments.targets:
                continue
            for writer in [w for w in kind.writers if w in arguments.writers]:
                cells.append(run_cell(shim, kind, writer, arguments.stride))
                print(cells[-1].row(), flush=True)
    kills = sum(cell.kills for cell in cells)
    seconds = sum(cell.seconds for cell in cells)
    print(f"\n{kills:,} deaths in {len(cells)} targets, {seconds:,.0f} s: no target was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
