"""Roles and rules on real channels: which call, by whom, on what, and what is written down."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.support.agent_server import LOOPBACK, Caller, RunningAgent, new_id, reason_of
from tests.support.sessions import ScriptedSessions
from uftrace.agent.v1 import (
    agent_pb2,
    coordination_pb2,
    event_pb2,
    process_pb2,
    session_pb2,
    tracepoint_pb2,
)
from uftrace_agent.config import AgentConfig
from uftrace_agent.rpc.rights import RIGHTS, is_open, right_of
from uftrace_agent.rpc.server import AgentServer
from uftrace_agent.state_directory import StateDirectory
from uftrace_agent.trust.policy import PolicyError
from uftrace_agent.trust.roles import Role

SERVICE = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
OWN = process_pb2.ProcessRef(pid=os.getpid())
INFO = agent_pb2.GetAgentInfoRequest()
DENIED = grpc.StatusCode.PERMISSION_DENIED
MINUTE = 60 * 10**9


def attach() -> session_pb2.AttachRequest:
    return session_pb2.AttachRequest(request_id=new_id(), process=OWN)


def patch(**fields: Any) -> tracepoint_pb2.PatchRequest:
    return tracepoint_pb2.PatchRequest(
        request_id=new_id(), session_id="s1", patterns=["work"], **fields
    )


class Served(RunningAgent):
    """A server with its configuration's files."""

    def audited(self) -> list[dict[str, Any]]:
        text = (self.state.path / "audit.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def token(self, role: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.state.token_of(role)}"),)


@contextlib.asynccontextmanager
async def serving(
    tmp_path: Path, sessions: ScriptedSessions, policy: str | None = None
) -> AsyncIterator[Served]:
    state = StateDirectory(tmp_path / "state")
    rules = tmp_path / "policy.toml"
    if policy is not None:
        rules.write_text(policy)
        rules.chmod(0o600)
    config = AgentConfig(
        (LOOPBACK,),
        state.path,
        policy=None if policy is None else rules,
        audit=state.path / "audit.jsonl",
    )
    server = AgentServer(config, state, sessions)
    addresses = await server.start()
    try:
        yield Served(server, state, addresses)
    finally:
        sessions.may_finish.set()
        await server.stop()


@contextlib.asynccontextmanager
async def calling_as(agent: Served, role: str) -> AsyncIterator[Caller]:
    async with agent.channel() as channel:
        caller = Caller(agent, channel)
        caller._bearer = agent.token(role)
        yield caller


@pytest.fixture
def sessions() -> ScriptedSessions:
    return ScriptedSessions()


def test_every_call_of_every_service_has_a_right():
    services = (
        SERVICE,
        health_pb2.DESCRIPTOR.services_by_name["Health"],
        reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
    )
    calls = {f"{service.full_name}/{call.name}" for service in services for call in service.methods}
    assert {call for call in calls if call not in RIGHTS and not is_open(call)} == set()
    assert set(RIGHTS) <= calls


def test_what_changes_something_wants_more_than_view():
    # A request of a change has an id, so that it is made once.
    for call in SERVICE.methods:
        changes = "request_id" in call.input_type.fields_by_name
        assert (right_of(f"{SERVICE.full_name}/{call.name}") > Role.VIEW) == changes, call.name
    assert right_of("some.Other/Call") is Role.ADMIN


@pytest.mark.parametrize("role", ["view", "trace", "admin"])
async def test_each_call_by_each_role(tmp_path, sessions, role):
    async with serving(tmp_path, sessions) as agent, calling_as(agent, role) as caller:
        for call in SERVICE.methods:
            request = getattr(caller, call.name)(_request(call))
            try:
                code, reason, facts = await reason_of(request)
            except AssertionError:
                code, reason, facts = grpc.StatusCode.OK, "", {}
            needed = right_of(f"{SERVICE.full_name}/{call.name}")
            refused = (code, reason) == (DENIED, "ROLE_TOO_LOW")
            assert refused == (Role.parse(role) < needed), (call.name, code, reason)
            if refused:
                assert (facts["role"], facts["needed"]) == (role, needed.word)
                assert needed.word in facts["hint"]
    if role == "view":
        assert all(call[0] in ("list_functions", "shutdown") for call in sessions.calls)


