"""Ports, TLS, token, health, reflection, and how the server ends."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.agent_server import LOOPBACK, calling, new_id, reason_of, running_agent
from tests.support.sessions import ScriptedSessions
from tests.support.waiting import wait_until_async
from uftrace.agent.v1 import agent_pb2, event_pb2, process_pb2, session_pb2, tracepoint_pb2
from uftrace_agent.certificates import make_server_certificate, server_names
from uftrace_agent.config import AgentConfig, ListenAddress
from uftrace_agent.rpc.server import SERVICE_NAME, AgentServer, ListenError
from uftrace_agent.state_directory import StateDirectory

INFO = agent_pb2.GetAgentInfoRequest()


@pytest.fixture
def sessions() -> ScriptedSessions:
    return ScriptedSessions()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "MISSING_TOKEN"),
        ((("authorization", "Bearer wrong"),), "INVALID_TOKEN"),
        ((("authorization", "Basic abc"),), "INVALID_TOKEN"),
        ((("authorization", ""),), "MISSING_TOKEN"),
    ],
)
async def test_calls_without_the_token_are_refused(tmp_path, sessions, metadata, reason):
    async with running_agent(tmp_path / "s", sessions) as agent, calling(agent) as caller:
        unary = await reason_of(caller.GetAgentInfo(INFO, metadata=metadata))
        assert unary[:2] == (grpc.StatusCode.UNAUTHENTICATED, reason)
        streaming = await reason_of(
            caller.StreamEvents(event_pb2.StreamEventsRequest(session_id="s"), metadata=metadata)
        )
        assert streaming[:2] == (grpc.StatusCode.UNAUTHENTICATED, reason)


async def test_health_needs_no_token(tmp_path, sessions):
    async with running_agent(tmp_path / "s", sessions) as agent, agent.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE_NAME):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_needs_the_token_and_lists_the_service(tmp_path, sessions):
    async with running_agent(tmp_path / "s", sessions) as agent, agent.channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        with pytest.raises(aio.AioRpcError) as caught:
            async for _ in stub.ServerReflectionInfo(iter(requests), timeout=10):
                pass
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        call = stub.ServerReflectionInfo(iter(requests), timeout=10, metadata=agent.bearer)
        names = [s.name async for answer in call for s in answer.list_services_response.service]
        assert SERVICE_NAME in names


async def test_tls_is_of_the_agents_own_authority(tmp_path, sessions):
    stranger = StateDirectory(tmp_path / "stranger").tls().ca
    async with running_agent(tmp_path / "s", sessions) as agent:
        async with agent.channel(ca=stranger) as channel:
            call = channel.unary_unary(f"/{SERVICE_NAME}/GetAgentInfo")
            with pytest.raises(aio.AioRpcError) as caught:
                await call(b"", timeout=5)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        async with calling(agent) as caller:
            assert (await caller.GetAgentInfo(INFO)).hostname


async def test_plaintext_does_not_reach_a_tls_port(tmp_path, sessions):
    async with running_agent(tmp_path / "s", sessions) as agent:
        async with aio.insecure_channel(agent.addresses[0].grpc_target) as channel:
            call = channel.unary_unary(f"/{SERVICE_NAME}/GetAgentInfo")
            with pytest.raises(aio.AioRpcError) as caught:
                await call(b"", timeout=5)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_insecure_wants_nothing(tmp_path, sessions):
    async with running_agent(tmp_path / "s", sessions, insecure=True) as agent:
        async with aio.insecure_channel(agent.addresses[0].grpc_target) as channel:
            call = channel.unary_unary(f"/{SERVICE_NAME}/GetAgentInfo")
            answer = agent_pb2.GetAgentInfoResponse.FromString(await call(b"", timeout=10))
            assert answer.pid == os.getpid()


async def test_a_renewed_certificate_serves_from_the_next_connection_on(tmp_path, sessions):
    async with running_agent(tmp_path / "s", sessions) as agent:
        before = await peer_certificate(agent.addresses[0].port)
        # WHEN the files are replaced, as by a renewal
        folder = agent.state.path
        key = (folder / "server.key").read_bytes()
        ca, ca_key = (folder / "ca.pem").read_bytes(), (folder / "ca.key").read_bytes()
        fresh = make_server_certificate(key, ca, ca_key, server_names(), now())
        (folder / "server.pem").write_bytes(fresh)
        # THEN new connections see the new one, and it is trusted as before
        assert await peer_certificate(agent.addresses[0].port) != before
        async with calling(agent) as caller:
            assert (await caller.GetAgentInfo(INFO)).hostname


async def test_files_that_do_not_fit_leave_the_old_certificate(tmp_path, sessions):
    async with running_agent(tmp_path / "s", sessions) as agent:
        before = await peer_certificate(agent.addresses[0].port)
        (agent.state.path / "server.pem").write_bytes(b"rubbish")
        assert await peer_certificate(agent.addresses[0].port) == before


async def test_unix_socket_wants_the_token_and_is_private(tmp_path, sessions):
    path = tmp_path / "agent.sock"
    address = ListenAddress(path=path)
    async with running_agent(tmp_path / "s", sessions, address) as agent:
        assert [str(a) for a in agent.addresses] == [f"unix:{path}"]
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        async with calling(agent, address) as caller:
            assert (await caller.GetAgentInfo(INFO)).pid == os.getpid()
            code, reason, _ = await reason_of(caller.GetAgentInfo(INFO, metadata=()))
            assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "MISSING_TOKEN")
    assert not path.exists()


async def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path, sessions):
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with running_agent(tmp_path / "s", sessions, ListenAddress(path=path)) as agent:
        async with calling(agent, agent.addresses[0]) as caller:
            assert (await caller.GetAgentInfo(INFO)).hostname


async def test_several_addresses(tmp_path, sessions):
    listen = (LOOPBACK, LOOPBACK, ListenAddress(path=tmp_path / "agent.sock"))
    async with running_agent(tmp_path / "s", sessions, *listen) as agent:
        assert len({str(address) for address in agent.addresses}) == 3
        for address in agent.addresses:
            async with calling(agent, address) as caller:
                assert (await caller.GetAgentInfo(INFO)).hostname


async def test_all_interfaces_take_ipv4(tmp_path, sessions):
    async with running_agent(tmp_path / "s", sessions, ListenAddress("", 0)) as agent:
        loopback = ListenAddress("127.0.0.1", agent.addresses[0].port)
        async with calling(agent, loopback) as caller:
            assert (await caller.GetAgentInfo(INFO)).hostname


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_an_address_in_use_is_an_error(tmp_path, sessions, kind):
    wanted = LOOPBACK if kind == "tcp" else ListenAddress(path=tmp_path / "agent.sock")
    async with running_agent(tmp_path / "s", sessions, wanted) as first:
        state = StateDirectory(tmp_path / "t")
        config = AgentConfig((first.addresses[0],), state.path)
        with pytest.raises(ListenError, match=r"in use|another agent"):
            await AgentServer(config, state, sessions).start()
        async with calling(first, first.addresses[0]) as caller:
            assert (await caller.GetAgentInfo(INFO)).hostname


async def test_an_address_of_another_host_is_an_error(tmp_path, sessions):
    state = StateDirectory(tmp_path / "s")
    config = AgentConfig((ListenAddress("192.0.2.1", 0),), state.path)
    with pytest.raises(ListenError, match="Cannot assign"):
        await AgentServer(config, state, sessions).start()


async def test_stop_lets_changes_finish_and_streams_end(tmp_path, sessions):
    # GIVEN a stream, and a patch that is under way
    async with running_agent(tmp_path / "s", sessions) as agent, calling(agent) as caller:
        own = process_pb2.ProcessRef(pid=os.getpid())
        await caller.Attach(session_pb2.AttachRequest(request_id=new_id(), process=own))
        stream = caller.StreamEvents(event_pb2.StreamEventsRequest(session_id="s1"), timeout=None)
        reading = asyncio.create_task(read_all(stream))
        await wait_until_async(lambda: sessions.open_streams == 1)
        sessions.may_finish.clear()
        patching = caller.Patch(
            tracepoint_pb2.PatchRequest(request_id=new_id(), session_id="s1", patterns=["f"])
        )
        await wait_until_async(lambda: sessions.calls[-1][0] == "patch")
        # WHEN the agent ends
        stopping = asyncio.create_task(agent.server.stop())
        await wait_until_async(lambda: not accepts(agent.addresses[0].port))
        assert sessions.calls[-1][0] == "patch"
        sessions.may_finish.set()
        await stopping
        # THEN the patch was answered, the stream told its end, then sessions were left
        assert (await patching).enabled_count == 1
        assert (await reading)[-1].end == event_pb2.END_REASON_AGENT_SHUTDOWN
        assert sessions.calls[-1] == ("shutdown",)


def now():
    import datetime

    return datetime.datetime.now(datetime.UTC)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def read_all(stream):
    return [batch async for batch in stream]


async def peer_certificate(port: int) -> bytes:
    import ssl

    return (await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))).encode()
