# SPDX-License-Identifier: Apache-2.0
"""The same torture for other tools that can switch probes in a running program.

    python -m tests.torture.peers --seconds 30

Frida (the PyPI package `frida` must be installed) and the kernel's uprobes (as root),
and this project beside them: the same program, sites and threads, for the same time.
What happens to the program is the result; nothing is a failure.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from tests.support.text_compare import text_differences
from tests.torture import table
from tests.torture.forms import BY_NAME, FormCase
from tests.torture.frida_peer import frida_peer
from tests.torture.own_peer import own_peer
from tests.torture.places import Place, places_of
from tests.torture.run import THREADS, load_of
from tests.torture.subject import Load, Subject, running
from tests.torture.uprobe_peer import uprobe_peer
from uftrace_agent.errors import AgentError

_MOST_RUNS = 5
_FORMS = ("gcc", "fentry", "patchable", "plain", "exact", "near", "nop", "call")
_HEAD = (
    "tool",
    "sites",
    "threads",
    "sites probed",
    "toggles",
    "toggles/s",
    "runs",
    "wrong results",
    "crashes",
    "other",
    "text afterwards",
)


class Peer(Protocol):
    """A tool that holds a program."""

    def enable(self, indices: Sequence[int]) -> int:
        """Put probes at entry and exit of these functions; how many got them."""
        ...

    def disable(self, indices: Sequence[int]) -> int:
        """Take them away; how many had them."""
        ...


PeerFactory = Callable[[Subject, Sequence[Place]], AbstractContextManager[Peer]]
PEERS: dict[str, PeerFactory] = {
    "uftrace-remote": own_peer,
    "frida": frida_peer,
    "uprobes": uprobe_peer,
}


@dataclass(slots=True)
class Outcome:
    """What became of a program in the hands of a tool, over some runs."""

    probed: int = 0
    toggles: int = 0
    seconds: float = 0.0
    runs: int = 0
    wrong_results: int = 0
    crashes: int = 0
    others: int = 0
    text: str = "-"
    notes: list[str] = field(default_factory=list)

    def cells(self, tool: str, case: FormCase, load: Load) -> tuple[str, ...]:
        """A row of the table."""
        return (
            tool,
            case.name,
            str(load.threads),
            str(self.probed),
            f"{self.toggles:,}",
            f"{self.toggles / max(self.seconds, 1e-9):,.0f}",
            str(self.runs),
            str(self.wrong_results),
            str(self.crashes),
            str(self.others),
            self.text,
        )


def torture(
    factory: PeerFactory, case: FormCase, load: Load, sites: int, seconds: float, seed: int
) -> Outcome:
    """Have a tool toggle until the time is over, or the program has ended too often."""
    outcome = Outcome()
    until = time.monotonic() + seconds
    while time.monotonic() < until and outcome.runs < _MOST_RUNS:
        outcome.runs += 1
        with running([case], load) as subject:
            try:
                _one_run(factory, subject, sites, until, seed + outcome.runs, outcome)
            except (AssertionError, AgentError, OSError) as error:
                _note(outcome, subject, error)
    return outcome


def _one_run(
    factory: PeerFactory, subject: Subject, sites: int, until: float, seed: int, outcome: Outcome
) -> None:
    chance = random.Random(seed)
    places = places_of(subject, sites)
    indices = list(range(len(places)))
    subject.focus_on(subject.cases[0], places[0].name, len(places))
    started = time.monotonic()
    try:
        with factory(subject, places) as peer:
            while time.monotonic() < until:
                some = indices
                if chance.random() < 0.5:
                    some = sorted(chance.sample(indices, chance.randint(1, len(indices))))
                enabled = peer.enable(some)
                outcome.probed = max(outcome.probed, enabled)
                outcome.toggles += enabled
                outcome.toggles += peer.disable(some)
                subject.check_alive()
                assert outcome.probed, "the tool can put a probe at none of the sites"
    finally:
        outcome.seconds += time.monotonic() - started
    subject.check_alive()
    differences = text_differences(subject.pid)
    outcome.text = f"{len(differences)} differences" if differences else "as in the file"
    subject.target.quit()


def _note(outcome: Outcome, subject: Subject, error: BaseException) -> None:
    found = subject.post_mortem()
    if "killed by signal" in found:
        outcome.crashes += 1
    elif "BAD" in found or "BAD" in str(error):
        outcome.wrong_results += 1
    else:
        outcome.others += 1
    outcome.notes.append(f"run {outcome.runs}: {error}\n{found}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.peers")
    parser.add_argument("--tools", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--forms", nargs="+", choices=list(BY_NAME), default=list(_FORMS))
    parser.add_argument("--threads", nargs="+", type=int, default=list(THREADS))
    parser.add_argument("--sites", type=int, default=32, help="of each form")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each row of the table")
    parser.add_argument("--nice", type=int, default=19, help="the program's niceness")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(table.head(_HEAD), flush=True)
    for name, threads, tool in itertools.product(
        arguments.forms, arguments.threads, arguments.tools
    ):
        case, load = BY_NAME[name], load_of(threads, arguments.nice)
        outcome = torture(
            PEERS[tool], case, load, arguments.sites, arguments.seconds, arguments.seed
        )
        print(table.markdown_line(outcome.cells(tool, case, load)), flush=True)
        for note in outcome.notes:
            print(f"\n{tool}, {name}, {threads} threads, {note}\n", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
