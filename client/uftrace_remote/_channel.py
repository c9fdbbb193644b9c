"""One gRPC channel to one agent: options, credentials, retries."""

from __future__ import annotations

import json
from collections.abc import Sequence

import grpc

from uftrace_remote.credentials import CERTIFICATE_NAME, Credentials
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
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def open_channel(endpoint: Endpoint, credentials: Credentials) -> tuple[grpc.aio.Channel, Metadata]:
    """Opens a channel; nothing is sent yet.

    Returns:
        The channel, and the metadata that every call on it has to carry.
    """
    if credentials.ca_certificate is None:
        channel = grpc.aio.insecure_channel(endpoint.grpc_target, options=_OPTIONS)
        # gRPC refuses call credentials on plaintext channels, so that the
        # token has to travel as ordinary metadata there.
        bearer = (("authorization", f"Bearer {credentials.token}"),) if credentials.token else ()
        return channel, bearer
    secure = grpc.ssl_channel_credentials(root_certificates=credentials.ca_certificate)
    if credentials.token:
        secure = grpc.composite_channel_credentials(
            secure, grpc.access_token_call_credentials(credentials.token)
        )
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", CERTIFICATE_NAME))
    return grpc.aio.secure_channel(endpoint.grpc_target, secure, options=options), ()
