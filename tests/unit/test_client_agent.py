"""The library against a real server, on a scripted session layer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.support.agent_server import LOOPBACK, RunningAgent, running_agent
from tests.support.sessions import WORK, ScriptedSessions
from uftrace_agent import errors as agent_errors
from uftrace_agent.config import ListenAddress
from uftrace_agent.engine.model import Form, Refusal, Writer
from uftrace_agent.engine.planner import PlanOptions
from uftrace_agent.session import types as agent_types
from uftrace_remote import errors
from uftrace_remote.agent import AgentClient
from uftrace_remote.credentials import CredentialOptions, Credentials
from uftrace_remote.endpoint import Endpoint
from uftrace_remote.enums import (
    Architecture,
    EndReason,
    LossStage,
    PatchForm,
    PatchStatus,
    PatchWriter,
    RefusalReason,
)
from uftrace_remote.sync import SyncAgentClient
from uftrace_remote.values import Loss, PatchOptions, ProcessRef, RecordingOptions

OWN = ProcessRef(os.getpid())

BATCHES = [
    agent_types.EventBatch(
        sequence=1,
        functions=(agent_types.TracedFunction(7, WORK, has_exit=True),),
        anchors=(agent_types.ClockAnchor(10, 20, 30, 1e9),),
        modules=(agent_types.MappedModule("/app", "ab", 4096, 8192, 0),),
    ),
    agent_types.EventBatch(
        sequence=2,
        threads=((5, "main", bytes(32)), (6, "", bytes(16))),
        watermark_ticks=99,
        losses=(agent_types.Loss(1, 4, 5),),
        records_total=3,
        record_count=3,
    ),
]


@pytest.fixture
def sessions() -> ScriptedSessions:
    return ScriptedSessions(batches=BATCHES)


@pytest.fixture
async def running(tmp_path, sessions) -> AsyncIterator[RunningAgent]:
    async with running_agent(tmp_path / "state", sessions) as agent:
        yield agent


def connect(running: RunningAgent) -> AgentClient:
    address = running.addresses[0]
    return AgentClient.connect(
        Endpoint(address.host, address.port), CredentialOptions(running.state.path), timeout=20
    )


@pytest.fixture
async def agent(running) -> AsyncIterator[AgentClient]:
    async with connect(running) as client:
        yield client


async def test_info(agent):
    info = await agent.info()
    assert info.pid == os.getpid()
    assert info.architecture in (Architecture.AMD64, Architecture.ARM64)
    assert info.now is not None
    assert info.now.monotonic_ns > 0
    assert PatchWriter.STOP in info.writers


async def test_processes(agent):
    process = await agent.resolve_process(str(os.getpid()))
    assert process.pid == os.getpid()
    assert process.reference.start_time_ticks > 0
    assert process.reference.boot_id
    with pytest.raises(errors.NoSuchProcessError):
        await agent.resolve_process("no-such-process-anywhere")


async def test_functions(agent, sessions):
    sessions.plans = [
        agent_types.FunctionPlan(WORK, Form.PUN, Writer.BYTE, enabled=True),
        agent_types.FunctionPlan(WORK, refusal=Refusal.TOO_SHORT, detail="1 byte"),
    ]
    first, second = [each async for each in agent.functions(OWN, ["w*"], explain=True, limit=9)]
    assert first.function.qualified_name == "app!work"
    assert first.function.aliases == ("toil",)
    assert (first.form, first.writer, first.enabled) == (PatchForm.PUN, PatchWriter.BYTE, True)
    assert (second.refusal, second.detail) == (RefusalReason.TOO_SHORT, "1 byte")
    assert first.match_count == 2
    assert sessions.calls[-1][2:] == (("w*",), PlanOptions(), 9)
    assert first.function.file_address == 0x1000
    # WHEN it is asked how a certain patch would be
    asked = PatchOptions(PatchWriter.STOP, entry_only=True, allow_multi=True)
    assert [each async for each in agent.functions(OWN, explain=True, options=asked)]
    assert sessions.calls[-1][3] == PlanOptions(Writer.STOP, True, True)
    assert [each async for each in agent.functions(OWN)]
    assert sessions.calls[-1][3] is None


async def test_a_session_from_attach_to_detach(agent, sessions):
    attached = await agent.attach(OWN, "ann", RecordingOptions(1 << 20, 8))
    session_id = attached.session.session_id
    assert attached.created
    assert attached.longest_pause_ns == 1000
    assert sessions.calls[-1][2:] == ("ann", agent_types.RecordingOptions(1 << 20, 8))

    result = await agent.patch(
        session_id, ["work"], PatchOptions(PatchWriter.STOP, entry_only=True, all_or_nothing=True)
    )
    order = sessions.calls[-1][2]
    assert isinstance(order, agent_types.PatchOrder)
    assert (order.writer, order.entry_only, order.all_or_nothing) == (Writer.STOP, True, True)
    assert [each.status for each in result.results] == [PatchStatus.ENABLED, PatchStatus.REFUSED]
    assert result.results[1].refusal is RefusalReason.TOO_SHORT
    assert (result.longest_pause_ns, result.longest_pause_tid) == (5, 7)

    (session,) = await agent.sessions()
    assert session.process.pid == os.getpid()
    (tracepoint,) = await agent.tracepoints(session_id)
    assert (tracepoint.owner, tracepoint.enabled_unix_ns) == ("ann", 77)
    unpatched = await agent.unpatch(session_id, ["work"])
    assert unpatched.results[0].status is PatchStatus.DISABLED
    assert (await agent.detach(session_id)).restored_sites == 3
    assert await agent.sessions() == ()


async def test_a_stream(agent, sessions):
    session_id = (await agent.attach(OWN)).session.session_id
    stream = agent.stream(session_id)
    first, second = await anext(stream), await anext(stream)
    assert first.functions[0].name == "work"
    assert first.functions[0].linkage_name == "_Z4workv"
    assert first.anchors[0].monotonic_ns == 20
    assert first.modules[0].path == "/app"
    assert [(each.tid, each.name) for each in second.threads] == [(5, "main"), (6, "")]
    assert second.record_count == 3
    assert second.losses == (Loss(LossStage.RING, 4, 5),)
    assert (second.watermark_ticks, second.records_total) == (99, 3)
    sessions.ended.set()
    last = await anext(stream)
    assert (last.end, last.end_detail) == (EndReason.AGENT_SHUTDOWN, "agent ends")
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_stream_that_is_left_is_closed_at_the_agent(agent, sessions):
    session_id = (await agent.attach(OWN)).session.session_id
    stream = agent.stream(session_id)
    await anext(stream)
    assert sessions.open_streams == 1
    await stream.aclose()
    async with asyncio.timeout(10):
        while sessions.open_streams:
            await asyncio.sleep(0.01)


class Wire:
    """A TCP connection that can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.endpoint = Endpoint("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        while self._writers:
            self._writers.pop().transport.abort()

    def close(self) -> None:
        self._server.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, far_writer]
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.transport.abort()


