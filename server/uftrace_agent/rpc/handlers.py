"""How interceptors put something around an RPC, whatever its kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc
from grpc import aio

Context: TypeAlias = "aio.ServicerContext[Any, Any]"
# Generic for type checkers only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Given the context and the request; of a client stream, its iterator.
Guard = Callable[[Context, Any], AbstractAsyncContextManager[None]]


def guarded(handler: Handler, guard: Guard) -> Handler:
    """Make a handler that runs inside `guard(context, request)`.

    Args:
        handler: As the continuation of an interceptor returns it.
        guard: Called once an RPC. It may end the RPC before it begins, and
            sees the exceptions that come out of it.

    Returns:
        A handler of the same kind, with the same (de)serialisers.
    """
    make, behaviour = _kind(handler)

    async def answer_once(request: Any, context: Context) -> Any:
        async with guard(context, request):
            return await behaviour(request, context)

    async def answer_many(request: Any, context: Context) -> AsyncIterator[Any]:
        async with guard(context, request):
            async for response in behaviour(request, context):
                yield response

    return make(
        answer_many if handler.response_streaming else answer_once,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _kind(handler: Handler) -> tuple[Callable[..., Handler], Callable[..., Any]]:
    kinds: dict[tuple[bool, bool], tuple[Callable[..., Handler], Any]] = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }
    return kinds[handler.request_streaming, handler.response_streaming]


class GuardInterceptor(aio.ServerInterceptor):
    """Puts a guard around the RPCs that it is for.

    Args:
        guard_of: Gives the guard of a method (`package.Service/Method`), or
            None for one that is left alone.
    """

    def __init__(self, guard_of: Callable[[str], Guard | None]) -> None:
        self._guard_of = guard_of

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler that the rest of the chain gives."""
        handler = await continuation(handler_call_details)
        guard = self._guard_of(handler_call_details.method.lstrip("/"))
        return handler if handler is None or guard is None else guarded(handler, guard)
