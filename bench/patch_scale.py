"""How long it takes to patch many functions, and how long threads stand still.

    python -m bench.patch_scale [--rounds N] [--agent-nice N] [--json]

A generated program of 12,000 functions with 8 threads that call all of them in
turn. 10,000 are patched with the writer `stop`, unpatched, and patched again
(the plan is cached by then); 1, 100 and 1,000 with the writer `auto`. Pauses
are the longest of any thread in one operation, and `agent` is the agent's own
time, both from its answer; `whole` is timed at the client.

With more busy threads than processors, all of this waits for the scheduler:
--agent-nice -15 shows what an agent with priority does.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
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
    (10_000, "re:many_0[0-9][0-9][0-9][0-9]", PatchWriter.STOP),
)
GOAL_PAUSE_MS: Final = 20.0
GOAL_FIRST_S: Final = 5.0
GOAL_AGAIN_S: Final = 1.0


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


def one_case(agent: Agent, pattern: str, writer: PatchWriter) -> dict[str, Step]:
    """Patch, unpatch and patch again in a fresh process and a fresh session."""
    steps: dict[str, Step] = {}
    with (
        TargetProcess(build(PROGRAM), deadline=60) as target,
        agent.client(timeout=120.0) as client,
    ):
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        for turn in ("patch", "patch again"):
            started = time.perf_counter()
            patched = client.patch(session_id, [pattern], PatchOptions(writer=writer))
            steps[turn] = _step(patched, started)
            target.wait_iterations(8)
            started = time.perf_counter()
            steps["un" + turn] = _step(client.unpatch(session_id), started)
        client.detach(session_id)
        target.wait_iterations(8)
        target.quit()
    return steps


def run(rounds: int, agent_nice: int = 0) -> Figures:
    """Measure."""
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
        for task in Path(f"/proc/{agent.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), agent_nice)
        done = [
            {count: one_case(agent, pattern, writer) for count, pattern, writer in CASES}
            for _ in range(rounds)
        ]
    for count, _, writer in CASES:
        for name in done[0][count]:
            steps = [each[count][name] for each in done]
            whole = median([step.whole_ms for step in steps])
            own = median([step.agent_ms for step in steps])
            pauses = [step.pause_ms for step in steps]
            outcome.values[f"{count} {name}"] = {
                "whole_ms": [step.whole_ms for step in steps],
                "agent_ms": [step.agent_ms for step in steps],
                "pause_ms": pauses,
            }
            outcome.rows.append(
                (
                    f"{count:,}",
                    writer.name.lower(),
                    name,
                    f"{steps[0].functions:,}",
                    f"{whole:.0f}",
                    f"{own:.0f}",
                    f"{median(pauses):.2f} (worst {max(pauses):.2f})",
                )
            )
    most = CASES[-1][0]
    pause = max(median([each[most][name].pause_ms for each in done]) for name in done[0][most])
    first = median([each[most]["patch"].whole_ms for each in done]) / 1e3
    again = median([each[most]["patch again"].whole_ms for each in done]) / 1e3
    outcome.goals = [
        (f"longest pause {pause:.1f} ms, under {GOAL_PAUSE_MS:.0f} ms", pause < GOAL_PAUSE_MS),
        (f"{most:,} functions in {first:.2f} s, under {GOAL_FIRST_S:.0f} s", first < GOAL_FIRST_S),
        (f"a second time in {again:.2f} s, under {GOAL_AGAIN_S:.0f} s", again < GOAL_AGAIN_S),
    ]
    outcome.notes.append(
        f"median of {rounds} rounds, each in a fresh session; the agent at nice {agent_nice}"
    )
    return outcome


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How long it takes to patch many functions.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--agent-nice", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    finish(run(arguments.rounds, arguments.agent_nice), arguments.json)


if __name__ == "__main__":
    main()
