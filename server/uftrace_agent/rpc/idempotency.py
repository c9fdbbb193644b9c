"""The same request twice is one change, with one answer.

A client whose connection broke cannot know whether its request was carried
out; it sends it again with the same id. And a change, once begun, is carried
out to its end whether or not the client still waits: an operation that stops
half-way because a deadline passed would help nobody.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from uftrace_agent.errors import InvalidRequestError

_Answer = TypeVar("_Answer")
_MAX_ID_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class _Entry(Generic[_Answer]):
    request: bytes
    task: asyncio.Task[_Answer]


class RequestLedger(Generic[_Answer]):
    """Remembers the latest requests and their answers, errors included.

    Args:
        capacity: How many finished requests it remembers.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[str, _Entry[_Answer]] = OrderedDict()

    async def once(
        self, request_id: str, request: bytes, operation: Callable[[], Awaitable[_Answer]]
    ) -> _Answer:
        """Run `operation`, unless this request was seen: then give its answer.

        Args:
            request_id: The client's id of the request.
            request: What tells this request from others: its kind and content.
            operation: Carried out in a task of its own, which goes on when
                the caller is cancelled.

        Returns:
            The operation's answer. If it raised, every caller gets that error.

        Raises:
            InvalidRequestError: The id is missing (REQUEST_ID_MISSING) or was
                used for another request (REQUEST_ID_REUSED).
        """
        if not 0 < len(request_id) <= _MAX_ID_CHARACTERS:
            raise InvalidRequestError(
                f"a change needs a request id of 1 to {_MAX_ID_CHARACTERS} characters",
                reason="REQUEST_ID_MISSING",
                hint="make one for each change, such as a random UUID",
            )
        entry = self._entries.get(request_id)
        if entry is None:
            entry = self._begin(request_id, request, operation)
        elif entry.request != request:
            raise InvalidRequestError(
                f"request id {request_id} was used for another request",
                reason="REQUEST_ID_REUSED",
                hint="make a new id for each change; the same one is for sending it again",
            )
        self._entries.move_to_end(request_id)
        return await asyncio.shield(entry.task)

    async def drain(self) -> None:
        """Wait until every operation that has begun is done."""
        while unfinished := [e.task for e in self._entries.values() if not e.task.done()]:
            await asyncio.wait(unfinished)

    def _begin(
        self, request_id: str, request: bytes, operation: Callable[[], Awaitable[_Answer]]
    ) -> _Entry[_Answer]:
        async def run() -> _Answer:
            return await operation()

        entry = _Entry(request, asyncio.create_task(run(), name=f"request {request_id}"))
        entry.task.add_done_callback(self._finished)
        self._entries[request_id] = entry
        return entry

    def _finished(self, task: asyncio.Task[_Answer]) -> None:
        # Asking for the error marks it as seen: the caller may be gone, and
        # the operation itself has logged what became of it.
        if not task.cancelled():
            task.exception()
        done = [key for key, entry in self._entries.items() if entry.task.done()]
        for key in done[: max(0, len(done) - self._capacity)]:
            del self._entries[key]
