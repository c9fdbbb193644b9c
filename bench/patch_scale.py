"""How long it takes to patch many functions, and whether that grows with their number.

    python -m bench.patch_scale [--rounds N] [--agent-nice N] [--growth] [--json]

A generated program with 8 threads that call all of its functions in turn. In a fresh
session functions are patched (cold: nothing of the plan is known), unpatched, patched
again (the plan is cached by then), and unpatched. Pauses are the longest of any thread
in one operation, and `agent` is the agent's own time, both from its answer; `whole` is
timed at the client.

--growth does so with 10 to 100,000 functions of a program that has 100,000 (compiling
it takes some minutes once), and gives the time per function.

With more busy threads than processors, all of this waits for the scheduler:
--agent-nice -15 shows what an agent with priority does.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench.support import Agent, Figures, finish, median, running_agent
from tests.support.target_process import TargetProcess
from tests.targets.build import build
from uftrace_remote.enums import PatchWriter
from uftrace_remote.values import PatchOptions, PatchResult, ProcessRef, UnpatchResult

PROGRAM: Final = "many@12000"
# (how many functions, what names them, writer)
CASES: Final = (
    (1, "many_00001", PatchWriter.AUTO),
    (100, "re:many_000[0-9][0-9]", PatchWriter.AUTO),
    (1_000, "re:many_00[0-9][0-9][0-9]", PatchWriter.AUTO),
    (10_000, "re:many_0[0-9][0-9][0-9][0-9]", PatchWriter.AUTO),
    (10_000, "re:many_0[0-9][0-9][0-9][0-9]", PatchWriter.STOP),
)
GOAL_PAUSE_MS: Final = 20.0
# Seconds for 10,000 functions.
GOALS: Final = (
    ("patch", "cold", 3.0),
    ("patch again", "with a cached plan", 1.0),
    ("unpatch", "disabled", 1.0),
    ("unpatch again", "disabled again", 1.0),
)

GROWTH_PROGRAM: Final = "many@100000"
GROWTH: Final = (
    (10, "re:many_0000[0-9]"),
    (100, "re:many_000[0-9][0-9]"),
    (1_000, "re:many_00[0-9][0-9][0-9]"),
    (10_000, "re:many_0[0-9][0-9][0-9][0-9]"),
    (100_000, "re:many_[0-9][0-9][0-9][0-9][0-9]"),
)
# What a function of 100,000 may take longer than one of 10,000.
GOAL_GROWTH: Final = 1.25


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: functions changed, and milliseconds."""

    functions: int
    whole_ms: float
    agent_ms: float
    pause_ms: float


def _step(result: PatchResult | UnpatchResult, started: float) -> Step:
    whole = (time.perf_counter() - started) * 1e3
    done = result.enabled_count if isinstance(result, PatchResult) else result.disabled_count
    return Step(done, whole, result.elapsed_ns / 1e6, result.longest_pause_ns / 1e6)


def one_case(agent: Agent, program: str, pattern: str, writer: PatchWriter) -> dict[str, Step]:
    """Patch, unpatch, and both again, in a fresh process and a fresh session."""
    steps: dict[str, Step] = {}
    with (
        # In a session of its own, as services are: the scheduler shares the processors
        # between it and the agent, and not among all their threads (sched(7), autogroup).
        TargetProcess(build(program), deadline=120, wrapper=["setsid"]) as target,
        agent.client(timeout=300.0) as client,
    ):
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        for turn in ("patch", "patch again"):
            started = time.perf_counter()
            patched = client.patch(session_id, [pattern], PatchOptions(writer=writer))
            steps[turn] = _step(patched, started)
            target.wait_iterations(8)
            started = time.perf_counter()
            steps["un" + turn] = _step(client.unpatch(session_id, writer=writer), started)
        client.detach(session_id)
        target.wait_iterations(8)
        target.quit()
    return steps


