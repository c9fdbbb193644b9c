"""32 real agents on hosts of their own, some of them far away, lossy, or with other clocks.

Half of the programs ask the other half: what one sent before the other received it
happened before, whatever the clocks say.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.namespaced import NamespacedPlaces, namespaced_places
from tests.support.namespaces import HostKind, Network
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import wait_until, wait_until_async
from uftrace_remote.fleet import PatchPlan
from uftrace_remote.fleet.rollout import Step
from uftrace_remote.trace.recordings import open_recording

HOSTS = 32
# Pairs are (0, 1), (2, 3), ...: clocks differ within a pair, and so do links.
KINDS = (
    HostKind(skew=86_400),
    HostKind(),
    HostKind(skew=3, delay_ms=5, jitter_ms=1),
    HostKind(skew=1_000_000),
    HostKind(delay_ms=20, jitter_ms=5, loss_percent=1),
    HostKind(skew=7, loss_percent=3),
    HostKind(delay_ms=1, loss_percent=1),
    HostKind(delay_ms=40),
)
ROUNDS = 200
VICTIMS = (HOSTS - 5, HOSTS - 3, HOSTS - 1)
MESSAGES = PatchPlan(("send_message", "receive_message"))

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamespacedPlaces]:
    directory = tmp_path_factory.mktemp("fleet")

    def arguments(number: int) -> tuple[str, ...]:
        return ("connect" if number % 2 else "listen", str(directory / f"socket{number // 2}"))

    with ExitStack() as stack:
        network = stack.enter_context(Network(HOSTS, KINDS))
        started = stack.enter_context(namespaced_places(directory, network, "pingpong", arguments))
        yield started
        for place in reversed(list(started)):
            place.target.quit()


def assert_untouched(places: NamespacedPlaces) -> None:
    for place in places:
        assert_text_unchanged(place.target.pid)
        assert_not_traced(place.target.pid)


def changed(places: NamespacedPlaces) -> list[bool]:
    return [bool(text_differences(place.target.pid)) for place in places]


async def test_all_are_patched_at_one_moment_or_none(places: NamespacedPlaces) -> None:
    async with places.fleet() as fleet:
        found = await fleet.members("pingpong")
        assert len(found.values) == HOSTS and not found.failures
        done = await fleet.patch(found.values, MESSAGES)
        assert done.is_enabled and len(done.enabled) == HOSTS, [str(m.error) for m in done.failed]
        assert changed(places) == [True] * HOSTS
        for outcome in done.members:
            commit = outcome.member.commit
            # On a clock of its own, which may be eleven days ahead.
            assert commit is not None and commit.begun_ns >= commit.at_ns
            assert commit.patch.enabled_count == 2
            await outcome.member.agent.client.detach(outcome.member.session_id)
    assert_untouched(places)


async def test_a_link_that_is_cut_before_the_moment_stops_all(places: NamespacedPlaces) -> None:
    """What its agent had prepared, or enabled, ends there by itself."""
    async with places.fleet() as fleet:
        found = await fleet.members("pingpong")
        victim = places.agents[HOSTS - 1]
        for phase in ("preparing", "committing"):
            with ExitStack() as cut:

                def progress(words: str, phase: str = phase, cut: ExitStack = cut) -> None:
                    if words.startswith(phase):
                        cut.enter_context(victim.unreachable())

                plan = PatchPlan(MESSAGES.patterns, probation_seconds=20, request_seconds=20)
                done = await fleet.patch(found.values, plan, progress)
                assert not done.is_enabled
                assert victim.address in [str(m.member.agent.endpoint) for m in done.failed]
                # THEN at the latest when its lease ends nobody is enabled
                await wait_until_async(lambda: not any(changed(places)), timeout=90)
            assert all(m.step is not Step.CONFIRMED for m in done.members)
            assert_untouched(places)
            wait_until(lambda: answers(places, HOSTS), timeout=60)
        for member in found.values:
            for session in await member.agent.client.sessions():
                await member.agent.client.detach(session.session_id)


def answers(places: NamespacedPlaces, number: int) -> bool:
    return places.run("status", f"@a{number}").code == 0


def test_every_message_is_recorded_in_the_order_in_which_it_happened(
    places: NamespacedPlaces, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    command = places.start(
        *("record", "@agents:pingpong", "send_message", "receive_message"),
        *("-o", str(trace), "--json"),
    )
    command.wait_for(f"recording {HOSTS} processes", timeout=90)
    askers = list(places)[1::2]
    for place in askers:
        place.target.send(f"burst {ROUNDS}")
    for place in askers:
        assert place.target.read_line(60) == f"burst done {ROUNDS}"
    command.interrupt()
    done = command.wait()
    assert done.code == 0, done
    # THEN what each produced has arrived, or is counted
    told = json.loads((trace / "fleet.json").read_text())
    assert told["complete"] and len(told["members"]) == HOSTS
    members = {member["host"]: member for member in told["members"]}
    for number, place in enumerate(places):
        outcome = members[place.agent.address]["outcome"]
        assert outcome["exact"] is True
        assert outcome["produced"] == outcome["delivered"] + outcome["lost"]
        assert outcome["lost"] == 0
        # Of who answers one call had begun before, and one has not ended.
        assert outcome["produced"] == 4 * ROUNDS - (number % 2 == 0)
    check_order(places, trace)
    assert_untouched(places)


def check_order(places: NamespacedPlaces, trace: Path) -> None:
    bound_ns = open_recording(str(trace)).bound_ns
    # Clocks are up to eleven days apart.
    assert 0 < bound_ns < 10**9
    lines = places.run("replay", str(trace), "--json").out.splitlines()
    calls: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        call = json.loads(line)
        calls[call["host"], call["function"]].append(call)
    for answering, asking in zip(list(places)[::2], list(places)[1::2], strict=True):
        asked = moments(calls[asking.label, "send_message"], "start_ns")
        heard = moments(calls[answering.label, "receive_message"], "end_ns")
        answered = moments(calls[answering.label, "send_message"], "start_ns")
        got = moments(calls[asking.label, "receive_message"], "end_ns")
        assert len(asked) == len(answered) == len(got) == ROUNDS == len(heard) + 1
        in_order(asked[1:], heard, bound_ns)
        in_order(heard, answered[1:], 0)
        in_order(answered, got, bound_ns)
        in_order(got[:-1], asked[1:], 0)


def moments(calls: Sequence[dict[str, Any]], edge: str) -> list[int]:
    return sorted(call[edge] for call in calls if call[edge] is not None)


def in_order(causes: Sequence[int], effects: Sequence[int], within_ns: int) -> None:
    for cause, effect in zip(causes, effects, strict=True):
        assert cause <= effect + within_ns


def test_dead_frozen_and_cut_off_agents_hold_nobody_up(
    places: NamespacedPlaces, tmp_path: Path
) -> None:
    """The others' records are complete; what the three had patched ends by itself."""
    trace = tmp_path / "trace"
    command = places.start("record", "@agents:pingpong", "send_message", "-o", str(trace))
    command.wait_for(f"recording {HOSTS} processes", timeout=90)
    victims = [places[number] for number in VICTIMS]
    dead, frozen, cut = (places.agents[number] for number in VICTIMS)
    with ExitStack() as stack:
        stack.enter_context(frozen.frozen())
        stack.enter_context(cut.unreachable())
        dead.kill()
        for place in victims:
            command.wait_for(f"# {place.label.partition(':')[0]}: ", timeout=60)
        askers = [place for place in list(places)[1::2] if place not in victims]
        for place in list(places)[1::2]:
            place.target.burst(ROUNDS, 60)
        command.interrupt()
        done = command.wait()
        assert done.code == 14, done
    members = {m["host"]: m for m in json.loads((trace / "fleet.json").read_text())["members"]}
    for place in askers:
        outcome = members[place.agent.address]["outcome"]
        assert outcome["exact"] is True and outcome["delivered"] == 2 * ROUNDS
    places.restart(VICTIMS[0])
    wait_until(lambda: not any(changed(places)), timeout=90)
    assert_untouched(places)
