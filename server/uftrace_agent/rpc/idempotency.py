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
# An answer about all functions of a large program has 10 MB.
_MOST_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class _Entry(Generic[_Answer]):
    request: bytes
    task: asyncio.Task[_Answer]


class RequestLedger(Generic[_Answer]):
    """Remembers the latest requests and their answers, errors included.

    Args:
        capacity: How many finished requests it remembers.
        weigh: The size of an answer in bytes.
        most_bytes: How much the answers may weigh together; the latest is kept anyway.
    """

    def __init__(
        self,
        capacity: int = 1024,
        weigh: Callable[[_Answer], int] = lambda answer: 0,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._most_bytes = most_bytes
        self._entries: OrderedDict[str, _Entry[_Answer]] = OrderedDict()
        # Of those that are done.
        self._weights: dict[str, int] = {}
        self._bytes = 0

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
        entry.task.add_done_callback(lambda task: self._finished(request_id, task))
        self._entries[request_id] = entry
        return entry

    def _finished(self, request_id: str, task: asyncio.Task[_Answer]) -> None:
        # Asking for the error marks it as seen: the caller may be gone, and
        # the operation itself has logged what became of it.
        failed = task.cancelled() or task.exception() is not None
        self._weights[request_id] = 0 if failed else self._weigh(task.result())
        self._bytes += self._weights[request_id]
        while len(self._weights) > self._capacity or (
            self._bytes > self._most_bytes and len(self._weights) > 1
        ):
            self._forget(next(key for key in self._entries if key in self._weights))

    def _forget(self, request_id: str) -> None:
        self._bytes -= self._weights.pop(request_id)
        del self._entries[request_id]
