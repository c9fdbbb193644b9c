"""How many events per second become one ordered stream, and how many one client takes in.

    python -m bench.fleet_merge [--seconds S] [--rounds N] [--json]

First the merge by itself: 32 sources of eight threads each, whose records of 2 s are
pushed in batches of 4,096 and released ten times a second; beside it what Python's own
`heapq.merge` does with the same events, and numpy's stable sort of all of them at once,
which knows nothing of watermarks or sources and is the limit.

Then one client that merges the streams of 32 agents (`bench/flood.py`, over TLS on
loopback) at several rates; beside it the same client that only counts what comes.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.support import Figures, finish, median
from uftrace_remote import AgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.fleet import FleetStream, Member, MergedBatch, StreamOptions
from uftrace_remote.fleet.member import Agent
from uftrace_remote.fleet.merge import Merger
from uftrace_remote.values import Process, ProcessRef

AGENTS: Final = 32
# Millions of records per second, of all agents together.
RATES: Final = (1.0, 2.0, 3.0, 4.0)
MERGE_GOAL: Final = 3.0
CLIENT_GOAL: Final = 2.0

_BATCH: Final = 4096
_THREADS: Final = 8
_WARM_SECONDS: Final = 1.5
# Behind the present by more than this, a client does not keep up.
_BEHIND_SECONDS: Final = 2.0

_Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]


# -- the merge by itself -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MergeRates:
    """Million events per second and core."""

    merge: float
    heap: float
    sort: float


def _batches(sources: int, per_source: int, span_ns: int) -> list[list[_Columns]]:
    generator = np.random.default_rng(7)
    made = []
    for _ in range(sources):
        times = np.sort(generator.integers(0, span_ns, per_source)) + 10**15
        words = generator.integers(0, 1 << 62, per_source).astype(np.uint64)
        of_source = []
        for start in range(0, per_source, _BATCH):
            part = times[start : start + _BATCH]
            tids = 100 + np.arange(len(part)) % _THREADS
            # As they come: thread by thread.
            order = np.argsort(tids, kind="stable")
            of_source.append((part[order], tids[order], words[start : start + _BATCH][order]))
        made.append(of_source)
    return made


def merge_rates(sources: int = AGENTS, per_source: int = 1 << 17) -> MergeRates:
    """Measure once."""
    batches = _batches(sources, per_source, 2_000_000_000)
    count = sources * per_source
    started = time.process_time()
    merger = Merger(most_records=2 * count)
    numbers = [merger.add(0) for _ in range(sources)]
    given = 0
    steps = len(batches[0])
    for step in range(steps):
        for number in numbers:
            times, tids, words = batches[number][step]
            merger.push(number, times, tids, words, int(times.max()))
        # About every tenth of a second of the events' own time.
        if step % max(steps // 20, 1) == 0:
            given += len(merger.release(count)[0])
    for number in numbers:
        merger.end(number, is_complete=True)
    given += len(merger.release(count)[0])
    merge = count / (time.process_time() - started) / 1e6
    assert given == count
    return MergeRates(merge, _heap_rate(batches), _sort_rate(batches, count))


def _heap_rate(batches: list[list[_Columns]]) -> float:
    # A fiftieth is enough to see it.
    few = [np.sort(of_source[0][0]).tolist() for of_source in batches]
    rows = [[(at, number) for at in times] for number, times in enumerate(few)]
    started = time.process_time()
    merged = sum(1 for _ in heapq.merge(*rows))
    return merged / (time.process_time() - started) / 1e6


def _sort_rate(batches: list[list[_Columns]], count: int) -> float:
    columns = [
        np.concatenate([batch[column] for of_source in batches for batch in of_source])
        for column in range(3)
    ]
    started = time.process_time()
    order = np.argsort(columns[0], kind="stable")
    for column in columns:
        column.take(order)
    return count / (time.process_time() - started) / 1e6


# -- one client of many agents -------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientRun:
    """What one client did.

    Attributes:
        delivered: Million events per second.
        cpu: Processors used by the whole process (1.0: one all the time).
        dropped: Events that found no room.
        late: Events that came after their place.
        behind_seconds: How far the end of the stream was behind the present, at most.
    """

    delivered: float
    cpu: float
    dropped: int = 0
    late: int = 0
    behind_seconds: float = 0.0

    @property
    def per_core(self) -> float:
        return self.delivered / self.cpu if self.cpu else 0.0


@contextmanager
def _flood(rate: float) -> Iterator[tuple[Path, list[str]]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        state = Path(name) / "state"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bench.flood", str(state), f"{rate / AGENTS}"),
                *("127.0.0.1:0" for _ in range(AGENTS)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(AGENTS)]
            if not all(line.startswith("listening on ") for line in lines):
                raise RuntimeError("the agents did not start")
            yield state, [line.removeprefix("listening on ").strip() for line in lines]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


async def _members(state: Path, addresses: list[str]) -> list[Member]:
    members = []
    for address in addresses:
        endpoint = Endpoint.parse(address)
        options = CredentialOptions(state_directory=state)
        client = AgentClient.connect(endpoint, options, timeout=30.0)
        if not members:
            process = Process(ProcessRef(1), command_name="flood")
            session = (await client.attach(process.reference)).session.session_id
        members.append(Member(Agent(endpoint, client), process, session))
    return members


async def _merging(members: list[Member], seconds: float) -> ClientRun:
    delivered, behind = 0, 0.0
    started, used = 0.0, 0.0
    last: MergedBatch | None = None
    async with FleetStream(members, StreamOptions(include_buffered=False)) as stream:
        until = time.monotonic() + _WARM_SECONDS + seconds
        async for batch in stream:
            now = time.monotonic()
            if started:
                delivered += len(batch.events)
                behind = max(behind, now - batch.certainty.complete_to_ns / 1e9)
            elif now > until - seconds:
                started, used = now, time.process_time()
            if now > until:
                last = batch
                break
        cpu = time.process_time() - used
        wall = time.monotonic() - started
    assert last is not None
    dropped = sum(source.counts.dropped for source in last.sources)
    late = sum(source.counts.late for source in last.sources)
    return ClientRun(delivered / wall / 1e6, cpu / wall, dropped, late, behind)


async def _counting(members: list[Member], seconds: float) -> ClientRun:
    count = 0

    async def read(member: Member) -> None:
        nonlocal count
        async for batch in member.agent.client.stream(member.session_id):
            count += batch.record_count

    tasks = [asyncio.create_task(read(member)) for member in members]
    await asyncio.sleep(_WARM_SECONDS)
    before, started, used = count, time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    wall, cpu = time.monotonic() - started, time.process_time() - used
    delivered = count - before
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return ClientRun(delivered / wall / 1e6, cpu / wall)


async def _both(state: Path, addresses: list[str], seconds: float) -> tuple[ClientRun, ClientRun]:
    members = await _members(state, addresses)
    try:
        return await _counting(members, seconds), await _merging(members, seconds)
    finally:
        for member in members:
            await member.agent.client.close()


def _clients(
    seconds: float, rounds: int
) -> Iterator[tuple[float, list[ClientRun], list[ClientRun]]]:
    # One loop for all: what grpc.aio does behind a loop that is closed it says loudly.
    with asyncio.Runner() as runner:
        for rate in RATES:
            runs = []
            for _ in range(rounds):
                with _flood(rate) as (state, addresses):
                    runs.append(runner.run(_both(state, addresses, seconds)))
            yield rate, [merged for _, merged in runs], [counted for counted, _ in runs]


# -- the figures ---------------------------------------------------------------


def run(seconds: float, rounds: int) -> Figures:
    """Measure."""
    outcome = Figures(
        f"Events of {AGENTS} agents as one stream",
        (
            "asked, M/s",
            "delivered, M/s",
            "client CPU",
            "M/s per core",
            "only counted, M/s per core",
        ),
    )
    merges = [merge_rates() for _ in range(max(rounds, 2))]
    merge = median([each.merge for each in merges])
    heap, sort = (median([getattr(each, name) for each in merges]) for name in ("heap", "sort"))
    outcome.values["merge"] = [asdict(each) for each in merges]
    sustained = 0.0
    for rate, merged, counted in _clients(seconds, rounds):
        outcome.values[f"{rate:g}"] = [asdict(each) for each in merged]
        outcome.values[f"{rate:g} counted"] = [asdict(each) for each in counted]
        best = max(merged, key=lambda each: each.delivered)
        keeps_up = best.delivered >= 0.98 * rate and best.behind_seconds < _BEHIND_SECONDS
        if keeps_up and not best.dropped and not best.late:
            sustained = max(sustained, rate)
        outcome.rows.append(
            (
                f"{rate:g}",
                f"{median([each.delivered for each in merged]):.2f}",
                f"{median([each.cpu for each in merged]):.2f}",
                f"{median([each.per_core for each in merged]):.2f}",
                f"{median([each.per_core for each in counted]):.2f}",
            )
        )
    outcome.goals = [
        (
            f"merge {merge:.1f} M events/s per core, at least {MERGE_GOAL:g} "
            f"({merge / heap:.0f} times heapq.merge, {merge / sort:.2f} of one stable sort)",
            merge >= MERGE_GOAL,
        ),
        (
            f"one client sustains {sustained:g} M events/s from {AGENTS} agents without loss, "
            f"at least {CLIENT_GOAL:g}",
            sustained >= CLIENT_GOAL,
        ),
    ]
    outcome.notes.append(
        f"{rounds} rounds of {seconds:g} s; the agents are one process on the same machine"
    )
    return outcome


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Events of many agents as one stream.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    finish(run(arguments.seconds, arguments.rounds), arguments.json)


if __name__ == "__main__":
    main()