def _request(call: Any) -> Any:
    modules = (agent_pb2, coordination_pb2, event_pb2, process_pb2, session_pb2, tracepoint_pb2)
    kind = next(
        getattr(m, call.input_type.name) for m in modules if hasattr(m, call.input_type.name)
    )
    return kind()


async def test_a_token_that_is_renewed_or_removed_is_no_longer_taken(tmp_path, sessions):
    async with serving(tmp_path, sessions) as agent, calling_as(agent, "view") as caller:
        await caller.GetAgentInfo(INFO)
        agent.state.renew_token("view")
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        assert (await reason_of(caller.GetAgentInfo(INFO)))[:2] == (
            unauthenticated,
            "INVALID_TOKEN",
        )
        caller._bearer = agent.token("view")
        await caller.GetAgentInfo(INFO)
        # One that others can read may be known to them.
        (agent.state.path / "token.view").chmod(0o644)
        assert (await reason_of(caller.GetAgentInfo(INFO)))[0] == unauthenticated
        (agent.state.path / "token.view").unlink()
        assert (await reason_of(caller.GetAgentInfo(INFO)))[0] == unauthenticated


async def test_guessing_is_slowed_down(tmp_path, sessions):
    async with serving(tmp_path, sessions) as agent, calling_as(agent, "view") as caller:
        wrong = (("authorization", "Bearer wrong"),)
        reasons = [
            (await reason_of(caller.GetAgentInfo(INFO, metadata=wrong)))[1] for _ in range(7)
        ]
        assert reasons[:5] == ["INVALID_TOKEN"] * 5
        assert set(reasons[5:]) == {"TOO_MANY_FAILURES"}
        # While it lasts, the right one is no better: it would tell what is right.
        _, reason, facts = await reason_of(caller.GetAgentInfo(INFO))
        assert reason == "TOO_MANY_FAILURES"
        assert 1 <= int(facts["retry_after_seconds"]) <= 2
        # Whoever presents nothing guesses nothing.
        assert (await reason_of(caller.GetAgentInfo(INFO, metadata=())))[1] == "MISSING_TOKEN"


async def test_a_rule_denies_by_name_and_nothing_is_done(tmp_path, sessions):
    policy = f"""
    [[rule]]
    name = "not-mine"
    effect = "deny"
    uids = [{os.geteuid()}]
    """
    async with serving(tmp_path, sessions, policy) as agent:
        async with calling_as(agent, "trace") as caller:
            code, reason, facts = await reason_of(caller.Attach(attach()))
            assert (code, reason, facts["rule"]) == (DENIED, "POLICY_DENIED", "not-mine")
            code, reason, facts = await reason_of(
                caller.ListFunctions(tracepoint_pb2.ListFunctionsRequest(process=OWN))
            )
            assert (code, facts["rule"]) == (DENIED, "not-mine")
            assert sessions.calls == []
            # WHEN the rules change THEN the next call is under the new ones
            (tmp_path / "policy.toml").write_text("")
            assert (await reason_of(caller.Attach(attach())))[1] == "POLICY_DENIED"
            (tmp_path / "policy.toml").write_text("[defaults]")
            await caller.Attach(attach())
            (tmp_path / "policy.toml").write_text(policy)
            for call in (
                caller.Patch(patch()),
                caller.Detach(session_pb2.DetachRequest(request_id=new_id(), session_id="s1")),
                caller.StreamEvents(event_pb2.StreamEventsRequest(session_id="s1")),
            ):
                assert (await reason_of(call))[1] == "POLICY_DENIED"
            assert [call[0] for call in sessions.calls] == ["attach"]
    denied, _, made, *_ = agent.audited()
    assert (denied["what"], denied["result"], denied["rule"], denied["pid"]) == (
        "attach",
        "POLICY_DENIED",
        "not-mine",
        os.getpid(),
    )
    assert (made["what"], made["result"]) == ("attach", "OK")
    # Looking is no change.
    told = [line["what"] for line in agent.audited()]
    assert told[:3] == ["attach"] * 3 and sorted(told[3:]) == ["detach", "patch"]


