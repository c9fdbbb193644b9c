"""The long form of the relocation tests: every function of large binaries.

    python -m tests.torture.prove_relocation --seconds 1200

Each share of a binary (512 functions, in an order that the seed decides) is
independent of every other, so that the same seed finds the same in any number
of processes, and `--state` goes on where an earlier run ended.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from tests.engine.relocation_prover import Prover, Tally
from tests.engine.relocation_runner import Programs, build
from tests.engine.relocation_sources import Binary, Generated, Source

_LIBRARIES: Final = Path("/usr/lib/x86_64-linux-gnu")
# All of packages that scripts/apt-packages.txt names, or that these depend on,
# but for the last three, which are taken where they are.
BINARIES: Final = (
    _LIBRARIES / "ld-linux-x86-64.so.2",
    _LIBRARIES / "libc.so.6",
    _LIBRARIES / "libm.so.6",
    _LIBRARIES / "libstdc++.so.6",
    _LIBRARIES / "libssl.so.3",
    _LIBRARIES / "libcrypto.so.3",
    _LIBRARIES / "libpython3.11.so.1.0",
    Path("/usr/lib/postgresql/15/bin/postgres"),
    Path("/usr/sbin/nginx"),
    Path("/usr/bin/redis-check-rdb"),
    Path("/usr/bin/memcached"),
    Path("/usr/bin/gdb"),
    Path("/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus"),
    *sorted(_LIBRARIES.glob("librustc_driver-*.so")),
    _LIBRARIES / "libLLVM-14.so.1",
    Path("/usr/bin/git"),
    Path("/usr/bin/cmake"),
    Path("/usr/bin/node"),
)
_GENERATED_SHARES: Final = 200
# Of reasons and instructions, the most frequent.
_SHOWN: Final = 16


@dataclass
class Progress:
    """What is done, by source.

    Attributes:
        seed: Decides everything that is random.
        tallies: What came of it.
        done: Numbers of the shares.
        shares: How many there are.
        failures: What ended the harness.
        seconds: Of all runs.
    """

    seed: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    done: dict[str, list[int]] = field(default_factory=dict)
    shares: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def windows(self) -> int:
        """All that were looked at."""
        return sum(tally.windows for tally in self.tallies.values())

    def add(self, name: str, number: int, tally: Tally) -> None:
        """Take in a share."""
        self.tallies.setdefault(name, Tally()).add(tally)
        self.done.setdefault(name, []).append(number)

    def save(self, path: Path) -> None:
        """To a file, at once or not at all."""
        data: dict[str, Any] = {
            "seed": self.seed,
            "seconds": self.seconds,
            "done": self.done,
            "shares": self.shares,
            "tallies": {name: tally.as_json() for name, tally in self.tallies.items()},
        }
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(data))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path | None, seed: int) -> Progress:
        """From a file, if there is one of the same seed."""
        if path is None or not path.exists():
            return cls(seed)
        data = json.loads(path.read_text())
        if data["seed"] != seed:
            raise SystemExit(f"{path} is of the seed {data['seed']}")
        tallies = {name: Tally.from_json(one) for name, one in data["tallies"].items()}
        return cls(seed, tallies, data["done"], data["shares"], seconds=data["seconds"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status says whether everything was the same."""
    options = _parser().parse_args(arguments)
    progress = Progress.load(options.state, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        _prove(options, progress, build(Path(folder)))
    if options.state is not None:
        progress.save(options.state)
    print(report(progress))
    return 1 if progress.failures or any(t.different for t in progress.tallies.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.prove_relocation")
    parser.add_argument("--seconds", type=float, default=1200.0, help="no new share after this")
    parser.add_argument("--windows", type=int, default=1 << 60, help="nor after this many")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of two helpers each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path, help="file to go on from, and to leave for later")
    parser.add_argument("--only", nargs="*", default=(), help="names of binaries, or 'generated'")
    return parser


def _sources(only: Sequence[str]) -> Iterator[tuple[str, Path | None, Source]]:
    yield "generated", None, Generated(_GENERATED_SHARES)
    for path in BINARIES:
        if only and path.name not in only:
            continue
        if path.exists():
            yield path.name, path, Binary(path)
        else:
            print(f"{path} is not installed", file=sys.stderr)


# The first share of each source, the second of each, and so on: what is small
# is done whole.
def _tasks(
    options: argparse.Namespace, progress: Progress
) -> Iterator[tuple[str, Path | None, int]]:
    rows: list[list[tuple[str, Path | None, int]]] = []
    for name, path, source in _sources(options.only):
        if options.only and name not in options.only:
            continue
        progress.shares[name] = source.shares
        done = set(progress.done.get(name, ()))
        rows.append([(name, path, n) for n in range(source.shares) if n not in done])
    for column in zip_longest(*rows):
        yield from (task for task in column if task is not None)


def prove_share(path: Path | None, number: int, seed: int, programs: Programs) -> Tally:
    """One share, in a process of the pool."""
    source: Source = Generated(_GENERATED_SHARES) if path is None else Binary(path)
    with Prover(source, programs, seed) as prover:
        prover.prove(number)
        return prover.tally


def _prove(options: argparse.Namespace, progress: Progress, programs: Programs) -> None:
    began = time.monotonic()
    before = progress.seconds
    tasks = _tasks(options, progress)
    waiting: dict[Future[Tally], tuple[str, int]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        while True:
            elapsed = time.monotonic() - began
            may_go_on = elapsed < options.seconds and progress.windows < options.windows
            while may_go_on and len(waiting) < 2 * options.jobs:
                task = next(tasks, None)
                if task is None:
                    break
                name, path, number = task
                future = pool.submit(prove_share, path, number, options.seed, programs)
                waiting[future] = (name, number)
            if not waiting:
                break
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                name, number = waiting.pop(future)
                failure = future.exception()
                if failure is not None:
                    progress.failures.append(f"{name}, share {number}: {failure}")
                    continue
                progress.add(name, number, future.result())
            progress.seconds = before + time.monotonic() - began
            if options.state is not None:
                progress.save(options.state)


_COLUMNS: Final = (
    ("functions", 10),
    ("windows", 11),
    ("same bytes", 11),
    ("emulator", 11),
    ("processor", 11),
    ("disassembly", 12),
    ("refused", 9),
    ("mismatches", 11),
)


def report(progress: Progress) -> str:
    """The table, and what is behind its figures."""
    head = f"{'':26}" + "".join(f"{name:>{width}}" for name, width in _COLUMNS)
    lines = [head]
    total = Tally()
    for name, tally in progress.tallies.items():
        total.add(tally)
        done, shares = len(progress.done[name]), progress.shares.get(name, 0)
        share = "" if done >= shares else f" {done / shares:.0%}"
        lines.append(_row(name[: 26 - len(share)] + share, tally))
    lines += [_row("all", total), ""]
    rate = progress.windows / progress.seconds if progress.seconds else 0.0
    lines.append(f"seed {progress.seed}, {progress.seconds:.0f} s, {rate:,.0f} windows/s")
    lines.append(
        f"ended in the same fault: {total.faults:,}; fault in a call, the copy behind its push: "
        f"{total.call_faults:,}; loop in themselves on both sides: {total.endless:,}; differed by "
        f"what an earlier run had left in memory, and not alone: {total.unsettled:,}; functions "
        f"with bytes that are no instruction: {total.undecodable:,}"
    )
    real = Tally()
    for name, tally in progress.tallies.items():
        if name != Generated.name:
            real.add(tally)
    generated = progress.tallies.get(Generated.name)
    for what, of in (("the binaries", real), ("what was generated", generated)):
        if of is not None:
            lines += [f"refused in {what}:", *_counted(of.refused)]
            lines += [f"compared by disassembly only in {what}:", *_counted(of.unknown)]
    for name, tally in progress.tallies.items():
        lines += [f"MISMATCH in {name}: {text}" for text in tally.mismatches]
    lines += [f"FAILURE of the harness: {text}" for text in progress.failures]
    return "\n".join(lines)


def _row(name: str, tally: Tally) -> str:
    values = (
        tally.functions,
        tally.windows,
        tally.repeated,
        tally.emulated,
        tally.native,
        tally.by_text,
        sum(tally.refused.values()),
        tally.different,
    )
    cells = (f"{v:>{width},}" for v, (_, width) in zip(values, _COLUMNS, strict=True))
    return f"{name:26}" + "".join(cells)


def _counted(counter: Counter[str]) -> Iterator[str]:
    for name, count in counter.most_common(_SHOWN):
        yield f"  {count:>9,}  {name}"
    rest = sum(counter.values()) - sum(count for _, count in counter.most_common(_SHOWN))
    if rest:
        yield f"  {rest:>9,}  others"


if __name__ == "__main__":
    sys.exit(main())