@pytest.fixture
async def wire(running) -> AsyncIterator[Wire]:
    async with Wire(running.addresses[0].port) as made:
        yield made


@pytest.fixture
async def far_agent(running, wire) -> AsyncIterator[AgentClient]:
    options = CredentialOptions(running.state.path)
    async with AgentClient.connect(wire.endpoint, options, timeout=20) as client:
        yield client


async def test_a_broken_stream_goes_on_where_it_was(far_agent, wire, sessions):
    session_id = (await far_agent.attach(OWN)).session.session_id
    stream = far_agent.stream(session_id, reconnect_seconds=20)
    assert [(await anext(stream)).sequence for _ in BATCHES] == [1, 2]
    third = replace(BATCHES[1], sequence=3, losses=(agent_types.Loss(1, 2, 5),))
    sessions.batches = [*BATCHES, third]
    wire.cut()
    batch = await anext(stream)
    # Nothing twice, and losses are counted on from those of the stream before.
    assert batch.sequence == 3
    assert batch.losses == (Loss(LossStage.RING, 6, 5),)
    await stream.aclose()


async def test_a_stream_that_cannot_be_got_back_breaks(far_agent, wire):
    session_id = (await far_agent.attach(OWN)).session.session_id
    stream = far_agent.stream(session_id, reconnect_seconds=0.3)
    assert [(await anext(stream)).sequence for _ in BATCHES] == [1, 2]
    wire.close()
    wire.cut()
    with pytest.raises(errors.StreamBrokenError, match="went away") as caught:
        await anext(stream)
    assert caught.value.exit_code == 11


