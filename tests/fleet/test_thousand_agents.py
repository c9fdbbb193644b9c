"""A thousand agents: the real service and the real client, over an engine that is none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.simulated_agents import (
    REFUSED_EVERYWHERE,
    SimulatedAgents,
    simulated_agents,
)
from uftrace_remote.errors import NoSuchFunctionError
from uftrace_remote.fleet import (
    Answers,
    Fleet,
    Member,
    PatchPlan,
    RolloutPolicy,
    Step,
    list_processes,
    load_inventory,
    resolve_hosts,
)
from uftrace_remote.values import Lease, PatchOptions

COUNT = 1000
PLAN = PatchPlan(("work",), PatchOptions(lease=Lease("all", 600 * 10**9)))
# The first process of each pid namespace, and of each agent's: itself.
PROCESS = "1"


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedAgents]:
    with simulated_agents(tmp_path_factory.mktemp("agents"), COUNT) as started:
        yield started


@pytest.fixture
async def fleet(agents: SimulatedAgents) -> AsyncIterator[Fleet]:
    async with Fleet("@all", 30.0, inventory=load_inventory(agents.inventory)) as opened:
        yield opened


async def test_all_are_asked_and_none_is_left_out(agents: SimulatedAgents) -> None:
    found = await resolve_hosts("@all", load_inventory(agents.inventory))
    assert {str(host.endpoint) for host in found.hosts} == set(agents.addresses)
    outcomes = await list_processes(found.hosts, timeout=30.0)
    assert [each.error for each in outcomes if each.error is not None] == []
    assert [each.host for each in outcomes] == list(found.hosts)
    assert all(each.value and each.value[0].pid == 1 for each in outcomes)


async def test_one_patch_on_all(fleet: Fleet) -> None:
    found = await fleet.members(PROCESS)
    assert len(found.values) == COUNT and not found.failures
    # Beside other work some of so many may be late: then it is on nobody, and tried again.
    for _ in range(3):
        done = await fleet.patch(found, PLAN)
        if done.is_enabled:
            break
        assert not done.enabled
    assert done.is_enabled and len(done.enabled) == COUNT
    assert all(each.step is Step.CONFIRMED for each in done.members)
    moments = {
        each.member.agent.clock.to_ours(each.member.commit.at_ns)
        for each in done.members
        if each.member.commit is not None and each.member.agent.clock is not None
    }
    # One moment, told to each on its own clock.
    assert max(moments) - min(moments) <= 1


async def test_one_that_is_not_there_keeps_all_from_it(agents: SimulatedAgents, tmp_path: Path):
    inventory = tmp_path / "inventory.toml"
    # Port 1 of the first one's address: nobody listens there.
    absent = agents.addresses[0].partition(":")[0] + ":1"
    state = agents.inventory.parent / "state0"
    inventory.write_text(
        agents.inventory.read_text()
        + f"[groups.absent]\nhosts = ['{absent}']\nstate_dir = '{state}'\n"
    )
    async with Fleet("@all", 30.0, inventory=load_inventory(inventory)) as fleet:
        found = await fleet.members(PROCESS)
        assert len(found.values) == COUNT
        ((where, error),) = found.failures
        assert (str(where), error.reason) == (absent, "CONNECTION_REFUSED")
        done = await fleet.patch(found, PLAN)
        assert not done.is_enabled and not done.enabled
        assert {each.step for each in done.members} == {Step.NONE}
        # One of a hundred, and it does not matter: with the others it goes on.
        some = Answers(found.values[:99], found.failures)
        plan = PatchPlan(PLAN.patterns, PLAN.options, RolloutPolicy(most_failures=1))
        done = await fleet.patch(some, plan)
        assert done.is_enabled and len(done.enabled) == 99


async def test_what_the_first_refuses_is_asked_of_no_other(fleet: Fleet) -> None:
    found = await fleet.members(PROCESS)
    members: list[Member] = list(found.values)
    done = await fleet.patch(members, PatchPlan((REFUSED_EVERYWHERE,)))
    assert not done.is_enabled
    ((failed,),) = (done.failed,)
    assert isinstance(failed.error, NoSuchFunctionError)
    assert sum(each.step is Step.ATTACHED for each in done.members) == COUNT