async def test_maxima_hold_for_all_but_admins(tmp_path, sessions):
    policy = """
    [defaults]
    max_budget = "3%"
    max_lease = "10m"
    """
    short = session_pb2.Lease(name="l", duration_nanos=MINUTE)
    long = session_pb2.Lease(name="l", duration_nanos=60 * MINUTE)
    keep = session_pb2.ReleaseLeaseRequest(
        request_id=new_id(), session_id="s1", name="l", keep=True
    )
    async with serving(tmp_path, sessions, policy) as agent:
        async with calling_as(agent, "trace") as caller, calling_as(agent, "admin") as admin:
            await caller.Attach(attach())
            for request in (
                patch(),
                patch(lease=long),
                patch(lease=short, limits=session_pb2.Limits(cpu_share=0.01)),
            ):
                assert (await reason_of(caller.Patch(request)))[1] == "POLICY_DENIED"
            assert (await reason_of(caller.ReleaseLease(keep)))[2]["rule"] == "defaults"
            # What is to come of a preparation is asked before anything is prepared.
            for last in ({"keep": True}, {"last_lease": long}):
                asked = coordination_pb2.PreparePatchRequest(
                    request_id=new_id(), patch=patch(lease=short), **last
                )
                code, reason, facts = await reason_of(caller.PreparePatch(asked))
                assert (code, reason, facts["rule"]) == (DENIED, "POLICY_DENIED", "defaults")
            await caller.Patch(patch(lease=short))
            await caller.Patch(patch(dry_run=True))
            raising = session_pb2.SetLimitsRequest(
                request_id=new_id(), session_id="s1", limits=session_pb2.Limits(cpu_share=0)
            )
            assert (await reason_of(caller.SetLimits(raising)))[1] == "POLICY_DENIED"
            await admin.SetLimits(raising)
            await admin.Patch(patch())
    assert [call[0] for call in sessions.calls[:5]] == [
        "attach",
        "patch",
        "patch",
        "set_limits",
        "patch",
    ]


async def test_a_process_that_is_not_there_passes_no_rule(tmp_path, sessions):
    async with (
        serving(tmp_path, sessions, "[defaults]") as agent,
        calling_as(agent, "trace") as caller,
    ):
        request = attach()
        request.process.pid = 2**22 - 1
        assert (await reason_of(caller.Attach(request)))[1] == "NO_SUCH_PROCESS"


async def test_nobody_gets_the_answer_to_somebody_elses_request(tmp_path, sessions):
    async with serving(tmp_path, sessions) as agent:
        async with calling_as(agent, "trace") as one, calling_as(agent, "admin") as other:
            request = attach()
            await one.Attach(request)
            await one.Attach(request)
            assert (await reason_of(other.Attach(request)))[1] == "REQUEST_ID_REUSED"


async def test_a_line_says_who_what_where_and_result(tmp_path, sessions):
    async with serving(tmp_path, sessions) as agent, calling_as(agent, "trace") as caller:
        await caller.Attach(attach())
        many = patch()
        many.patterns.extend(f"f{number}" for number in range(100))
        many.patterns.append("x" * 1000)
        metadata = (*agent.token("trace"), ("uftrace-owner", "ann@host"))
        await caller.Patch(many, metadata=metadata)
        sessions.failure = RuntimeError("boom")
        await reason_of(caller.Patch(patch()))
        port = agent.addresses[0].port
    made, patched, failed = agent.audited()
    assert (made["who"], made["role"], made["pid"]) == ("token:trace", "trace", os.getpid())
    assert (patched["owner"], patched["target"]) == ("ann@host", "session s1")
    assert patched["executable"] == os.readlink("/proc/self/exe")
    assert len(patched["asked"]["patterns"]) == 20
    assert patched["result"] == "OK"
    assert patched["peer"].startswith("ipv4:127.0.0.1:")
    assert str(port) not in patched["peer"]
    assert failed["result"] == "RuntimeError"
    # No token is in it.
    text = (agent.state.path / "audit.jsonl").read_text()
    assert not any(agent.state.token_of(role) in text for role in ("view", "trace", "admin"))


async def test_a_broken_policy_keeps_the_agent_from_starting(tmp_path, sessions):
    with pytest.raises(PolicyError, match="effect"):
        async with serving(tmp_path, sessions, "[[rule]]\nname = 'a'"):
            pass