async def test_a_session_that_is_gone_after_a_break(far_agent, wire, sessions):
    session_id = (await far_agent.attach(OWN)).session.session_id
    stream = far_agent.stream(session_id, reconnect_seconds=20)
    assert [(await anext(stream)).sequence for _ in BATCHES] == [1, 2]
    sessions.held.clear()
    wire.cut()
    with pytest.raises(errors.StreamBrokenError, match="no longer knows") as caught:
        await anext(stream)
    assert caught.value.reason == "SESSION_LOST"


async def test_batches_that_the_agent_no_longer_has(far_agent, wire, sessions):
    session_id = (await far_agent.attach(OWN)).session.session_id
    stream = far_agent.stream(session_id, reconnect_seconds=20)
    assert [(await anext(stream)).sequence for _ in BATCHES] == [1, 2]
    whole = sessions.stream

    async def forgetful(
        session_id: str, after_sequence: int, include_buffered: bool
    ) -> AsyncIterator[agent_types.EventBatch]:
        if after_sequence:
            raise agent_errors.InvalidRequestError("too late", reason="SEQUENCE_EXPIRED")
        assert include_buffered
        async for batch in whole(session_id, after_sequence, include_buffered):
            yield batch

    sessions.stream = forgetful
    sessions.batches = [replace(BATCHES[1], sequence=70, losses=())]
    wire.cut()
    batch = await anext(stream)
    # What was lost before the break is not forgotten.
    assert (batch.sequence, batch.losses) == (70, (Loss(LossStage.RING, 4, 5),))
    await stream.aclose()


FAILURES = [
    (agent_errors.InvalidRequestError, errors.UsageError, 2),
    (agent_errors.NotFoundError, errors.NotFoundError, 5),
    (agent_errors.NoSuchProcessError, errors.NoSuchProcessError, 5),
    (agent_errors.NoSuchSessionError, errors.NoSuchSessionError, 5),
    (agent_errors.ConflictError, errors.ConflictError, 6),
    (agent_errors.AlreadyHeldError, errors.ConflictError, 6),
    (agent_errors.ForeignTracerError, errors.ConflictError, 6),
    (agent_errors.ForbiddenError, errors.PermissionDeniedError, 4),
    (agent_errors.UnsupportedTargetError, errors.UnsupportedTargetError, 7),
    (agent_errors.TargetGoneError, errors.TargetGoneError, 8),
    (agent_errors.BusyTargetError, errors.BusyTargetError, 9),
    (agent_errors.ExhaustedError, errors.ResourceExhaustedError, 10),
    (agent_errors.EngineFaultError, errors.AgentInternalError, 70),
]


@pytest.mark.parametrize(("theirs", "ours", "exit_code"), FAILURES)
async def test_each_error_of_the_agent_has_its_class(agent, sessions, theirs, ours, exit_code):
    sessions.failure = theirs("what happened", hint="what to do")
    with pytest.raises(errors.UftraceError) as caught:
        await agent.attach(OWN)
    assert type(caught.value) is ours
    assert caught.value.message == "what happened"
    assert caught.value.hint == "what to do"
    assert caught.value.reason == theirs.default_reason
    assert caught.value.exit_code == exit_code


async def test_reasons_that_are_no_defaults_keep_their_class(agent, sessions):
    sessions.failure = agent_errors.UnsupportedTargetError("32-bit", reason="PROCESS_32BIT")
    with pytest.raises(errors.UnsupportedTargetError) as caught:
        await agent.attach(OWN)
    assert caught.value.reason == "PROCESS_32BIT"


async def test_near_names_come_along(agent, sessions):
    sessions.failure = agent_errors.NoSuchFunctionError(
        "no function matches wrok", metadata={"suggestions": "work,word"}
    )
    with pytest.raises(errors.NoSuchFunctionError) as caught:
        await agent.attach(OWN)
    assert caught.value.suggestions == ("work", "word")
    assert caught.value.hint == "did you mean work, word?"


