"""What one traced call costs.

    python -m bench.call_cost [--rounds N] [--json]

One process, one hot leaf of about 2 ns, in rounds: untraced, the hand-written
limit (see workload.c), traced by the real agent, unpatched again. Ratios are
taken inside a round, then the median over the rounds; each figure of a round is
the median of batches of about 100 us, so that being preempted does not enter.

Traced twice: `undrained` fills rings of 64 MiB that nobody reads (they are
emptied between rounds), `drained` has a client that reads the stream, and
pauses between batches that let it keep up. `flooded` has no pauses: rings are
full most of the time, and what does not fit is dropped and counted.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
from collections.abc import Generator, Iterator
from typing import Final

from bench.support import Agent, Figures, build_workload, fields, finish, median, running_agent
from tests.support.target_process import TargetProcess
from uftrace_remote import SyncAgentClient
from uftrace_remote.values import ProcessRef, RecordingOptions

# Batches of about 100 us.
UNTRACED: Final = (400, 50_000)
LIMIT: Final = (400, 4_000)
TRACED: Final = (400, 3_000)
# 6000 records in 3 ms: 2 million/s, which any reader keeps up with.
PAUSE_US: Final = 3_000
UNDRAINED_RING: Final = 64 << 20
GOAL: Final = 1.5


class Reader:
    """A client that reads a session's stream and throws it away."""

    def __init__(self, client: SyncAgentClient, session_id: str) -> None:
        self.records = 0
        self._first = threading.Event()
        self._stream = client.stream(session_id)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        if not self._first.wait(20):
            raise RuntimeError("the stream sent nothing")

    def _run(self) -> None:
        for batch in self._stream:
            self.records += batch.record_count
            self._first.set()

    def join(self) -> None:
        """Wait for the stream's end: detach first."""
        self._thread.join(60)


@contextlib.contextmanager
def traced(
    client: SyncAgentClient, target: TargetProcess, rings: RecordingOptions, read: bool
) -> Iterator[str]:
    """Patch `leaf`; at the end detach."""
    session_id = client.attach(ProcessRef(target.pid), recording=rings).session.session_id
    reader = Reader(client, session_id) if read else None
    try:
        result = client.patch(session_id, ["leaf"])
        if result.enabled_count != 1:
            raise RuntimeError(f"leaf was not patched: {result.results}")
        yield session_id
    finally:
        client.detach(session_id)
        if reader is not None:
            reader.join()


def measure(target: TargetProcess, name: str, size: tuple[int, int], pause_us: int = 0) -> float:
    """Nanoseconds per call: the median over batches."""
    batches, calls = size
    reply = target.command(f"measure {name} {batches} {calls} {pause_us}", 60)
    return fields(reply)["median"]


def lost(client: SyncAgentClient, session_id: str) -> int:
    """Records that the session has lost so far."""
    return next(s.records_lost for s in client.sessions() if s.session_id == session_id)


def _empty_rings(client: SyncAgentClient, session_id: str) -> None:
    # The first to listen to a session throws away what was there before.
    stream = client.stream(session_id)
    next(stream)
    if isinstance(stream, Generator):
        stream.close()


def one_round(agent: Agent, target: TargetProcess) -> dict[str, float]:
    """All variants once, in nanoseconds per call."""
    figures = {
        "untraced": measure(target, "leaf", UNTRACED),
        "limit": measure(target, "limit", LIMIT),
    }
    with agent.client() as client:
        # All batches of a measurement fit into a ring, so none takes the path of losses.
        batches, calls = TRACED
        rings = RecordingOptions(UNDRAINED_RING, 2)
        with traced(client, target, rings, read=False) as session_id:
            # The first lap pays for fresh pages; what is measured is the second.
            figures["first lap"] = measure(target, "leaf", (batches, calls))
            measure(target, "leaf", (UNDRAINED_RING // 32 // calls, calls))
            _empty_rings(client, session_id)
            before = lost(client, session_id)
            figures["undrained"] = measure(target, "leaf", (batches, calls))
            figures["undrained lost"] = lost(client, session_id) - before
        figures["limit again"] = measure(target, "limit", LIMIT)
        with traced(client, target, RecordingOptions(), read=True) as session_id:
            measure(target, "leaf", (100, calls), PAUSE_US)
            before = lost(client, session_id)
            figures["drained"] = measure(target, "leaf", TRACED, PAUSE_US)
            figures["drained lost"] = lost(client, session_id) - before
            figures["flooded"] = measure(target, "leaf", (2_000, calls))
            client.unpatch(session_id)
            figures["unpatched"] = measure(target, "leaf", UNTRACED)
        figures["untraced again"] = measure(target, "leaf", UNTRACED)
    return figures


def run(rounds: int) -> Figures:
    """Measure."""
    outcome = Figures(
        "Cost of one traced call", ("variant", "ns per call", "x limit", "added ns", "best ns")
    )
    program = build_workload()
    with running_agent() as agent, TargetProcess(program) as target:
        done = [one_round(agent, target) for _ in range(rounds)]
        target.quit()
    for each in done:
        each["limit"] = (each["limit"] + each["limit again"]) / 2

    def over(name: str, base: str) -> float:
        return median([each[name] / each[base] for each in done])

    for name in ("untraced", "limit", "undrained", "drained", "first lap", "flooded", "unpatched"):
        added = median([each[name] - each["untraced"] for each in done])
        cost = median([each[name] for each in done])
        best = min(each[name] for each in done)
        row = (f"{cost:.2f}", f"{over(name, 'limit'):.2f}", f"{added:.2f}", f"{best:.2f}")
        outcome.rows.append((name, *row))
    ratios = {name: over(name, "limit") for name in ("undrained", "drained")}
    unpatched = over("unpatched", "untraced")
    outcome.values = {"rounds": done, "ratios": ratios, "unpatched": unpatched}
    for name, ratio in ratios.items():
        text = f"traced ({name}) / limit {ratio:.2f}, at most {GOAL}"
        outcome.goals.append((text, ratio <= GOAL))
    text = f"unpatched / untraced {unpatched:.3f}, no measurable cost"
    outcome.goals.append((text, abs(unpatched - 1) < 0.05))
    again = over("untraced again", "untraced")
    outcome.notes.append(f"noise: untraced again / untraced {again:.3f}")
    losses = int(sum(each["undrained lost"] + each["drained lost"] for each in done))
    outcome.notes.append(f"records lost in the variants undrained and drained: {losses}")
    return outcome


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What one traced call costs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    finish(run(arguments.rounds), arguments.json)


if __name__ == "__main__":
    main()
