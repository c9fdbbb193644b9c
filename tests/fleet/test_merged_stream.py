"""The events of many hosts as one stream: real agents, real programs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import running_agent
from tests.fleet.hosts import Host, Hosts, running_hosts
from tests.support.cut_link import CutLink, cut_link
from tests.support.stalls import Stalls, within
from tests.support.target_process import TargetProcess
from tests.support.waiting import wait_until_async
from tests.targets.build import build
from uftrace_remote import AgentClient
from uftrace_remote.credentials import CredentialOptions
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import EndReason, RecordKind
from uftrace_remote.fleet import (
    Certainty,
    Fleet,
    FleetStream,
    Member,
    MergedBatch,
    SourceState,
    StreamOptions,
)
from uftrace_remote.fleet.coordinated_patch import PatchPlan
from uftrace_remote.fleet.member import Agent
from uftrace_remote.fleet.merged_events import MergedEvents

LEAF = PatchPlan(("leaf",))
# What may pass before somebody who is gone is told.
SHOWN_SECONDS = 3.0


@dataclass
class Reader:
    """Reads a stream in the background and checks what holds of every batch."""

    stream: FleetStream
    events: list[MergedEvents] = field(default_factory=list)
    states: list[tuple[float, int, SourceState]] = field(default_factory=list)
    last: MergedBatch | None = None
    batches: int = 0
    worst_uncertainty_ns: int = 0
    is_over: bool = False

    async def run(self) -> None:
        complete_to = 0
        known: dict[int, SourceState] = {}
        async for batch in self.stream:
            self.batches += 1
            times, late = batch.events.time_ns, batch.events.late_count
            assert bool((np.diff(times) >= 0).all())
            assert bool((times[:late] < complete_to).all())
            assert bool((times[late:] >= complete_to).all())
            complete_to = batch.certainty.complete_to_ns
            self.worst_uncertainty_ns = max(
                self.worst_uncertainty_ns, batch.certainty.uncertainty_ns
            )
            self.events.append(batch.events)
            self.last = batch
            for source in batch.sources:
                if known.get(source.number) is not source.state:
                    known[source.number] = source.state
                    self.states.append((time.monotonic(), source.number, source.state))
        self.is_over = True

    def count(self, number: int) -> int:
        """Events of a source so far."""
        return sum(int((events.source == number).sum()) for events in self.events)

    def state(self, number: int) -> SourceState:
        return self.last.sources[number].state if self.last else SourceState.WAITING

    def lost(self, number: int) -> int:
        return self.stream.sources[number].lost

    def went_through(self, number: int) -> list[SourceState]:
        return [state for _, of, state in self.states if of == number]

    @property
    def certainty(self) -> Certainty:
        return self.last.certainty if self.last else Certainty()

    async def wait(self, condition: Callable[[], object], timeout: float = 60.0) -> None:
        await wait_until_async(
            condition,
            timeout=timeout,
            otherwise=lambda: f"{self.certainty}, {self.stream.sources}",
        )


@asynccontextmanager
async def reading(stream: FleetStream) -> AsyncIterator[Reader]:
    reader = Reader(stream)
    async with stream:
        task = asyncio.create_task(reader.run())
        yield reader
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()


async def patched(hosts: Hosts, fleet: Fleet, plan: PatchPlan = LEAF) -> list[Member]:
    members = await hosts.members(fleet)
    done = await fleet.patch(members, plan)
    assert done.is_enabled, [each.error for each in done.failed]
    return members


async def detached(members: list[Member]) -> None:
    for member in members:
        await member.agent.client.detach(member.session_id)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three agents, for tests that leave them as they were."""
    with running_hosts(tmp_path_factory.mktemp("hosts"), 3) as started:
        yield started
        started.quit()


