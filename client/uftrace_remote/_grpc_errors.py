"""The one place that reads gRPC errors.

An error of the agent is a google.rpc.Status with an ErrorInfo of domain
"uftrace": the status code chooses the class, the reason refines it where one
code stands for several. An error of the transport has no ErrorInfo; there the
details text is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from uftrace_remote.errors import (
    AgentInternalError,
    AuthenticationError,
    BusyTargetError,
    ConflictError,
    ConnectionFailedError,
    NoSuchFunctionError,
    NoSuchLeaseError,
    NoSuchProcessError,
    NoSuchSessionError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    TargetGoneError,
    UftraceError,
    UnsupportedTargetError,
    UsageError,
)

_DOMAIN = "uftrace"

_BY_CODE: Mapping[grpc.StatusCode, type[UftraceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.OUT_OF_RANGE: UsageError,
    grpc.StatusCode.UNAVAILABLE: ConnectionFailedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: ConnectionFailedError,
    grpc.StatusCode.CANCELLED: ConnectionFailedError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
    grpc.StatusCode.ABORTED: BusyTargetError,
    grpc.StatusCode.FAILED_PRECONDITION: UnsupportedTargetError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedTargetError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
}

# Reasons that say more than their status code does.
_BY_REASON: Mapping[str, type[UftraceError]] = {
    kind.default_reason: kind
    for kind in (
        NoSuchProcessError,
        NoSuchFunctionError,
        NoSuchSessionError,
        NoSuchLeaseError,
        ConflictError,
        UnsupportedTargetError,
        TargetGoneError,
        BusyTargetError,
    )
} | {
    "PID_REUSED": NoSuchProcessError,
    "NO_SUCH_MODULE": NoSuchFunctionError,
    "HELD_BY_ANOTHER_AGENT": ConflictError,
    "TRACED_BY_ANOTHER": ConflictError,
    "UNWINDER_PATCHED": ConflictError,
}


# How gRPC's resolvers say it.
_UNKNOWN_HOST = (
    "resolution failed",
    "errors resolving",
    "name or service not known",
    "domain name not found",
)


@dataclass(frozen=True, slots=True)
class _ErrorFacts:
    # What the trailing metadata of a failed call says.
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def from_rpc_error(error: grpc.aio.AioRpcError, address: str) -> UftraceError:
    """Turns a failed call into the client's error.

    Args:
        error: What grpc raised.
        address: The agent, for the message.
    """
    facts = _read_error_info(error)
    code = error.code()
    details = (error.details() or "").strip()
    if not facts.reason:
        return _transport_error(code, details, address)
    kind = _BY_REASON.get(facts.reason) or _BY_CODE.get(code, AgentInternalError)
    hint = facts.metadata.get("hint", "")
    if issubclass(kind, NoSuchFunctionError):
        names = [name for name in facts.metadata.get("suggestions", "").split(",") if name]
        if names and not hint:
            hint = f"did you mean {', '.join(names)}?"
        return kind(details, reason=facts.reason, hint=hint, suggestions=names)
    return kind(details, reason=facts.reason, hint=hint)


def _read_error_info(error: grpc.aio.AioRpcError) -> _ErrorFacts:
    try:
        # AioRpcError has what from_call reads, but is not declared as grpc.Call.
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except ValueError:
        # The status in the trailers contradicts the code: some proxy's, not the agent's.
        return _ErrorFacts()
    if status is None:
        return _ErrorFacts()
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == _DOMAIN:
            return _ErrorFacts(info.reason, dict(info.metadata))
    return _ErrorFacts()


def _transport_error(code: grpc.StatusCode, details: str, address: str) -> UftraceError:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ConnectionFailedError(
            f"the agent at {address} did not answer in time",
            reason="DEADLINE_EXCEEDED",
            hint="is the host overloaded or a firewall in between? --timeout waits longer",
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return _connection_error(details, address)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return AuthenticationError(
            f"the agent at {address} does not accept the token",
            hint="log in again: uftrace-remote login HOST, or name the agent's directory with "
            "--state-dir",
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnsupportedTargetError(
            f"what answers at {address} does not know this request: {details}",
            reason="UNIMPLEMENTED",
            hint="is it an uftrace-agent, and as new as this client?",
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhaustedError(
            f"a message was too large or a quota is spent: {details}",
            hint="ask for fewer functions at once",
        )
    kind = _BY_CODE.get(code, AgentInternalError)
    return kind(f"{code.name.lower().replace('_', ' ')}: {details or 'no details'}")


def _connection_error(details: str, address: str) -> ConnectionFailedError:
    lower = details.lower()
    if any(words in lower for words in _UNKNOWN_HOST):
        return ConnectionFailedError(
            f"unknown host in {address}", reason="UNKNOWN_HOST", hint="check the host name"
        )
    if "refused" in lower or "no such file" in lower:
        return ConnectionFailedError(
            f"no agent listens at {address}",
            reason="CONNECTION_REFUSED",
            hint="start it there: uftrace-agent --listen :50051",
        )
    if "certificate" in lower or "handshake" in lower or "ssl" in lower or "tls" in lower:
        return ConnectionFailedError(
            f"TLS with {address} failed: {_tls_error(details)}",
            reason="TLS_FAILED",
            hint="the agent's certificate is not from the CA that is known here, or has ended, or "
            "the agent does not take yours: log in again (uftrace-remote login HOST), or have new "
            "ones issued; for an agent started with --insecure, say --insecure here too",
        )
    return ConnectionFailedError(
        f"cannot reach the agent at {address}: {_last_error(details) or 'unavailable'}",
        hint="check host and port, and that both sides use TLS or both --insecure",
    )


# "failed to connect to all addresses; last error: UNKNOWN: ipv4:...: REASON"
def _last_error(details: str) -> str:
    return details.rpartition("last error: ")[2]


# "...: Tls handshake failed (...): SSL_ERROR_SSL: error:NUMBER:SSL routines:OPENSSL_internal:WHAT"
def _tls_error(details: str) -> str:
    what = details.rpartition("OPENSSL_internal:")[2] or details
    return _last_error(what).strip()
