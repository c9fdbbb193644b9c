"""The service over a loopback socket, with TLS and token, on a scripted session layer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio

from tests.support.agent_server import Caller, calling, new_id, reason_of, running_agent
from tests.support.sessions import WORK, ScriptedSessions
from tests.support.waiting import wait_until_async
from uftrace.agent.v1 import agent_pb2, event_pb2, process_pb2, session_pb2, tracepoint_pb2
from uftrace_agent.engine.model import Writer
from uftrace_agent.errors import NoSuchFunctionError
from uftrace_agent.session.types import EventBatch, FunctionPlan, RecordingOptions

OWN = process_pb2.ProcessRef(pid=os.getpid())


@pytest.fixture
def sessions() -> ScriptedSessions:
    return ScriptedSessions()


@pytest.fixture
async def agent(tmp_path, sessions) -> AsyncIterator[Caller]:
    async with running_agent(tmp_path / "state", sessions) as running, calling(running) as caller:
        yield caller


async def attach(agent: Caller) -> str:
    answer = await agent.Attach(session_pb2.AttachRequest(request_id=new_id(), process=OWN))
    return answer.session.session_id


async def test_agent_info(agent):
    await attach(agent)
    info = await agent.GetAgentInfo(agent_pb2.GetAgentInfoRequest())
    assert info.pid == os.getpid()
    assert info.session_count == 1
    assert info.hostname
    assert info.now.realtime_nanos > info.started_unix_nanos > 0
    assert info.now.ticks > 0
    assert info.now.ticks_per_second > 1e6


async def test_processes_are_listed_with_their_session(agent):
    session_id = await attach(agent)
    answer = await agent.ListProcesses(process_pb2.ListProcessesRequest())
    own = next(p for p in answer.processes if p.process.pid == os.getpid())
    assert own.session_id == session_id
    assert not own.attachable
    assert own.refusal_reason == "AGENT_ITSELF"


async def test_attach_names_the_process_in_full(agent, sessions):
    answer = await agent.Attach(
        session_pb2.AttachRequest(request_id=new_id(), process=OWN, owner="ann")
    )
    assert answer.created
    assert answer.session.owner == "ann"
    assert answer.session.process.process.start_time_ticks > 0
    assert answer.session.process.command_name
    _, process, owner, options = sessions.calls[0]
    assert (process.pid, owner, options) == (os.getpid(), "ann", RecordingOptions())
    assert process.boot_id


async def test_a_pid_that_was_reused_is_refused(agent, sessions):
    other = process_pb2.ProcessRef(pid=os.getpid(), start_time_ticks=1)
    code, reason, metadata = await reason_of(
        agent.Attach(session_pb2.AttachRequest(request_id=new_id(), process=other))
    )
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "PID_REUSED")
    assert metadata["hint"]
    assert sessions.calls == []


async def test_patch_answers_by_function(agent, sessions):
    session_id = await attach(agent)
    answer = await agent.Patch(
        tracepoint_pb2.PatchRequest(
            request_id=new_id(), session_id=session_id, patterns=["work"], dry_run=True
        ),
        metadata=(*agent._bearer, ("uftrace-owner", "ann@host")),
    )
    assert (answer.enabled_count, answer.refused_count) == (1, 1)
    assert answer.results[1].detail == "1 byte"
    assert (answer.longest_pause_nanos, answer.longest_pause_tid) == (5, 7)
    order = sessions.calls[-1][2]
    assert (order.patterns, order.owner, order.dry_run) == (("work",), "ann@host", True)


async def test_unpatch_without_patterns_means_all(agent, sessions):
    session_id = await attach(agent)
    answer = await agent.Unpatch(
        tracepoint_pb2.UnpatchRequest(request_id=new_id(), session_id=session_id)
    )
    assert answer.disabled_count == 1
    assert sessions.calls[-1] == ("unpatch", session_id, (), Writer.AUTO)


async def test_detach_ends_the_session(agent):
    session_id = await attach(agent)
    answer = await agent.Detach(
        session_pb2.DetachRequest(request_id=new_id(), session_id=session_id)
    )
    assert (answer.restored_sites, answer.restored_frames) == (3, 1)
    listed = await agent.ListSessions(session_pb2.ListSessionsRequest())
    assert len(listed.sessions) == 0


async def test_tracepoints_of_a_session(agent):
    session_id = await attach(agent)
    answer = await agent.ListTracepoints(
        tracepoint_pb2.ListTracepointsRequest(session_id=session_id)
    )
    (tracepoint,) = answer.tracepoints
    assert (tracepoint.owner, tracepoint.enabled_unix_nanos) == ("ann", 77)
    assert tracepoint.patch.function.name == "work"


@pytest.mark.parametrize("count", [0, 1, 500, 501, 1733])
async def test_functions_come_in_parts(agent, sessions, count):
    sessions.plans = [FunctionPlan(WORK)] * count
    request = tracepoint_pb2.ListFunctionsRequest(process=OWN, patterns=["*"], explain=True)
    parts = [part async for part in agent.ListFunctions(request)]
    assert parts[0].match_count == count
    assert sum(len(part.functions) for part in parts) == count
    assert all(len(part.functions) <= 500 for part in parts)


async def test_the_same_request_changes_once(agent, sessions):
    request = session_pb2.AttachRequest(request_id=new_id(), process=OWN)
    first = await agent.Attach(request)
    second = await agent.Attach(request)
    assert first == second
    assert len(sessions.calls) == 1


async def test_concurrent_duplicates_get_the_first_answer(agent, sessions):
    sessions.may_finish.clear()
    request = session_pb2.AttachRequest(request_id=new_id(), process=OWN)
    calls = [agent.Attach(request) for _ in range(4)]
    await wait_until_async(lambda: sessions.calls)
    sessions.may_finish.set()
    answers = await asyncio.gather(*calls)
    assert {answer.session.session_id for answer in answers} == {"s1"}
    assert len(sessions.calls) == 1


async def test_a_change_outlives_its_deadline(agent, sessions):
    # GIVEN a change that takes longer than its caller waits
    sessions.may_finish.clear()
    request = session_pb2.AttachRequest(request_id=new_id(), process=OWN)
    with pytest.raises(aio.AioRpcError) as caught:
        await agent.Attach(request, timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # WHEN it is done
    sessions.may_finish.set()
    # THEN the same request gets its answer, and there was one change
    answer = await agent.Attach(request)
    assert answer.session.session_id == "s1"
    assert len(sessions.calls) == 1


async def test_an_id_of_another_request_is_refused(agent):
    request_id = new_id()
    await agent.Attach(session_pb2.AttachRequest(request_id=request_id, process=OWN))
    code, reason, _ = await reason_of(
        agent.Detach(session_pb2.DetachRequest(request_id=request_id, session_id="s1"))
    )
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


CHANGES = [
    ("Attach", session_pb2.AttachRequest(request_id="r", process=OWN)),
    ("Detach", session_pb2.DetachRequest(request_id="r", session_id="s")),
    ("Patch", tracepoint_pb2.PatchRequest(request_id="r", session_id="s", patterns=["f"])),
    ("Unpatch", tracepoint_pb2.UnpatchRequest(request_id="r", session_id="s")),
]


@pytest.mark.parametrize(("name", "request_message"), CHANGES)
async def test_changes_need_a_deadline(agent, sessions, name, request_message):
    code, reason, _ = await reason_of(getattr(agent, name)(request_message, timeout=None))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DEADLINE_REQUIRED")
    assert sessions.calls == []


@pytest.mark.parametrize(("name", "request_message"), CHANGES)
async def test_changes_need_a_request_id(agent, sessions, name, request_message):
    nameless = type(request_message)()
    nameless.CopyFrom(request_message)
    nameless.request_id = ""
    code, reason, _ = await reason_of(getattr(agent, name)(nameless))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_MISSING")
    assert sessions.calls == []


async def test_patch_needs_a_pattern(agent):
    code, reason, _ = await reason_of(
        agent.Patch(tracepoint_pb2.PatchRequest(request_id="r", session_id="s"))
    )
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NO_PATTERNS")


async def test_errors_of_the_session_layer_reach_the_caller(agent, sessions):
    session_id = await attach(agent)
    sessions.failure = NoSuchFunctionError(
        "no function matches mallox", metadata={"suggestions": "malloc"}
    )
    code, reason, metadata = await reason_of(
        agent.Patch(
            tracepoint_pb2.PatchRequest(
                request_id=new_id(), session_id=session_id, patterns=["mallox"]
            )
        )
    )
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NO_SUCH_FUNCTION")
    assert metadata == {"suggestions": "malloc"}


async def test_an_unexpected_error_is_named_by_an_id(agent, sessions, caplog):
    session_id = await attach(agent)
    sessions.failure = ZeroDivisionError("division by zero")
    code, reason, metadata = await reason_of(
        agent.Detach(session_pb2.DetachRequest(request_id=new_id(), session_id=session_id))
    )
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert metadata["error_id"] in metadata["hint"]


async def test_stream_carries_batches_and_resumes(agent, sessions):
    session_id = await attach(agent)
    sessions.batches = [EventBatch(n, threads=[(1, "t", bytes(16 * n))]) for n in (1, 2, 3)]
    sessions.ended.set()
    request = event_pb2.StreamEventsRequest(session_id=session_id, after_sequence=1)
    got = [batch async for batch in agent.StreamEvents(request, timeout=None)]
    assert [batch.sequence for batch in got] == [2, 3, 999]
    assert len(got[0].threads[0].records) == 32
    assert got[-1].end == event_pb2.END_REASON_AGENT_SHUTDOWN


async def test_a_reader_that_leaves_is_no_reader_any_more(agent, sessions):
    session_id = await attach(agent)
    sessions.batches = [EventBatch(1)]
    call = agent.StreamEvents(event_pb2.StreamEventsRequest(session_id=session_id))
    await call.read()
    assert sessions.open_streams == 1
    call.cancel()
    await wait_until_async(lambda: sessions.open_streams == 0)


async def test_stream_of_an_unknown_session(agent):
    code, reason, _ = await reason_of(
        agent.StreamEvents(event_pb2.StreamEventsRequest(session_id="nope"))
    )
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NO_SUCH_SESSION")


async def test_a_request_without_a_session_is_refused(agent):
    code, _, _ = await reason_of(agent.StreamEvents(event_pb2.StreamEventsRequest()))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
