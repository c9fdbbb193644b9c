"""Clients and agents that are one release apart: all that both know works, the rest is said."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import AgentProcess, running_agent
from tests.support.skewed_proxy import Skew, skewed
from tests.support.target_process import TargetProcess
from tests.support.text_compare import assert_not_traced, assert_text_unchanged
from tests.targets.build import build
from uftrace_remote import AgentClient, CredentialOptions, PatchForm, UnsupportedTargetError
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.fleet import Agent, Fleet, Member, PatchPlan, RolloutPolicy

# What came with the coordination of many agents.
OLDER = Skew(
    missing_calls=frozenset({"PreparePatch", "CommitPatch", "AwaitPatch", "AbortPatch"}),
    missing_fields={"DetachRequest": ["if_unused"], "GetAgentInfoResponse": ["now"]},
)
NEWER = Skew(is_newer=True)


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("agents")
    with running_agent(folder / "a") as first, running_agent(folder / "b") as second:
        yield first, second


@pytest.fixture
def targets():
    program = build("busy8")
    with (
        TargetProcess(program, niceness=10) as first,
        TargetProcess(program, niceness=10) as second,
    ):
        yield first, second
        for target in (first, second):
            assert_text_unchanged(target.pid)
            assert_not_traced(target.pid)
            target.quit()


async def connect(agent: AgentProcess, address: str = "") -> AgentClient:
    options = CredentialOptions(agent.state_dir, insecure=bool(address))
    return AgentClient.connect(address or agent.address, options, timeout=30.0)


@pytest.mark.parametrize("skew", [OLDER, NEWER], ids=["older agent", "newer agent"])
async def test_one_host_works_with_a_client_that_is_one_release_apart(agents, targets, skew):
    agent, target = agents[0], targets[0]
    async with skewed(agent.address, agent.state_dir, skew) as address:
        async with await connect(agent, address) as client:
            assert (await client.info()).hostname
            process = next(each for each in await client.processes() if each.pid == target.pid)
            names = [f.function.name async for f in client.functions(process.reference, ["leaf"])]
            assert names == ["leaf"]
            session = (await client.attach(process.reference)).session
            patched = await client.patch(session.session_id, ["leaf", "chain_a"])
            assert patched.enabled_count == 2
            if skew.is_newer:
                # What nobody here knows is said to be so, and hurts nothing.
                assert {each.form for each in patched.results} == {PatchForm.NONE}
            records = 0
            async for batch in client.stream(session.session_id, include_buffered=True):
                records += batch.record_count
                if records:
                    break
            assert (await client.unpatch(session.session_id)).disabled_count == 2
            assert (await client.detach(session.session_id)).restored_sites == 0


async def test_an_older_agent_cannot_take_part_and_says_so(agents, targets):
    first, second = agents
    async with skewed(second.address, second.state_dir, OLDER) as address:
        async with Fleet(
            [
                Agent(Endpoint.parse(first.address), await connect(first)),
                Agent(Endpoint.parse(address), await connect(second, address)),
            ],
            30.0,
        ) as fleet:
            new, old = fleet.agents
            # WHEN one of two agents knows nothing of coordination
            found = await fleet.ask(lambda agent: _member(agent, new, targets))
            # THEN it cannot tell its clock, which is said before anything is touched
            ((where, error),) = found.failures
            assert where == old.endpoint and isinstance(error, UnsupportedTargetError)
            assert error.reason == "AGENT_TOO_OLD" and "update" in error.hint
            done = await fleet.patch(found, PatchPlan(("leaf",)))
            assert not done.is_enabled and done.unreached == found.failures
            assert_not_traced(targets[0].pid)
            # AND the other goes on without it, if that is what is wanted
            plan = PatchPlan(("leaf",), policy=RolloutPolicy(most_failures=1))
            done = await fleet.patch(found, plan)
            assert done.is_enabled and len(done.enabled) == 1
            await new.client.detach(done.members[0].member.session_id)


async def _member(agent: Agent, new: Agent, targets: tuple[TargetProcess, TargetProcess]) -> Member:
    alone = Fleet([agent], 30.0)
    target = targets[0] if agent is new else targets[1]
    answers = await alone.members(str(target.pid))
    if answers.failures:
        raise answers.failures[0][1]
    return answers.values[0]


async def test_hosts_of_several_versions_are_one_fleet(agents, targets):
    first, second = agents
    async with skewed(second.address, second.state_dir, NEWER) as address:
        async with Fleet(
            [
                Agent(Endpoint.parse(first.address), await connect(first)),
                Agent(Endpoint.parse(address), await connect(second, address)),
            ],
            30.0,
        ) as fleet:
            found = await fleet.ask(lambda agent: _member(agent, fleet.agents[0], targets))
            assert not found.failures
            done = await fleet.patch(found, PatchPlan(("leaf",)))
            assert done.is_enabled and len(done.enabled) == 2
            for each in done.members:
                await each.member.agent.client.detach(each.member.session_id)
