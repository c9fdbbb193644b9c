"""The server: ports, TLS, health, reflection, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import cast

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from uftrace.agent.v1 import agent_pb2, agent_pb2_grpc
from uftrace_agent.certificates import fingerprint
from uftrace_agent.config import AgentConfig, ListenAddress
from uftrace_agent.rpc.access import Access
from uftrace_agent.rpc.audit_trail import AuditTrail
from uftrace_agent.rpc.auth import Authenticator, no_authentication
from uftrace_agent.rpc.changes import Changes
from uftrace_agent.rpc.idempotency import RequestLedger
from uftrace_agent.rpc.servicer import AgentServicer
from uftrace_agent.rpc.session_layer import SessionLayer
from uftrace_agent.rpc.status import error_interceptor
from uftrace_agent.state_directory import StateDirectory, StateDirectoryError
from uftrace_agent.trust.audit import AuditFile
from uftrace_agent.trust.guess_limiter import GuessLimiter
from uftrace_agent.trust.policy_file import PolicyFile
from uftrace_agent.trust.tls_directory import TlsDirectory
from uftrace_agent.trust.tokens import Tokens

SERVICE_NAME = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name

_MIB = 1 << 20
_OPTIONS = (
    # By default a second agent could bind the same port, and calls would go
    # to either of them.
    ("grpc.so_reuseport", 0),
    # Clients ping every 20 s to notice a dead agent; by default a server
    # hangs up on a client that pings more than once in 5 minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
    # And the agent notices a client that vanished without a word.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # A Patch of 200,000 functions is answered in one message.
    ("grpc.max_send_message_length", 64 * _MIB),
)
# How long streams get to send their last batch.
_GRACE_SECONDS = 30.0
_RENEWAL_CHECK_SECONDS = 3600.0

_log = structlog.stdlib.get_logger(__name__)


class ListenError(Exception):
    """Cannot listen on an address; the message says why."""


class AgentServer:
    """The agent's gRPC server.

    Args:
        config: Addresses, and whether to do without TLS and token.
        state: Keys and token.
        sessions: The session layer.

    Raises:
        StateDirectoryError: A fleet's certificates cannot be used.
        PolicyError: The policy cannot be read.
    """

    def __init__(self, config: AgentConfig, state: StateDirectory, sessions: SessionLayer) -> None:
        self._config = config
        self._state = state
        self._sessions = sessions
        self._ledger: RequestLedger[Message] = RequestLedger(weigh=lambda answer: answer.ByteSize())
        self._certified = TlsDirectory(config.tls_dir) if config.tls_dir else state
        self._audit = AuditFile(config.audit)
        trail = AuditTrail(self._audit)
        access = Access(
            no_authentication if config.insecure else Authenticator(Tokens(state), GuessLimiter()),
            PolicyFile(config.policy).current if config.policy else None,
            sessions,
            trail,
        )
        interceptors = [error_interceptor(), access.interceptor()]
        self._server = aio.server(interceptors=interceptors, options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        agent_pb2_grpc.add_AgentServiceServicer_to_server(
            AgentServicer(sessions, Changes(self._ledger, trail)), self._server
        )

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the authority that the ports' certificate is of."""
        return fingerprint(self._certified.tls().ca)

    async def start(self) -> list[ListenAddress]:
        """Bind every address and serve.

        Returns:
            The addresses, with the ports that were bound.

        Raises:
            ListenError: An address is taken, unknown or not allowed.
        """
        try:
            bound = [self._bind(address) for address in self._config.listen]
        except ListenError:
            await self._server.stop(None)
            raise
        await self._server.start()
        await self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def stop(self) -> None:
        """Take no more calls, let changes finish, detach every session, and end.

        Streams end with their last batch. Whatever happens, sessions are
        detached.
        """
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(_GRACE_SECONDS))
        try:
            await self._ledger.drain()
        finally:
            await self._sessions.shutdown()
            await stopping
            await asyncio.to_thread(self._audit.close)
            for address in self._config.listen:
                if address.path is not None:
                    address.path.unlink(missing_ok=True)

    def _bind(self, address: ListenAddress) -> ListenAddress:
        if address.path is not None:
            _refuse_live_socket(address)
        try:
            with _private_files():
                if self._config.insecure or address.is_unix:
                    port = self._server.add_insecure_port(address.grpc_target)
                else:
                    port = self._server.add_secure_port(address.grpc_target, self._credentials())
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {address}: {_why_not(address)}") from error
        return address.with_port(port)

    # gRPC asks before each handshake: a certificate that was renewed, by us or
    # by the administrator, serves from the next connection on.
    def _credentials(self) -> grpc.ServerCredentials:
        current = self._certified.certificate_version()
        next_check = time.monotonic() + _RENEWAL_CHECK_SECONDS

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal current, next_check
            try:
                if time.monotonic() >= next_check:
                    next_check = time.monotonic() + _RENEWAL_CHECK_SECONDS
                    if self._certified.renew():
                        _log.info("server certificate renewed")
                version = self._certified.certificate_version()
                if version == current:
                    return None
                fresh = self._certificates()
                current = version
            except (OSError, ValueError, StateDirectoryError) as error:
                # Half-replaced files: the old ones still serve.
                _log.warning("server certificate not reloaded", error=str(error))
                return None
            return fresh

        # None means "no change"; the type stubs do not know that.
        fetcher = cast(Callable[[], grpc.ServerCertificateConfiguration], fetch)
        return grpc.dynamic_ssl_server_credentials(
            self._certificates(),
            fetcher,
            require_client_authentication=self._certified.clients_need_certificates,
        )

    def _certificates(self) -> grpc.ServerCertificateConfiguration:
        tls = self._certified.tls()
        # The authority goes along: `login` shows its fingerprint.
        chain = tls.certificate if tls.ca in tls.certificate else tls.certificate + tls.ca
        return grpc.ssl_server_certificate_configuration([(tls.key, chain)], tls.ca)


# A unix socket carries no TLS, so only the agent's own user may open it.
@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


# gRPC removes a socket file that is in the way, be its owner alive or not.
def _refuse_live_socket(address: ListenAddress) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(address.path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error
    raise ListenError(f"cannot listen on {address}: another agent listens there")


# gRPC says only that it did not work; the kernel says why.
def _why_not(address: ListenAddress) -> str:
    try:
        if address.path is not None:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(str(address.path))
            address.path.unlink()
            return "gRPC could not bind it"
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host or "::", address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "the address is in use; is another agent running? --listen names another one"
        return error.strerror or str(error)
    return "gRPC could not bind it"
