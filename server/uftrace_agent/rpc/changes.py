"""Every change goes this way: with a deadline, once, and written down."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, cast

import structlog
from google.protobuf.message import Message

from uftrace_agent.errors import AgentError, InvalidRequestError
from uftrace_agent.rpc.handlers import Context
from uftrace_agent.rpc.idempotency import RequestLedger

# Clients say here on whose behalf they call. It is shown to others and
# logged; nothing is decided by it.
OWNER_HEADER = "uftrace-owner"

_audit = structlog.stdlib.get_logger("uftrace_agent.audit")


class ChangeRequest(Protocol):
    """A request message that changes something."""

    request_id: str

    def SerializeToString(self, *, deterministic: bool) -> bytes:
        """Give the message as bytes."""
        ...


_Response = TypeVar("_Response", bound=Message)


def owner_of(context: Context) -> str:
    """On whose behalf a call is made: what the client says, or its address."""
    for key, value in context.invocation_metadata() or ():
        if key == OWNER_HEADER and isinstance(value, str) and value:
            return value
    return context.peer()


class Changes:
    """Makes changes, each request once.

    Args:
        ledger: Remembers the requests.
    """

    def __init__(self, ledger: RequestLedger[Message]) -> None:
        self._ledger = ledger

    async def make(
        self,
        context: Context,
        request: ChangeRequest,
        target: str,
        operation: Callable[[], Awaitable[_Response]],
    ) -> _Response:
        """Make a change, or give the answer that this request had before.

        Args:
            context: Of the RPC.
            request: The request, with its id.
            target: What is changed, in words for the log.
            operation: The change. It goes on when the client leaves.

        Raises:
            InvalidRequestError: The call has no deadline, or the request id is
                missing or was used otherwise.
        """
        kind = type(request).__name__.removesuffix("Request")
        # A client without a deadline would wait for ever on a dead agent, and
        # not know what became of the process.
        if context.time_remaining() is None:
            raise InvalidRequestError(
                f"{kind} needs a deadline",
                reason="DEADLINE_REQUIRED",
                hint="give the call a timeout",
            )

        line = _audit.bind(
            who=owner_of(context),
            peer=context.peer(),
            what=kind.lower(),
            target=target,
            request_id=request.request_id,
        )

        async def audited() -> _Response:
            begun = time.monotonic()
            try:
                response = await operation()
            except BaseException as error:
                reason = error.reason if isinstance(error, AgentError) else type(error).__name__
                line.warning("change failed", result=reason, error=str(error))
                raise
            line.info("change", result="OK", seconds=round(time.monotonic() - begun, 6))
            return response

        content = f"{kind}:".encode() + request.SerializeToString(deterministic=True)
        answer = await self._ledger.once(request.request_id, content, audited)
        # The ledger gave the answer of this very request, so of this kind.
        return cast(_Response, answer)
