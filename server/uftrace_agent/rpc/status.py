"""From an error to google.rpc.Status: the one place where this happens.

Every status carries an ErrorInfo of domain "uftrace" with the error's reason.
Its metadata holds the error's own, and what to do about it under "hint".
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from uftrace_agent import errors
from uftrace_agent.rpc.handlers import Context, GuardInterceptor

DOMAIN = "uftrace"
_MAX_METADATA_CHARACTERS = 1000

_log = structlog.stdlib.get_logger(__name__)


class UnauthenticatedError(errors.AgentError):
    """The caller did not prove who it is."""

    default_reason = "INVALID_TOKEN"


# The first class that an error is an instance of decides.
_CODES: Mapping[type[errors.AgentError], grpc.StatusCode] = {
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ConflictError: grpc.StatusCode.ALREADY_EXISTS,
    errors.ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnsupportedTargetError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TargetGoneError: grpc.StatusCode.NOT_FOUND,
    # Not UNAVAILABLE: gRPC clients retry that on their own, below the caller.
    errors.BusyTargetError: grpc.StatusCode.ABORTED,
    errors.ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.EngineFaultError: grpc.StatusCode.INTERNAL,
}


def to_status(error: errors.AgentError) -> status_pb2.Status:
    """Convert an error of the agent."""
    code = next((_CODES[cls] for cls in type(error).__mro__ if cls in _CODES), None)
    metadata = error.metadata | ({"hint": error.hint} if error.hint else {})
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        # The status travels in a header, and headers are limited to some KiB.
        metadata={key: value[:_MAX_METADATA_CHARACTERS] for key, value in metadata.items()},
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    return status_pb2.Status(
        code=(code or grpc.StatusCode.INTERNAL).value[0], message=error.message, details=[detail]
    )


def unexpected(error: Exception) -> errors.AgentError:
    """Log an error that nobody foresaw, under an id that the caller is told too."""
    error_id = secrets.token_hex(6)
    _log.error("unexpected error", error_id=error_id, exc_info=error)
    return errors.EngineFaultError(
        f"unexpected error {error_id} in the agent",
        reason="INTERNAL",
        hint=f"the agent's log says more at {error_id}",
        metadata={"error_id": error_id},
    )


@contextlib.asynccontextmanager
async def errors_as_status(context: Context, request: Any) -> AsyncIterator[None]:
    """End the RPC with the right status when its handler raises."""
    try:
        yield
    except errors.AgentError as error:
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
    except aio.BaseError:
        # gRPC's own: the handler has ended the RPC already.
        raise
    except Exception as error:  # The outermost frame of ours: nothing may pass it.
        await context.abort_with_status(rpc_status.to_status(to_status(unexpected(error))))


def error_interceptor() -> GuardInterceptor:
    """Make the interceptor that gives every RPC's errors their status."""
    return GuardInterceptor(lambda method: errors_as_status)
