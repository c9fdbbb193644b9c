"""Every change goes this way: with a deadline, once, and written down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, cast

from google.protobuf.message import Message

from uftrace_agent.errors import AgentError, InvalidRequestError
from uftrace_agent.rpc.audit_trail import AuditTrail, kind_of
from uftrace_agent.rpc.caller import present_caller
from uftrace_agent.rpc.handlers import Context
from uftrace_agent.rpc.idempotency import RequestLedger


class ChangeRequest(Protocol):
    """A request message that changes something."""

    request_id: str

    def SerializeToString(self, *, deterministic: bool) -> bytes:
        """Give the message as bytes."""
        ...


_Response = TypeVar("_Response", bound=Message)


class Changes:
    """Makes changes, each request once.

    Args:
        ledger: Remembers the requests.
        trail: Where they are written down.
    """

    def __init__(self, ledger: RequestLedger[Message], trail: AuditTrail) -> None:
        self._ledger = ledger
        self._trail = trail
        # The event loop itself only has weak references to its tasks.
        self._following: set[asyncio.Task[None]] = set()

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
        kind = kind_of(request)
        # A client without a deadline would wait for ever on a dead agent, and
        # not know what became of the process.
        if context.time_remaining() is None:
            raise InvalidRequestError(
                f"{kind} needs a deadline",
                reason="DEADLINE_REQUIRED",
                hint="give the call a timeout",
            )

        line = self._trail.line(context, request, target)

        async def audited() -> _Response:
            try:
                response = await operation()
            except BaseException as error:
                line.failed(error)
                raise
            line.done()
            return response

        # Nobody gets the answer of somebody else's request by guessing its id.
        who = present_caller().identity.name
        content = f"{who}:{kind}:".encode() + request.SerializeToString(deterministic=True)
        answer = await self._ledger.once(request.request_id, content, audited)
        # The ledger gave the answer of this very request, so of this kind.
        return cast(_Response, answer)

    def follow(
        self, context: Context, request: ChangeRequest, target: str, what: str, end: Awaitable[None]
    ) -> None:
        """Write down how a change ends that a request only has begun.

        Args:
            context: Of the RPC.
            request: The request.
            target: What is changed, in words for the log.
            what: What the change is called.
            end: Is over when the change is, and raises why it was not made.
        """
        line = self._trail.line(context, request, target, what=what)

        async def wait() -> None:
            try:
                await end
            except (AgentError, asyncio.CancelledError) as error:
                line.failed(error)
            else:
                line.done()

        task = asyncio.ensure_future(wait())
        self._following.add(task)
        task.add_done_callback(self._following.discard)
