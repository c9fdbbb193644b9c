"""How long a thread that touches no traced function is kept from running.

    python -m bench.interruption [--rounds N] [--only NAME] [--json]

The program has 10,000 functions, 8 threads that call all of them in turn, and
threads that call nothing: they read the time stamp counter in a loop and note every
gap of 5 us and more (interrupted.c). A `stop` is a gap less the time in it for which
the thread could have run but had no processor, as the kernel counts it. In each round
a tracer enables all functions, disables them, and does both once more; the gaps of
each phase are counted apart, and those of two seconds before the tracer came are the
`untraced` ones: what the machine itself does to a thread. `took` is what the caller
waits.

With more threads than processors, most gaps would be the scheduler's. So there are
two scenarios in which they are not:

- `alone`: the 8 threads are parked. One spinning thread of ordinary priority, and
  the tracer has a processor of its own. Beside other work on the machine, its gaps
  are the scheduler's all the same: the goal is about its stops.
- `busy`: the 8 threads call the functions meanwhile. One spinning thread (on larger
  machines one for each processor but one) of real-time priority: it runs before
  everybody, the agent too, and what stops it is the tracer or the hypervisor. It
  sleeps 1 ms of 10, since the kernel would take the processor from it otherwise; how
  late it wakes counts as a gap.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from bench.spinners import FUNCTIONS, NO_GAPS, Gaps, Phase, Watched
from bench.support import Agent, Figures, finish, median, running_agent
from bench.tracers import PEERS, Peer, Tracer

_SCENARIOS: Final = ("alone", "busy")
_CYCLES: Final = 2
_UNTRACED_S: Final = 2.0
# How long functions stay enabled.
_HOLD_S: Final = 0.1
GOAL_MS: Final = 1.0


@dataclass(slots=True)
class Outcome:
    """What one tracer did in one program.

    Attributes:
        functions: How many it enabled.
        milliseconds: How long each operation took, by phase.
        gaps: By phase.
        failure: What went wrong; empty where nothing did.
    """

    functions: int = 0
    milliseconds: dict[Phase, list[float]] = field(default_factory=dict)
    gaps: dict[Phase, Gaps] = field(default_factory=dict)
    failure: str = ""


def one(agent: Agent, peer: Peer, scenario: str) -> Outcome:
    """One tracer in a fresh program.

    Raises:
        PermissionError: Real-time priorities are not allowed here.
    """
    outcome = Outcome()
    is_busy = scenario == "busy"
    spinners = max((os.cpu_count() or 2) - 1, 1) if is_busy else 1
    with Watched(min(spinners, 4), is_busy) as watched:
        if not is_busy:
            watched.target.pause()
        with watched.phase(Phase.UNTRACED):
            time.sleep(_UNTRACED_S)
        try:
            _trace(peer.start(agent, watched), watched, outcome, peer.most)
            if not is_busy:
                watched.target.resume()
            watched.target.quit()
        except (RuntimeError, OSError, AssertionError) as error:
            outcome.failure = _failure(watched, error)
        for phase in Phase:
            outcome.gaps[phase] = watched.gaps(phase)
    return outcome


def _trace(tracer: Tracer, watched: Watched, outcome: Outcome, most: int) -> None:
    functions = watched.functions()[:most]

    def timed(phase: Phase) -> list[float]:
        return outcome.milliseconds.setdefault(phase, [])

    with watched.phase(Phase.ATTACH):
        started = time.perf_counter()
        tracer.attach()
        timed(Phase.ATTACH).append((time.perf_counter() - started) * 1e3)
    for _ in range(_CYCLES):
        with watched.phase(Phase.ENABLE):
            started = time.perf_counter()
            outcome.functions = tracer.enable(functions)
            timed(Phase.ENABLE).append((time.perf_counter() - started) * 1e3)
        time.sleep(_HOLD_S)
        with watched.phase(Phase.DISABLE):
            started = time.perf_counter()
            tracer.disable()
            timed(Phase.DISABLE).append((time.perf_counter() - started) * 1e3)
    with watched.phase(Phase.DETACH):
        tracer.detach()


# A tracer's error is often the echo of what it did to the program.
def _failure(watched: Watched, error: Exception) -> str:
    with suppress(Exception):
        status = watched.target.wait_exit(0.5)
        return f"THE PROGRAM DIED of signal {-status}" if status < 0 else f"status {status}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True, slots=True)
class _Case:
    scenario: str
    peer: Peer
    outcomes: list[Outcome]

    def gaps(self, phase: Phase) -> Gaps:
        return sum((o.gaps.get(phase, NO_GAPS) for o in self.outcomes), NO_GAPS)

    def longest(self, phase: Phase) -> list[str]:
        gaps = [o.gaps.get(phase, NO_GAPS) for o in self.outcomes]
        return [
            f"{median(each):.3f} (worst {max(each):.3f})"
            for each in ([g.longest_ms for g in gaps], [g.longest_stop_ms for g in gaps])
        ]

    def took(self, phase: Phase) -> list[float]:
        return [ms for o in self.outcomes for ms in o.milliseconds.get(phase, [])]

    def failures(self) -> list[str]:
        return [o.failure for o in self.outcomes if o.failure]


def _cells(case: _Case, phase: Phase, name: str, functions: str, took: str) -> list[str]:
    gaps = case.gaps(phase)
    return [
        name,
        functions,
        phase.name.lower(),
        took,
        *case.longest(phase),
        f"{gaps.quantile_us(0.999):.0f}",
        str(gaps.over_100us),
        str(gaps.over_1ms),
        f"{gaps.watched_s:.1f}",
    ]


def _rows(case: _Case) -> list[list[str]]:
    failures = case.failures()
    rows = []
    for phase in (Phase.ENABLE, Phase.DISABLE):
        took = case.took(phase)
        if not took:
            continue
        functions = sorted({o.functions for o in case.outcomes if o.functions})
        count = " to ".join(f"{n:,}" for n in (functions[:1] + functions[1:][-1:]))
        rows.append(_cells(case, phase, case.peer.name, count, f"{median(took):.0f}"))
    if failures:
        text = f"{failures[0]} ({len(failures)} of {len(case.outcomes)} runs)"
        rows.append([case.peer.name, "", text, *[""] * 7])
    return rows


def run(rounds: int, only: str = "") -> Figures:
    """Measure.

    Args:
        rounds: Fresh programs for each tracer and scenario.
        only: Tracers whose name has this in it.
    """
    figures = Figures(
        "Interruption of threads that touch no traced function",
        (
            "scenario",
            "tracer",
            "functions",
            "phase",
            "took, ms",
            "longest gap, ms",
            "longest stop, ms",
            "p99.9 of gaps, us",
            "> 100 us",
            "> 1 ms",
            "watched, s",
        ),
    )
    peers = [peer for peer in PEERS if only in peer.name]
    for scenario in _SCENARIOS:
        cases = {peer.name: _Case(scenario, peer, []) for peer in peers}
        with running_agent() as agent:
            try:
                for _ in range(rounds):
                    for peer in peers:
                        cases[peer.name].outcomes.append(one(agent, peer, scenario))
            except PermissionError as error:
                figures.notes.append(f"{scenario}: {error}: left out")
                continue
        _tell(figures, scenario, list(cases.values()))
    figures.notes.append(
        f"{rounds} rounds of {_CYCLES} times enabling and disabling {FUNCTIONS:,} functions; "
        "the longest of a round: median and worst; a gap is 5 us or more"
    )
    return figures


def _tell(figures: Figures, scenario: str, cases: list[_Case]) -> None:
    every = _Case(scenario, cases[0].peer, [o for case in cases for o in case.outcomes])
    quiet = every.gaps(Phase.UNTRACED)
    rows = [_cells(every, Phase.UNTRACED, "none", "", "")]
    for case in cases:
        rows += _rows(case)
    figures.rows += [(scenario, *row) for row in rows]
    for case in cases:
        both = case.gaps(Phase.ENABLE) + case.gaps(Phase.DISABLE)
        name = f"{case.peer.name}, {scenario}"
        figures.values[name] = {
            "functions": [o.functions for o in case.outcomes],
            "failures": case.failures(),
            "milliseconds": {p.name: case.took(p) for p in Phase},
            "longest_ms": {
                p.name: [o.gaps.get(p, NO_GAPS).longest_ms for o in case.outcomes] for p in Phase
            },
            "longest_stop_ms": {
                p.name: [o.gaps.get(p, NO_GAPS).longest_stop_ms for o in case.outcomes]
                for p in Phase
            },
        }
        if case.peer.is_promised:
            is_alone = scenario == "alone"
            found = both.longest_stop_ms if is_alone else both.longest_ms
            usual = quiet.longest_stop_ms if is_alone else quiet.longest_ms
            what = "stop" if is_alone else "gap"
            text = (
                f"{name}: longest {what} {found:.3f} ms (untraced {usual:.3f}), "
                f"under {GOAL_MS:.0f} ms"
            )
            figures.goals.append((text, found < GOAL_MS and not case.failures()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How long threads are kept from running.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="NAME", help="tracers with this in the name")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    finish(run(arguments.rounds, arguments.only), arguments.json)


if __name__ == "__main__":
    main()
