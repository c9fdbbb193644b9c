"""One patch on many hosts at one moment, or on none: real agents, real programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fleet.hosts import Hosts, running_hosts
from tests.support.text_compare import assert_not_traced, assert_text_unchanged, text_differences
from tests.support.waiting import wait_until
from uftrace_remote.enums import PatchStatus
from uftrace_remote.errors import (
    ConflictError,
    NoSuchFunctionError,
    NotFoundError,
    UftraceError,
    UsageError,
)
from uftrace_remote.fleet.coordinated_patch import PatchPlan
from uftrace_remote.fleet.rollout import RolloutPolicy, Step
from uftrace_remote.preparation import Preparation
from uftrace_remote.values import Lease, PatchOptions


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three agents, each with a program of its own; for tests that do not hurt them."""
    with running_hosts(tmp_path_factory.mktemp("hosts"), 3) as started:
        yield started
        started.quit()


# In seconds: a busy machine may be late for a moment that is a tenth of one away.
MOST_LATE = 30.0
LEAVES = PatchPlan(("leaf", "chain_*"))


def assert_untouched(hosts: Hosts) -> None:
    for host in hosts:
        assert_text_unchanged(host.target.pid)
        assert_not_traced(host.target.pid)


def prepared_only(hosts: Hosts) -> bool:
    """Whether no byte of any program has changed."""
    return not any(text_differences(host.target.pid) for host in hosts)


