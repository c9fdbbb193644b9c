"""The long proof of relocation on AArch64: all code of large binaries, and many others.

    python -m tests.torture.prove_relocation_aarch64 --jobs 2

Ends with an error if any moved instruction does something else than it did. What is compared,
and how: docs/relocation.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from tests.engine.aarch64_relocation import Prover, Tally, Verdict
from tests.engine.aarch64_sources import BINARIES, Binary, Generated, fetch_binaries

_SHARES: Final = 12
_SHOWN: Final = 30


def main() -> int:
    """Parse the command line, prove, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=1, help="decides all that is random")
    parser.add_argument("--generated", type=int, default=600_000, help="instructions")
    parser.add_argument("--only", nargs="+", default=(), help="names of some of the binaries")
    options = parser.parse_args()
    began = time.monotonic()
    tallies = _prove(options)
    print(report(tallies, f"seed {options.seed}, {time.monotonic() - began:.0f} s"))
    return 1 if any(tally.different for tally in tallies.values()) else 0


def _prove(options: argparse.Namespace) -> dict[str, Tally]:
    tallies: dict[str, Tally] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        tasks = {
            pool.submit(prove_share, path, share, options.seed, options.generated // _SHARES): name
            for name, path, share in _tasks(options.only)
        }
        for task in as_completed(tasks):
            tally = tallies.setdefault(tasks[task], Tally())
            tally.add(task.result())
            print(f"{tasks[task]}: {tally.instructions:,}", file=sys.stderr, flush=True)
    return dict(sorted(tallies.items()))


def _tasks(only: list[str]) -> Iterator[tuple[str, Path | None, int]]:
    root = fetch_binaries()
    sources = {Generated.name: None, **{Path(name).name: root / name for name in BINARIES}}
    for name, path in sources.items():
        if not only or name in only:
            yield from ((name, path, share) for share in range(_SHARES))


def prove_share(path: Path | None, share: int, seed: int, generated: int) -> Tally:
    """One share, in a process of the pool."""
    if path is None:
        source = Generated()
        machine = source.machine(seed + share)
        prover = Prover(machine)
        rng = random.Random(seed * 1_000_003 + share)
        prover.prove(source.instructions(machine, rng, generated))
    else:
        binary = Binary(path)
        prover = Prover(binary.machine(seed + share))
        prover.prove(binary.instructions((share, _SHARES), everything=True))
    return prover.tally


_COLUMNS: Final = (
    ("words", 11),
    ("same bytes", 12),
    ("compared", 11),
    ("rewritten", 11),
    ("faults", 9),
    ("unknown", 9),
    ("too far", 9),
    ("refused", 9),
    ("mismatches", 12),
)


def report(tallies: dict[str, Tally], foot: str) -> str:
    """The table, and what is behind its figures."""
    lines = [f"{'':22}" + "".join(f"{name:>{width}}" for name, width in _COLUMNS)]
    total = Tally()
    for name, tally in tallies.items():
        total.add(tally)
        lines.append(_row(name, tally))
    lines += [_row("all", total), "", f"{foot}; longest copy: {total.longest} bytes"]
    for name, tally in tallies.items():
        lines += [f"refused in {name}:", *_counted(tally.refused)] if tally.refused else []
        lines += [f"MISMATCH in {name}: {text}" for text in tally.mismatches]
    return "\n".join(lines)


def _row(name: str, tally: Tally) -> str:
    values = (
        tally.instructions,
        tally.repeated,
        tally.verdicts.total(),
        tally.changed,
        tally.verdicts[Verdict.SAME_FAULT],
        tally.verdicts[Verdict.UNKNOWN],
        tally.unreachable,
        tally.refused.total(),
        tally.different,
    )
    cells = (f"{v:>{width},}" for v, (_, width) in zip(values, _COLUMNS, strict=True))
    return f"{name:22}" + "".join(cells)


def _counted(counter: Counter[str]) -> Iterator[str]:
    for name, count in counter.most_common(_SHOWN):
        yield f"  {count:>9,}  {name}"


if __name__ == "__main__":
    sys.exit(main())
