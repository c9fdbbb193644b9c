# SPDX-License-Identifier: Apache-2.0
"""One row of the table: forms of one program, a writer, a number of threads."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.torture.forms import FormCase
from tests.torture.subject import Load, Subject, running
from tests.torture.toggling import Limit, Tally, attached
from uftrace_agent.engine.model import Writer
from uftrace_agent.errors import AgentError
from uftrace_agent.symbols.cache import ImageCache

# Of a traceback, the innermost.
_FRAMES = 6


@dataclass(frozen=True, slots=True)
class Work:
    """How much is to be done for each row.

    Attributes:
        limit: In each round.
        seed: Of what is left to chance.
        rounds: How often the program is attached, and left again.
        sites: How many sites take part, at most.
        index_directory: Where tables of functions are kept for other cells.
    """

    limit: Limit
    seed: int
    rounds: int = 1
    sites: int = 1 << 20
    index_directory: str | None = None


@dataclass(slots=True)
class Row:
    """What became of one combination.

    Attributes:
        cases: The forms, of those that the writer can change.
        writer: The writer that was asked for.
        load: What the program did meanwhile.
        tally: What was done, over all rounds.
        forms: How many sites of each got which form.
        wrong_results: Times that the program saw a wrong result.
        crashes: Times that a signal killed it.
        others: Other failures.
        failures: All of them, in full.
    """

    cases: Sequence[FormCase]
    writer: Writer
    load: Load
    tally: Tally = field(default_factory=Tally)
    forms: dict[str, Counter[str]] = field(default_factory=dict)
    wrong_results: int = 0
    crashes: int = 0
    others: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing went wrong, and something was done."""
        return not self.failures and all(self.tally.toggles[case.name] for case in self.cases)

    @property
    def name(self) -> str:
        """What was tortured."""
        return self.cases[0].name if len(self.cases) == 1 else f"{len(self.cases)} forms at once"


def run_cell(
    cases: Sequence[FormCase], writers: Sequence[Writer], load: Load, work: Work
) -> list[Row]:
    """Torture forms of one program: a row for each writer, all in one process.

    A process that failed is not used any more: the other writers go on in a new one.
    """
    rows = [
        Row(chosen, writer, load)
        for writer in writers
        if (chosen := [case for case in cases if writer in case.writers])
    ]
    left = list(rows)
    images = ImageCache(work.index_directory)
    while left:
        failed = _run_process(cases, left, work, images)
        left = left[left.index(failed) + 1 :] if failed else []
    images.clear()
    return rows


# Returns the row that failed.
def _run_process(
    cases: Sequence[FormCase], rows: list[Row], work: Work, images: ImageCache
) -> Row | None:
    row = rows[0]
    history: Sequence[str] = ()
    with running(cases, row.load) as subject:
        try:
            for turn in range(work.rounds):
                with attached(subject, images, work.seed + turn) as toggler:
                    history = toggler.history
                    toggler.plan(work.sites)
                    for row in rows:
                        row.forms = toggler.forms
                        row.tally.add(toggler.toggle(row.writer, work.limit))
                    toggler.leave()
            subject.target.quit()
        except (AssertionError, AgentError, OSError) as error:
            _note(row, subject, work.seed, history, error)
            return row
    return None


def _note(
    row: Row, subject: Subject, seed: int, history: Sequence[str], error: BaseException
) -> None:
    found = subject.post_mortem()
    if "killed by signal" in found:
        row.crashes += 1
    elif "BAD" in found or "BAD" in str(error):
        row.wrong_results += 1
    else:
        row.others += 1
    last = "\n  ".join(history)
    trace = "".join(traceback.format_tb(error.__traceback__)[-_FRAMES:])
    row.failures.append(
        f"{row.name} by {row.writer.name.lower()}, {row.load.threads} threads, seed {seed}, "
        f"after {row.tally.toggles.total()} toggles\n"
        f"{trace}{type(error).__name__}: {error}\nlast operations:\n  {last}\n{found}"
    )
