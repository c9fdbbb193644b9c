# SPDX-License-Identifier: Apache-2.0
"""The long form: every form, writer and number of threads, so many toggles each.

    python -m tests.torture.run --toggles 1000000

Forms of one program are toggled together, in requests for thousands of sites. The toggles
of one form and writer are shared by the numbers of threads. Prints tables in Markdown,
and ends with status 1 if anything at all went wrong.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence

from tests.torture import table
from tests.torture.cell import Row, Work, run_cell
from tests.torture.forms import BY_NAME, FORMS, GENERATED, FormCase
from tests.torture.subject import Load
from tests.torture.toggling import Limit
from uftrace_agent.engine.model import Writer

THREADS = (1, 8, 64)
# More busy threads than processors make a request that has to look at each of them wait
# until all have had their turn: they have short ones, of so many sites.
_TURNS = 64
_PROCESSORS = os.cpu_count() or 1
# Of the toggles, the part beside so many threads; the other numbers get as much as each
# other.
MANY_THREADS = 64
SHARE_OF_MANY = 0.1
# Each time the program is left, everything must be as it was.
ROUNDS = 3
_WRITERS = {writer.name.lower(): writer for writer in Writer}


def load_of(threads: int, niceness: int = 19) -> Load:
    """The load for a number of threads. A program that handles SIGTRAP itself is not
    among them: it gets no traps (tests/e2e/test_trap_writer.py)."""
    return Load(threads, turns=_TURNS if threads > _PROCESSORS else 0, niceness=niceness)


def groups(names: Sequence[str]) -> list[list[FormCase]]:
    """Forms that are toggled together: the generated ones, which one program has."""
    chosen = [BY_NAME[name] for name in names]
    together = [case for case in chosen if case in GENERATED]
    alone = [[case] for case in chosen if case not in GENERATED]
    return [together, *alone] if together else alone


def share_of(threads: int, all_threads: Sequence[int]) -> float:
    """Which part of the toggles is done beside so many threads."""
    many = [count for count in all_threads if count >= MANY_THREADS]
    if len(many) in (0, len(all_threads)):
        return 1 / len(all_threads)
    if threads in many:
        return SHARE_OF_MANY / len(many)
    return (1 - SHARE_OF_MANY) / (len(all_threads) - len(many))


def main() -> int:
    """The command line."""
    arguments = _arguments()
    writers = [_WRITERS[name] for name in arguments.writers]
    rows: list[Row] = []
    print(table.head(), flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as directory:
        for cases, threads in itertools.product(groups(arguments.forms), arguments.threads):
            toggles = arguments.toggles * share_of(threads, arguments.threads)
            limit = Limit(int(toggles / ROUNDS) + 1, arguments.seconds / ROUNDS)
            work = Work(limit, arguments.seed, ROUNDS, arguments.sites, directory)
            for row in run_cell(cases, writers, load_of(threads, arguments.nice), work):
                rows.append(row)
                print(table.line(row), flush=True)
                for failure in row.failures:
                    print(f"\n{failure}\n", file=sys.stderr, flush=True)
    print(f"\n{table.totals(rows)}\n\nforms:\n{table.forms(rows)}")
    bad = [row for row in rows if not row.is_good]
    toggles = sum(row.tally.toggles.total() for row in rows)
    print(f"\nseed {arguments.seed}: {toggles:,} toggles, {len(bad)} of {len(rows)} rows failed")
    return 1 if bad or not rows else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture.run",
        description="Toggle sites of every form while threads execute them.",
    )
    parser.add_argument("--toggles", type=int, default=1_000_000, help="of each form and writer")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="at most, for each row of the table"
    )
    parser.add_argument(
        "--forms", nargs="+", choices=list(BY_NAME), default=[case.name for case in FORMS]
    )
    parser.add_argument(
        "--writers", nargs="+", choices=list(_WRITERS), default=list(_WRITERS), metavar="WRITER"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=list(THREADS))
    parser.add_argument("--sites", type=int, default=1 << 20, help="of each form, at most")
    parser.add_argument(
        "--nice",
        type=int,
        default=19,
        help="the program's niceness; less where others use the machine, who would starve it",
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