async def test_what_was_produced_is_delivered_or_counted(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        before = [host.target.counters()["calls_leaf"] for host in hosts]
        members = await patched(hosts, fleet)
        async with reading(fleet.stream(members)) as reader:
            for place, host in enumerate(hosts):
                host.target.burst(1000 * (place + 1))
            expected = [2000, 4000, 6000]
            await reader.wait(lambda: [reader.count(n) for n in range(3)] == expected)
            await reader.wait(lambda: reader.certainty.complete_to_ns > time.monotonic_ns() - 10**9)
            await reader.wait(lambda: reader.certainty.missing == ())
            assert 0 < reader.certainty.uncertainty_ns < 10**9
            for place, host in enumerate(hosts):
                calls = host.target.counters()["calls_leaf"] - before[place]
                assert 2 * calls == reader.count(place) + reader.lost(place)
                source = reader.stream.sources[place]
                assert source.records == source.counts.delivered == expected[place]
                names = reader.stream.names(place)
                events = np.concatenate([e.function[e.source == place] for e in reader.events])
                assert {names.functions[each].name for each in set(events.tolist())} == {"leaf"}
                kinds = np.concatenate([e.kind[e.source == place] for e in reader.events])
                assert int((kinds == RecordKind.ENTRY).sum()) == expected[place] // 2
            # WHEN nobody holds them any more
            await detached(members)
            await reader.wait(lambda: reader.is_over)
            assert all(s.state is SourceState.ENDED for s in reader.stream.sources)
            assert all(s.end is EndReason.DETACHED for s in reader.stream.sources)
    hosts.check()


async def test_bursts_one_after_the_other_come_in_that_order(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        members = await patched(hosts, fleet)
        async with reading(fleet.stream(members)) as reader:
            order = [0, 1, 2, 1, 0, 2, 2, 1, 0] * 3
            for place in order:
                hosts[place].target.burst(50)
            await reader.wait(lambda: sum(map(len, reader.events)) == 100 * len(order))
            uncertainty = reader.worst_uncertainty_ns
            times = np.concatenate([events.time_ns for events in reader.events])
            sources = np.concatenate([events.source for events in reader.events])
            # Who was late, on a busy machine, was given behind others; not said to be later.
            in_time = np.argsort(times, kind="stable")
            times, sources = times[in_time], sources[in_time]
            wanted = np.repeat(np.array(order), 100)
            moved = times[sources != wanted]
            # One burst ended before the next began, on another host: what is not in that
            # order is nearer to the border than the clocks are known.
            borders = times[np.flatnonzero(np.diff(wanted) != 0) + 1]
            for moment in moved.tolist():
                assert int(np.abs(borders - moment).min()) <= 2 * uncertainty
        await detached(members)
    hosts.check()


async def test_a_frozen_agent_is_shown_and_holds_nobody_up(hosts: Hosts, stalls: Stalls) -> None:
    async with hosts.fleet() as fleet:
        members = await patched(hosts, fleet)
        async with reading(fleet.stream(members)) as reader:
            await reader.wait(lambda: all(reader.state(n) is SourceState.LIVE for n in range(3)))
            with frozen(hosts[1].agent.pid):
                with within(SHOWN_SECONDS):
                    # Its program goes on, into its rings.
                    hosts[1].target.burst(500)
                    await reader.wait(lambda: reader.state(1) is SourceState.SILENT)
                await reader.wait(lambda: reader.certainty.missing == (1,))
                hosts[0].target.burst(300)
                hosts[2].target.burst(300)
                await reader.wait(lambda: reader.count(0) == reader.count(2) == 600)
                assert reader.count(1) == 0
                assert reader.certainty.missing == (1,)
            # WHEN it comes back
            await reader.wait(lambda: reader.count(1) == 1000)
            await reader.wait(lambda: reader.certainty.missing == ())
            await reader.wait(lambda: reader.state(1) is SourceState.LIVE)
            if stalls.seconds < 0.5:
                assert SourceState.SILENT not in reader.went_through(0) + reader.went_through(2)
            # THEN nothing is lost or twice, and what came too late for its place is counted
            assert reader.stream.sources[1].counts.late == 1000
            hosts[1].target.burst(10)
            await reader.wait(lambda: reader.count(1) == 1020)
            assert reader.lost(1) == 0
        await detached(members)
    hosts.check()


async def test_a_dead_agent_is_shown_and_the_others_go_on(tmp_path: Path) -> None:
    with running_hosts(tmp_path, 2) as hosts:
        async with hosts.fleet() as fleet:
            members = await patched(hosts, fleet)
            options = StreamOptions(reconnect_seconds=4.0)
            async with reading(fleet.stream(members, options)) as reader:
                await reader.wait(lambda: all(reader.state(n) is SourceState.LIVE for n in (0, 1)))
                with within(SHOWN_SECONDS):
                    hosts[1].agent.kill()
                    await reader.wait(lambda: reader.state(1) is not SourceState.LIVE)
                assert reader.state(1) is SourceState.BROKEN
                hosts[0].target.burst(100)
                await reader.wait(lambda: reader.count(0) == 200)
                # It does not come back: that is told, and that it is incomplete.
                await reader.wait(lambda: reader.state(1) is SourceState.ENDED)
                assert reader.stream.sources[1].error is not None
                assert reader.stream.sources[1].end is EndReason.NONE
                await reader.wait(lambda: reader.certainty.missing == (1,))
                hosts[0].target.burst(100)
                await reader.wait(lambda: reader.count(0) == 400)
            await detached(members[:1])
        hosts.check()


@asynccontextmanager
async def behind_a_link(hosts: Hosts) -> AsyncIterator[tuple[CutLink, Fleet, list[Member]]]:
    """Two hosts that are patched, of which the first is behind a link."""
    first = hosts[0]
    async with cut_link(first.agent.address) as link:
        endpoint = Endpoint.parse(link.address)
        options = CredentialOptions(state_directory=first.agent.state_dir)
        near = Agent(endpoint, AgentClient.connect(endpoint, options, timeout=30.0))
        async with Fleet([near, hosts[1].connect()], 30.0) as fleet:
            members: list[Member] = []
            for agent, host in zip(fleet.agents, hosts, strict=False):
                members += (await Fleet([agent]).members(str(host.target.pid))).values
            done = await fleet.patch(members, LEAF)
            assert done.is_enabled
            yield link, fleet, members
            await detached(members)
    hosts.check()


async def test_a_broken_connection_is_resumed_without_loss_or_duplicates(hosts: Hosts) -> None:
    async with behind_a_link(hosts) as (link, fleet, members):
        async with reading(fleet.stream(members)) as reader:
            await reader.wait(lambda: reader.state(0) is SourceState.LIVE)
            calls = 0
            for cuts in range(1, 4):
                hosts[0].target.burst(700)
                link.is_open = False
                link.cut()
                hosts[0].target.burst(300)
                await reader.wait(lambda: reader.state(0) is SourceState.BROKEN)
                hosts[1].target.burst(10)
                await reader.wait(lambda: reader.count(1) == 20 * cuts)  # noqa: B023
                link.is_open = True
                calls += 1000
                await reader.wait(lambda: reader.count(0) == 2 * calls)  # noqa: B023
                await reader.wait(lambda: reader.state(0) is SourceState.LIVE)
            assert link.connections > 3
            assert reader.lost(0) == reader.lost(1) == 0
            await reader.wait(lambda: reader.certainty.missing == ())


async def test_a_slow_connection_is_shown_and_holds_nobody_up(hosts: Hosts) -> None:
    async with behind_a_link(hosts) as (link, fleet, members):
        async with reading(fleet.stream(members, StreamOptions(clock_seconds=0.5))) as reader:
            await reader.wait(lambda: reader.state(0) is SourceState.LIVE)
            link.delay = 5.0
            with within(SHOWN_SECONDS):
                await reader.wait(lambda: reader.state(0) is not SourceState.LIVE)
            # What was sent slowly begins to come, as old as it is.
            await reader.wait(lambda: reader.state(0) is SourceState.SLOW)
            hosts[0].target.burst(100)
            hosts[1].target.burst(100)
            since = time.monotonic()
            await reader.wait(lambda: reader.count(1) == 200)
            # Unless we took as long as the link does.
            assert reader.count(0) == 0 or time.monotonic() - since > link.delay / 2
            assert reader.certainty.missing == (0,)
            await reader.wait(lambda: reader.count(0) == 200)
            assert reader.stream.sources[0].counts.late == 200
            # A measurement over this way is worse than the one before.
            assert reader.certainty.uncertainty_ns < 10**9
            link.delay = 0.0
            await reader.wait(lambda: reader.state(0) is SourceState.LIVE)
            await reader.wait(lambda: reader.certainty.missing == ())


async def test_a_slow_consumer_costs_records_and_no_memory(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        members = await patched(hosts, fleet)
        options = StreamOptions(most_records=5000, most_at_once=1000)
        async with fleet.stream(members, options) as stream:
            await anext(stream)
            # WHEN nobody takes what comes
            for _ in range(10):
                for host in hosts:
                    host.target.burst(1000)

            def arrived() -> bool:
                held = sum(source.counts.held for source in stream.sources)
                assert held <= 5000
                return all(source.counts.received >= 20_000 for source in stream.sources)

            await wait_until_async(arrived, timeout=60.0)
            await detached(members)
            reader = Reader(stream)
            await asyncio.wait_for(reader.run(), 60)
            # THEN it is counted to the last record, for each of them
            for source in stream.sources:
                assert source.records == 20_000
                assert source.counts.dropped > 0
                assert source.losses == {"merge": source.counts.dropped}
                assert source.counts.delivered + source.counts.dropped == 20_000
                assert source.counts.held == 0
                assert source.counts.delivered >= reader.count(source.number) > 0
            assert max(map(len, reader.events)) <= 1000
    hosts.check()


async def test_a_consumer_that_blocks_the_loop_makes_nobody_silent(
    hosts: Hosts, stalls: Stalls
) -> None:
    async with hosts.fleet() as fleet:
        members = await patched(hosts, fleet)
        async with reading(fleet.stream(members)) as reader:
            await reader.wait(lambda: all(reader.state(n) is SourceState.LIVE for n in range(3)))
            # As a program does that computes instead of reading.
            with frozen_loop(3.5):
                for host in hosts:
                    host.target.burst(100)
            for host in hosts:
                host.target.burst(100)
            await reader.wait(lambda: all(reader.count(n) == 400 for n in range(3)))
            # The loop stood still for 3.5 s; more than some tenths beyond that was the machine.
            if stalls.seconds < 4.0:
                assert not [s for _, _, s in reader.states if s is SourceState.SILENT]
                assert not any(source.counts.late for source in reader.stream.sources)
        await detached(members)
    hosts.check()


@contextmanager
def frozen_loop(seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    yield
    while time.monotonic() < until:
        pass


async def test_the_end_of_one_program_is_no_end_of_the_others(tmp_path: Path) -> None:
    with running_hosts(tmp_path, 2) as hosts:
        async with hosts.fleet() as fleet:
            members = await patched(hosts, fleet)
            async with reading(fleet.stream(members)) as reader:
                await reader.wait(lambda: reader.state(0) is SourceState.LIVE)
                hosts[0].target.burst(100)
                hosts[0].target.quit()
                await reader.wait(lambda: reader.state(0) is SourceState.ENDED)
                assert reader.stream.sources[0].end is EndReason.PROCESS_EXITED
                hosts[1].target.burst(100)
                await reader.wait(lambda: reader.count(0) == reader.count(1) == 200)
                assert reader.certainty.missing == ()
            await detached(members[1:])
        hosts[1].target.wait_iterations(2)


async def test_what_caused_comes_before_what_it_caused(tmp_path: Path) -> None:
    program, path = build("pingpong"), str(tmp_path / "socket")
    with ExitStack() as stack:
        answering = stack.enter_context(TargetProcess(program, "listen", path))
        asking = stack.enter_context(TargetProcess(program, "connect", path))
        hosts = Hosts(
            [
                Host(stack.enter_context(running_agent(tmp_path / f"agent{n}")), target)
                for n, target in enumerate((asking, answering))
            ]
        )
        async with hosts.fleet() as fleet:
            plan = PatchPlan(("send_message", "receive_message"))
            members = await patched(hosts, fleet, plan)
            # Clocks are measured anew meanwhile.
            options = StreamOptions(clock_seconds=0.5)
            async with reading(fleet.stream(members, options)) as reader:
                rounds = 4000
                for _ in range(4):
                    asking.burst(rounds // 4)
                await reader.wait(lambda: reader.count(0) == 4 * rounds, 60.0)
                await reader.wait(lambda: reader.count(1) >= 4 * rounds - 1, 60.0)
                check_causes(reader, rounds)
            await detached(members)
        asking.quit()
        answering.quit()


def check_causes(reader: Reader, rounds: int) -> None:
    places: dict[tuple[int, str, RecordKind], np.ndarray] = {}
    columns = [
        np.concatenate([getattr(events, name) for events in reader.events])
        for name in ("time_ns", "source", "function", "kind")
    ]
    times, sources, functions, kinds = columns
    late = np.concatenate([np.arange(len(e)) < e.late_count for e in reader.events])
    for number in (0, 1):
        for function, named in reader.stream.names(number).functions.items():
            for kind in (RecordKind.ENTRY, RecordKind.EXIT):
                chosen = (sources == number) & (functions == function) & (kinds == kind)
                places[number, named.name, kind] = np.flatnonzero(chosen)
    asked = places[0, "send_message", RecordKind.ENTRY]
    # The first one had begun before it was traced.
    heard = places[1, "receive_message", RecordKind.EXIT]
    answered = places[1, "send_message", RecordKind.ENTRY]
    got = places[0, "receive_message", RecordKind.EXIT]
    assert len(asked) == len(answered) == len(got) == rounds
    # What one host did is in order in any case.
    for of in (asked, got, heard, answered):
        assert bool((np.diff(times[of]) >= 0).all())
    uncertainty = reader.worst_uncertainty_ns
    # The other host's question stands for what it heard before it was traced.
    heard = heard[len(heard) - rounds :] if len(heard) >= rounds else np.append(asked[:1], heard)
    for cause, effect in (
        (asked, heard),
        (heard, answered),
        (answered, got),
        (got[:-1], asked[1:]),
    ):
        # What came too late for its place is behind others, wherever it belongs.
        is_wrong = (cause > effect) & ~late[cause] & ~late[effect]
        # Only where the clocks are not known as well as that.
        apart = times[cause] - times[effect]
        assert int(apart.max()) <= uncertainty
        assert bool((apart[is_wrong] >= 0).all())