async def test_all_are_enabled_at_one_moment_and_stay(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        members = await hosts.members(fleet)
        done = await fleet.patch(members, LEAVES)
        assert done.is_enabled and len(done.enabled) == 3 and not done.failed
        assert all(each.step is Step.CONFIRMED for each in done.members)
        assert all(each.written_ns and each.bound_ns for each in done.enabled)
        for member in members:
            assert member.commit is not None and member.commit.begun_ns >= member.commit.at_ns
            assert member.commit.patch.enabled_count == 4
            (session,) = await member.agent.client.sessions()
            # Nothing that ends by itself holds them.
            assert session.tracepoint_count == 4 and not session.leases
            await member.agent.client.detach(member.session_id)
    assert_untouched(hosts)
    hosts.check()


async def test_nothing_changes_before_the_commit_and_abort_leaves_nothing(hosts: Hosts) -> None:
    """The two steps by hand: what is prepared is in no byte of the program."""
    async with hosts.fleet() as fleet:
        (member, *_) = await hosts.members(fleet)
        client = member.agent.client
        session_id = (await client.attach(member.process.reference)).session.session_id
        prepared = await client.prepare_patch(session_id, ["leaf"])
        assert prepared.ready
        assert [r.status for r in prepared.plan.results] == [PatchStatus.NOT_ENABLED]
        assert prepared.plan.results[0].form and prepared.plan.results[0].writer
        assert prepared_only(hosts)
        # WHEN somebody else wants the process
        with pytest.raises(ConflictError) as refused:
            await client.patch(session_id, ["leaf"])
        assert refused.value.reason == "PREPARED_BY_ANOTHER"
        with pytest.raises(ConflictError):
            await client.unpatch(session_id)
        # WHEN it is given up
        assert await client.abort_patch(prepared) == 0
        with pytest.raises(ConflictError, match="aborted already"):
            await client.commit_patch(prepared, time.monotonic_ns() + 10**8, MOST_LATE)
        # THEN others may
        assert (await client.patch(session_id, ["leaf"])).enabled_count == 1
        await client.detach(session_id)
    assert_untouched(hosts)
    hosts.check()


async def test_an_abort_undoes_a_commit_and_stops_one_that_waits(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        (member, *_) = await hosts.members(fleet)
        client = member.agent.client
        session_id = (await client.attach(member.process.reference)).session.session_id
        for delay_ns, disabled in ((10**7, 1), (30 * 10**9, 0)):
            prepared = await client.prepare_patch(session_id, ["leaf"])
            await client.commit_patch(prepared, time.monotonic_ns() + delay_ns, MOST_LATE)
            if disabled:
                assert (await client.await_patch(prepared)).is_written
                assert not prepared_only(hosts)
            assert await client.abort_patch(prepared) == disabled
            assert prepared_only(hosts)
            outcome = await client.await_patch(prepared)
            assert outcome.is_written == bool(disabled)
        await client.detach(session_id)
    hosts.check()


async def test_moments_that_cannot_be_are_refused(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        (member, *_) = await hosts.members(fleet)
        client = member.agent.client
        session_id = (await client.attach(member.process.reference)).session.session_id
        prepared = await client.prepare_patch(session_id, ["leaf"])
        for moment in (0, time.monotonic_ns() - 10**10, time.monotonic_ns() + 10**12):
            with pytest.raises(UsageError) as refused:
                await client.commit_patch(prepared, moment)
            assert refused.value.reason == "BAD_MOMENT"
        with pytest.raises(UsageError, match="not been committed"):
            await client.await_patch(prepared)
        # WHEN nobody comes in time
        await client.abort_patch(prepared)
        short = await client.prepare_patch(session_id, ["leaf"], hold_seconds=0.2)
        wait = asyncio.get_running_loop().time() + 60
        while True:
            try:
                assert (await client.patch(session_id, ["leaf"])).enabled_count == 1
                break
            except ConflictError:
                assert asyncio.get_running_loop().time() < wait
        with pytest.raises(NotFoundError):
            await client.commit_patch(short, time.monotonic_ns() + 10**7)
        await client.detach(session_id)
    hosts.check()


async def test_one_refusal_is_enough_for_nothing_to_happen(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        members = await hosts.members(fleet)
        # Somebody else is about to patch one of the processes.
        client = members[2].agent.client
        session_id = (await client.attach(members[2].process.reference)).session.session_id
        theirs = await client.prepare_patch(session_id, ["chain_a"], hold_seconds=300)
        done = await fleet.patch(members, PatchPlan(("leaf",), patience_seconds=0))
        assert not done.is_enabled and not done.enabled
        (failed,) = done.failed
        assert failed.member.agent is members[2].agent and failed.step is Step.ATTACHED
        assert isinstance(failed.error, ConflictError)
        assert not any(each.left_over for each in done.members)
        assert prepared_only(hosts)
        for place in (0, 1):
            assert not await members[place].agent.client.sessions()
        # Theirs is as it was.
        await client.commit_patch(theirs, time.monotonic_ns() + 10**8, MOST_LATE)
        assert (await client.await_patch(theirs)).patch.enabled_count == 1
        await client.detach(session_id)
    assert_untouched(hosts)
    hosts.check()


async def test_no_such_function_anywhere(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        done = await fleet.patch(await hosts.members(fleet), PatchPlan(("no_such_function",)))
        assert not done.is_enabled
        assert all(isinstance(each.error, NoSuchFunctionError) for each in done.failed)
    assert_untouched(hosts)
    hosts.check()


async def test_some_may_fail_where_that_is_allowed(tmp_path: Path) -> None:
    with running_hosts(tmp_path, 3) as hosts:
        await some_fail(hosts)
        hosts.quit()


async def some_fail(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        members = await hosts.members(fleet)
        hosts[1].agent.kill()
        done = await fleet.patch(members, PatchPlan(("leaf",), policy=RolloutPolicy(None)))
        assert done.is_enabled and len(done.enabled) == 2
        (failed,) = done.failed
        assert failed.member is members[1]
        for place in (0, 2):
            await members[place].agent.client.detach(members[place].session_id)
    assert_untouched(hosts)
    hosts.check()


async def test_canary_and_batches_one_after_the_other(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        members = await hosts.members(fleet)
        said: list[str] = []
        policy = RolloutPolicy(canary=1, batch=1, watch_seconds=0.2)
        lease = Lease("looked-into", 600 * 10**9)
        plan = PatchPlan(("leaf",), PatchOptions(lease=lease), policy)
        done = await fleet.patch(members, plan, said.append)
        assert done.is_enabled and len(done.enabled) == 3
        assert [words for words in said if words.startswith("committing")] == [
            "committing on 1",
            "committing on 1",
            "committing on 1",
        ]
        moments = sorted({m.commit.at_ns for m in members if m.commit is not None})
        assert len(moments) == 3
        for member in members:
            (session,) = await member.agent.client.sessions()
            (held,) = session.leases
            assert held.name == "looked-into" and 500e9 < held.remaining_ns <= 600e9
            await member.agent.client.detach(member.session_id)
    assert_untouched(hosts)
    hosts.check()


async def test_two_clients_at_once_neither_block_nor_mix(hosts: Hosts) -> None:
    """Both want all processes; each gets all of them, one after the other."""
    async with hosts.fleet() as one, hosts.fleet() as other:
        first, second = await hosts.members(one), await hosts.members(other)
        done = await asyncio.gather(
            one.patch(first, PatchPlan(("leaf",), patience_seconds=60)),
            other.patch(list(reversed(second)), PatchPlan(("chain_*",), patience_seconds=60)),
        )
        assert all(each.is_enabled and len(each.enabled) == 3 for each in done)
        for member in first:
            (session,) = await member.agent.client.sessions()
            assert session.tracepoint_count == 4
            await member.agent.client.detach(session.session_id)
    assert_untouched(hosts)
    hosts.check()


async def test_a_client_that_dies_leaves_nothing_enabled_for_longer_than_its_lease(
    hosts: Hosts,
) -> None:
    """It ends between the commit and the confirmation: the agents take it back."""
    async with hosts.fleet() as fleet:
        members = await hosts.members(fleet)
        for member in members:
            client = member.agent.client
            session_id = (await client.attach(member.process.reference)).session.session_id
            lease = Lease("probation", 500_000_000)
            options = PatchOptions(lease=lease)
            prepared = await client.prepare_patch(session_id, ["leaf"], options)
            await client.commit_patch(prepared, time.monotonic_ns() + 10**8, MOST_LATE)
            assert (await client.await_patch(prepared)).is_written
    # WHEN nobody is there any more
    wait_until(lambda: prepared_only(hosts))
    for host in hosts:
        with host.agent.client() as client:
            (session,) = client.sessions()
            client.detach(session.session_id)
    hosts.check()


async def test_an_agent_that_dies_armed_enables_nothing(tmp_path: Path) -> None:
    with running_hosts(tmp_path, 1) as hosts:
        await dies_armed(hosts)
        hosts.quit()


async def dies_armed(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        (member, *_) = await hosts.members(fleet)
        client = member.agent.client
        session_id = (await client.attach(member.process.reference)).session.session_id
        prepared = await client.prepare_patch(session_id, ["leaf"])
        await client.commit_patch(prepared, time.monotonic_ns() + 20 * 10**9)
        waiting = asyncio.create_task(client.await_patch(prepared))
        hosts[0].agent.kill()
        with pytest.raises(UftraceError):
            await waiting
    assert_text_unchanged(hosts[0].target.pid)
    hosts.check()


class GaveUp(Exception):
    """Somebody has had enough."""


def giving_up_at(words: str, times: int = 1) -> Callable[[str], None]:
    """A progress that ends the patch when it has been told that so often."""
    left = times

    def progress(said: str) -> None:
        nonlocal left
        left -= said.startswith(words)
        if not left:
            raise GaveUp

    return progress


async def test_what_hangs_on_the_same_lease_is_not_ended_by_a_rollback(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        members = await hosts.members(fleet)
        options = PatchOptions(lease=Lease("night-watch", 600 * 10**9))
        assert (await fleet.patch(members, PatchPlan(("leaf",), options))).is_enabled
        # WHEN more is to hang on it, and everything is rolled back after the commit
        for again in (await hosts.members(fleet), await hosts.members(fleet)):
            with pytest.raises(GaveUp):
                await fleet.patch(again, PatchPlan(("chain_*",), options), giving_up_at("confirm"))
        # THEN what was there stays, for as long as before
        for member in members:
            (session,) = await member.agent.client.sessions()
            assert session.tracepoint_count == 1
            (lease,) = session.leases
            assert lease.remaining_ns > 400e9
            await member.agent.client.detach(session.session_id)
    assert_untouched(hosts)
    hosts.check()


async def test_a_rollback_finds_its_own_behind_what_others_have_prepared(hosts: Hosts) -> None:
    async with hosts.fleet() as fleet:
        members = await hosts.members(fleet)
        first = min(members, key=lambda member: member.key)
        client = first.agent.client
        theirs: list[asyncio.Task[Preparation]] = []

        async def prepare() -> Preparation:
            while True:
                (session,) = await client.sessions()
                with suppress(ConflictError):
                    return await client.prepare_patch(session.session_id, ["chain_a"])

        give_up = giving_up_at("committing", 2)

        def progress(said: str) -> None:
            if said.startswith("watching"):
                # The canary is changed: others may plan for its process again.
                theirs.append(asyncio.create_task(prepare()))
            give_up(said)

        plan = PatchPlan(("leaf",), policy=RolloutPolicy(canary=1, watch_seconds=2.0))
        with pytest.raises(GaveUp):
            await fleet.patch(members, plan, progress)
        # THEN it is not left to its lease, which would be 30 s
        assert prepared_only(hosts)
        prepared = await theirs[0]
        await client.commit_patch(prepared, time.monotonic_ns() + 10**8, MOST_LATE)
        assert (await client.await_patch(prepared)).patch.enabled_count == 1
        await client.detach(first.session_id or prepared.session_id)
    assert_untouched(hosts)
    hosts.check()