async def test_a_wrong_token(running):
    address = running.addresses[0]
    wrong = Credentials(running.state.tls().ca, "wrong")
    async with AgentClient(Endpoint(address.host, address.port), wrong) as client:
        with pytest.raises(errors.AuthenticationError) as caught:
            await client.info()
    assert caught.value.exit_code == 4


async def test_another_agents_certificate(running, tmp_path):
    async with running_agent(tmp_path / "other", ScriptedSessions()) as other:
        address = running.addresses[0]
        strange = Credentials(other.state.tls().ca, running.state.token)
        async with AgentClient(Endpoint(address.host, address.port), strange) as client:
            with pytest.raises(errors.ConnectionFailedError) as caught:
                await client.info()
    assert caught.value.reason == "TLS_FAILED"


async def test_nobody_listens(unused_tcp_port):
    async with AgentClient(Endpoint("127.0.0.1", unused_tcp_port), Credentials()) as client:
        with pytest.raises(errors.ConnectionFailedError, match="no agent listens") as caught:
            await client.info()
    assert caught.value.reason == "CONNECTION_REFUSED"
    assert caught.value.exit_code == 3


async def test_an_unknown_host():
    async with AgentClient(Endpoint("host.invalid"), Credentials(), timeout=5) as client:
        with pytest.raises(errors.ConnectionFailedError) as caught:
            await client.info()
    assert caught.value.reason in ("UNKNOWN_HOST", "DEADLINE_EXCEEDED")


async def test_an_agent_that_does_not_answer(agent, running, sessions):
    sessions.may_finish.clear()
    address = running.addresses[0]
    options = CredentialOptions(running.state.path)
    endpoint = Endpoint(address.host, address.port)
    async with AgentClient.connect(endpoint, options, timeout=0.1) as client:
        with pytest.raises(errors.ConnectionFailedError, match="did not answer in time"):
            await client.attach(OWN)
    sessions.may_finish.set()


async def test_a_unix_socket(tmp_path, sessions):
    path = tmp_path / "agent.sock"
    async with running_agent(tmp_path / "state", sessions, ListenAddress(path=path)) as running:
        options = CredentialOptions(running.state.path)
        async with AgentClient.connect(f"unix:{path}", options) as client:
            assert (await client.info()).pid == os.getpid()


async def test_plaintext_by_name(tmp_path, sessions):
    async with running_agent(tmp_path / "state", sessions, LOOPBACK, insecure=True) as running:
        address = running.addresses[0]
        options = CredentialOptions(tmp_path / "nothing", insecure=True)
        async with AgentClient.connect(Endpoint(address.host, address.port), options) as client:
            assert (await client.info()).pid == os.getpid()


async def test_the_synchronous_face(running, sessions, no_leaks):
    sessions.plans = [agent_types.FunctionPlan(WORK)]
    address = running.addresses[0]
    endpoint = Endpoint(address.host, address.port)

    def use() -> None:
        options = CredentialOptions(running.state.path)
        with SyncAgentClient.connect(endpoint, options) as agent:
            assert agent.endpoint == endpoint
            assert agent.info().pid == os.getpid()
            process = agent.resolve_process(str(os.getpid()))
            everyone = agent.processes(include_unattachable=True)
            assert process.reference in [each.reference for each in everyone]
            assert [each.function.name for each in agent.functions(OWN)] == ["work"]
            session_id = agent.attach(OWN).session.session_id
            assert len(agent.patch(session_id, ["work"]).results) == 2
            assert len(agent.tracepoints(session_id)) == 1
            for batch in agent.stream(session_id):
                if batch.sequence == 2:
                    break
            assert len(agent.unpatch(session_id).results) == 1
            assert len(agent.sessions()) == 1
            assert agent.detach(session_id).restored_sites == 3
            with pytest.raises(errors.NoSuchSessionError):
                agent.detach(session_id)

    await asyncio.to_thread(use)
    # A cancelled call lies in a reference cycle, and holds its connection.
    gc.collect()


def test_the_synchronous_face_says_what_is_wrong_at_once(no_leaks):
    with pytest.raises(errors.UsageError):
        SyncAgentClient.connect("a:b:c")
