"""How long a program that suddenly calls a tracepoint as fast as it can is slowed down.

    python -m bench.budget [--rounds N] [--json]

The agent has its ordinary budget, 5 % of a processor. A program that has done nothing
calls one traced leaf for two seconds. It counts its calls, and the processor time that
they took, in slices of 5 ms: `back` is the time from the first call to the moment from
which on the leaf costs what it cost before the agent came, within 5 % (by the median of
the 20 slices that follow; single ones are the machine's). Rounds with and without a
client that reads the records; the same without a budget is the baseline.
"""

from __future__ import annotations

import argparse
import threading
from dataclasses import dataclass
from typing import Final

from bench.support import Agent, Figures, build_workload, finish, median, running_agent
from tests.support.target_process import TargetProcess
from uftrace_remote import SyncAgentClient
from uftrace_remote.values import ProcessRef, Throttle

GOAL_S: Final = 1.0
_FULL_SPEED: Final = 0.95
_SLICE_S: Final = 0.005
_STEADY_SLICES: Final = 20
_LEAST_US: Final = 500.0
_STORM_MS: Final = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """One storm; speeds are calls per second of processor time.

    Attributes:
        back_s: Until the program ran at full speed for good; None: it never did.
        before: Speed before the agent came.
        traced: Speed in the first 100 ms.
        after: Speed in the last half of a second that it ran.
        throttle: What the agent said of the function.
    """

    back_s: float | None
    before: float
    traced: float
    after: float
    throttle: Throttle | None

    @property
    def ratio(self) -> float:
        """Speed at the end beside that before the agent came."""
        return self.after / self.before


Slices = list[tuple[float, float]]


# (seconds since the first call, calls per second of processor time). What hardly ran, since
# others had the processor, tells nothing.
def _storm(target: TargetProcess, milliseconds: int) -> Slices:
    numbers = list(map(float, target.command(f"storm {milliseconds}", 60).split()[1:]))
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return [
        (index * _SLICE_S, calls * 1e6 / microseconds)
        for index, (calls, microseconds) in enumerate(pairs)
        if microseconds >= _LEAST_US
    ]


def _speed(slices: Slices) -> float:
    return median([speed for _, speed in slices])


def _back(slices: Slices, full: float) -> float | None:
    for index, (when, speed) in enumerate(slices):
        following = slices[index : index + _STEADY_SLICES]
        if min(speed, _speed(following)) >= _FULL_SPEED * full:
            return when
    return None


class _Reader:
    """A client that reads the stream and throws it away."""

    def __init__(self, client: SyncAgentClient, session_id: str) -> None:
        self._stream = client.stream(session_id)
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        if not self._begun.wait(20):
            raise RuntimeError("the stream sent nothing")

    def _read(self) -> None:
        for _ in self._stream:
            self._begun.set()

    def finish(self) -> None:
        self._thread.join(30)


def one(agent: Agent, target: TargetProcess, *, reads: bool) -> Outcome:
    """One storm in a fresh session."""
    before = _speed(_storm(target, 1000))
    with agent.client() as client:
        session_id = client.attach(ProcessRef(target.pid)).session.session_id
        reader = _Reader(client, session_id) if reads else None
        client.patch(session_id, ["leaf"])
        slices = _storm(target, _STORM_MS)
        (session,) = client.sessions()
        client.detach(session_id)
        if reader is not None:
            reader.finish()
    return Outcome(
        _back(slices, before),
        before,
        _speed([each for each in slices if each[0] < 0.1]),
        _speed(slices[-100:]),
        session.throttled[0] if session.throttled else None,
    )


def run(rounds: int) -> Figures:
    """Measure."""
    outcome = Figures(
        "From a storm of calls back under the budget",
        (
            "budget",
            "client",
            "back at full speed after, s",
            "speed meanwhile",
            "speed afterwards",
            "calls/s seen",
        ),
    )
    program = build_workload()
    table: dict[tuple[str, bool], list[Outcome]] = {}
    for _ in range(rounds):
        for budget in ("off", "5%"):
            with running_agent(budget) as agent:
                for reads in (False, True):
                    with TargetProcess(program) as target:
                        done = one(agent, target, reads=reads)
                        table.setdefault((budget, reads), []).append(done)
                        target.quit()
    for (budget, reads), all_done in table.items():
        times = [done.back_s for done in all_done]
        back = [seconds for seconds in times if seconds is not None]
        seen = [done.throttle.calls_per_second for done in all_done if done.throttle]
        outcome.rows.append(
            (
                budget,
                "reads" if reads else "none",
                f"{median(back):.2f} (worst {max(back):.2f})" if len(back) == rounds else "never",
                f"{median([done.traced / done.before for done in all_done]):.1%}",
                f"{median([done.ratio for done in all_done]):.1%}",
                f"{median(seen) / 1e6:.1f} M" if seen else "",
            )
        )
        outcome.values[f"{budget} {'reads' if reads else 'none'}"] = {
            "back_s": times,
            "traced": [done.traced / done.before for done in all_done],
            "after": [done.ratio for done in all_done],
        }
        if budget == "off":
            continue
        worst = max((GOAL_S * 99 if each is None else each for each in times), default=0.0)
        who = "a client reads" if reads else "nobody reads"
        outcome.goals.append(
            (f"back within {GOAL_S:.0f} s where {who}: {worst:.2f} s at worst", worst <= GOAL_S)
        )
    outcome.notes.append(f"{rounds} rounds, each storm in a process and a session of its own")
    return outcome


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How long a storm of calls lasts.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    finish(run(arguments.rounds), arguments.json)


if __name__ == "__main__":
    main()