def _with_priority(agent: Agent, niceness: int) -> None:
    for task in Path(f"/proc/{agent.pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(task.name), niceness)


def run(rounds: int, agent_nice: int = 0) -> Figures:
    """Measure one, some and 10,000 functions."""
    outcome = Figures(
        "Patching many functions of a running 8-thread program",
        (
            "functions",
            "writer",
            "operation",
            "changed",
            "whole, ms",
            "agent, ms",
            "longest pause, ms",
        ),
    )
    build(PROGRAM)
    with running_agent() as agent:
        _with_priority(agent, agent_nice)
        done = [
            [one_case(agent, PROGRAM, pattern, writer) for _, pattern, writer in CASES]
            for _ in range(rounds)
        ]
    for case, (count, _, writer) in enumerate(CASES):
        for name in done[0][case]:
            steps = [each[case][name] for each in done]
            whole = median([step.whole_ms for step in steps])
            pauses = [step.pause_ms for step in steps]
            writer_name = writer.name.lower()
            outcome.values[f"{count} {writer_name} {name}"] = [asdict(step) for step in steps]
            outcome.rows.append(
                (
                    f"{count:,}",
                    writer_name,
                    name,
                    f"{steps[0].functions:,}",
                    f"{whole:.0f}",
                    f"{median([step.agent_ms for step in steps]):.0f}",
                    f"{median(pauses):.2f} (worst {max(pauses):.2f})",
                )
            )
    for case, (count, _, writer) in enumerate(CASES):
        if count == max(row[0] for row in CASES):
            outcome.goals += _goals(writer, [each[case] for each in done])
    outcome.notes.append(
        f"median of {rounds} rounds, each in a fresh session; the agent at nice {agent_nice}"
    )
    return outcome


def _goals(writer: PatchWriter, done: list[dict[str, Step]]) -> list[tuple[str, bool]]:
    goals = []
    functions = done[0]["patch"].functions
    for name, what, limit in GOALS:
        seconds = median([each[name].whole_ms for each in done]) / 1e3
        text = f"{writer.name.lower()}: {functions:,} functions {what} in {seconds:.2f} s"
        goals.append((f"{text}, under {limit:.0f} s", seconds < limit))
    pause = max(median([each[name].pause_ms for each in done]) for name, _, _ in GOALS)
    text = f"{writer.name.lower()}: longest pause {pause:.1f} ms, under {GOAL_PAUSE_MS:.0f} ms"
    goals.append((text, pause < GOAL_PAUSE_MS))
    return goals


def growth(rounds: int, agent_nice: int = 0) -> Figures:
    """Measure 10 to 100,000 functions."""
    names = ("patch", "patch again", "unpatch", "unpatch again")
    outcome = Figures(
        "Time per function, from 10 to 100,000",
        ("functions", *(f"{name}, ms (us a function)" for name in names)),
    )
    build(GROWTH_PROGRAM)
    with running_agent() as agent:
        _with_priority(agent, agent_nice)
        done = [
            [one_case(agent, GROWTH_PROGRAM, pattern, PatchWriter.AUTO) for _, pattern in GROWTH]
            for _ in range(rounds)
        ]
    each_us: dict[str, list[float]] = {name: [] for name in names}
    for case, (count, _) in enumerate(GROWTH):
        cells = []
        for name in names:
            steps = [each[case][name] for each in done]
            whole = median([step.whole_ms for step in steps])
            each_us[name].append(whole * 1e3 / steps[0].functions)
            cells.append(f"{whole:,.0f} ({each_us[name][-1]:,.1f})")
            outcome.values[f"{count} {name}"] = [asdict(step) for step in steps]
        outcome.rows.append((f"{count:,}", *cells))
    for name in names:
        ratio = each_us[name][-1] / each_us[name][-2]
        text = f"{name}: a function of 100,000 takes {ratio:.2f} times one of 10,000"
        outcome.goals.append((f"{text}, at most {GOAL_GROWTH}", ratio <= GOAL_GROWTH))
    outcome.notes.append(
        f"whole times, writer auto, median of {rounds} rounds; the agent at nice {agent_nice}"
    )
    return outcome


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How long it takes to patch many functions.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--agent-nice", type=int, default=0)
    parser.add_argument("--growth", action="store_true", help="10 to 100,000 functions")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    measure = growth if arguments.growth else run
    finish(measure(arguments.rounds, arguments.agent_nice), arguments.json)


if __name__ == "__main__":
    main()
