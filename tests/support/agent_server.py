"""A real agent server in this process, and real channels to it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status

from tests.support.sessions import ScriptedSessions
from uftrace.agent.v1 import agent_pb2_grpc
from uftrace_agent.config import AgentConfig, ListenAddress
from uftrace_agent.rpc.server import AgentServer
from uftrace_agent.state_directory import StateDirectory

LOOPBACK = ListenAddress("127.0.0.1", 0)
TIMEOUT = 20.0


class RunningAgent:
    """A server that listens, and what a client needs to call it."""

    def __init__(
        self, server: AgentServer, state: StateDirectory, addresses: list[ListenAddress]
    ) -> None:
        self.server = server
        self.state = state
        self.addresses = addresses

    def channel(self, address: ListenAddress | None = None, ca: bytes | None = None) -> aio.Channel:
        """Open a channel; without TLS to unix sockets."""
        address = address or self.addresses[0]
        # One channel to each server: gRPC shares connections by address else.
        options = [("grpc.use_local_subchannel_pool", 1)]
        if address.is_unix:
            return aio.insecure_channel(address.grpc_target, options)
        credentials = grpc.ssl_channel_credentials(ca or self.state.tls().ca)
        return aio.secure_channel(address.grpc_target, credentials, options)

    @property
    def bearer(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.state.token}"),)


@contextlib.asynccontextmanager
async def running_agent(
    state_dir: Path, sessions: ScriptedSessions, *listen: ListenAddress, insecure: bool = False
) -> AsyncIterator[RunningAgent]:
    state = StateDirectory(state_dir)
    config = AgentConfig(listen or (LOOPBACK,), state.path, insecure)
    server = AgentServer(config, state, sessions)
    addresses = await server.start()
    try:
        yield RunningAgent(server, state, addresses)
    finally:
        sessions.may_finish.set()
        await server.stop()


class Caller:
    """Calls RPCs by name, with token and deadline unless told otherwise."""

    def __init__(self, agent: RunningAgent, channel: aio.Channel) -> None:
        self._stub: Any = agent_pb2_grpc.AgentServiceStub(channel)
        self._bearer = agent.bearer

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)

        def call(request: Any, **options: Any) -> Any:
            return method(request, **{"timeout": TIMEOUT, "metadata": self._bearer} | options)

        return call


@contextlib.asynccontextmanager
async def calling(
    agent: RunningAgent, address: ListenAddress | None = None
) -> AsyncIterator[Caller]:
    async with agent.channel(address) as channel:
        yield Caller(agent, channel)


def new_id() -> str:
    return str(uuid.uuid4())


async def reason_of(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Await a call that must fail; return its code, ErrorInfo reason and metadata."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except aio.AioRpcError as error:
        return error.code(), *error_info(error)
    raise AssertionError("the call succeeded")


def error_info(error: aio.AioRpcError) -> tuple[str, dict[str, str]]:
    status = rpc_status.from_call(error)
    assert status is not None, f"no status details: {error.code()} {error.details()}"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "uftrace"
    return info.reason, dict(info.metadata)
