"""One gRPC channel to one agent: options, credentials, retries."""

from __future__ import annotations

import json
from collections.abc import Sequence

import grpc

from uftrace_remote.credentials import Credentials
from uftrace_remote.endpoint import Endpoint

Metadata = tuple[tuple[str, str], ...]

# A Patch answer names every function of the request, which may be all of them.
_MAX_MESSAGE_BYTES = 64 << 20

_SERVICE = "uftrace.agent.v1.AgentService"
_READ_ONLY = ("GetAgentInfo", "ListProcesses", "ListSessions", "ListTracepoints")

# Only calls that change nothing are repeated by themselves.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE, "method": method} for method in _READ_ONLY],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # The agent allows a ping every 5 s. Without ping_timeout_ms a frozen agent
    # is noticed only after 60 s, whatever keepalive_timeout_ms says.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Reconnecting to an agent that restarts: do not wait 20 s for the second try.
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Despite its name, the time that a try has: with less than some round trips
    # no handshake with a host far away would ever be through.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def open_channel(endpoint: Endpoint, credentials: Credentials) -> tuple[grpc.aio.Channel, Metadata]:
    """Opens a channel; nothing is sent yet.

    Returns:
        The channel, and the metadata that every call on it has to carry.
    """
    # As ordinary metadata also where gRPC has credentials of calls for it: for these it
    # starts a thread for every call.
    bearer = (("authorization", f"Bearer {credentials.token}"),) if credentials.token else ()
    if credentials.ca_certificate is None:
        return grpc.aio.insecure_channel(endpoint.grpc_target, options=_OPTIONS), bearer
    secure = grpc.ssl_channel_credentials(
        credentials.ca_certificate, credentials.client_key, credentials.client_certificate
    )
    options = _OPTIONS
    if credentials.server_name:
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", credentials.server_name))
    return grpc.aio.secure_channel(endpoint.grpc_target, secure, options=options), bearer
