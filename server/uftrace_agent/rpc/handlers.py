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
Guard = Callable[[Context], AbstractAsyncContextManager[None]]


def guarded(handler: Handler, guard: Guard) -> Handler:
    """Make a handler that runs inside `guard(context)`.

    Args:
        handler: As the continuation of an interceptor returns it.
        guard: Called once an RPC. It may end the RPC before it begins, and
            sees the exceptions that come out of it.

    Returns:
        A handler of the same kind, with the same (de)serialisers.
    """
    make, behaviour = _kind(handler)

    async def answer_once(request: Any, context: Context) -> Any:
        async with guard(context):
            return await behaviour(request, context)

    async def answer_many(request: Any, context: Context) -> AsyncIterator[Any]:
        async with guard(context):
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
        guard: What goes around each RPC.
        exempt_services: Full names of services that are left alone.
    """

    def __init__(self, guard: Guard, exempt_services: frozenset[str] = frozenset()) -> None:
        self._guard = guard
        self._exempt_services = exempt_services

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler that the rest of the chain gives."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.rpartition("/")[0].lstrip("/")
        if handler is None or service in self._exempt_services:
            return handler
        return guarded(handler, self._guard)
