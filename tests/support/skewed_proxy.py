"""A real agent that seems one release older or newer: what passes on the wire is changed.

older: calls that it does not have yet are UNIMPLEMENTED, fields that it does not have
       yet are missing from what it reads and says
newer: its answers have fields and members of enumerations that nobody here knows
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from uftrace.agent.v1 import agent_pb2

_SERVICE = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
# Field 1000, a varint: of no message yet.
_UNKNOWN_FIELD = bytes((0xC0, 0x3E, 0x01))
_UNKNOWN_MEMBER = 250
_GROWING = ("Architecture", "PatchForm", "PatchWriter", "SiteKind", "RefusalReason", "LossStage")


@dataclass(frozen=True)
class Skew:
    """How the agent differs.

    Attributes:
        missing_calls: Those it does not have.
        missing_fields: By name of a message, those it does not have.
        is_newer: Whether it says what nobody knows.
    """

    missing_calls: frozenset[str] = frozenset()
    missing_fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_newer: bool = False

    def change(self, message: Message) -> None:
        """Change a message, with all that is in it."""
        for name in self.missing_fields.get(message.DESCRIPTOR.name, ()):
            message.ClearField(name)
        for descriptor, value in message.ListFields():
            if descriptor.type == FieldDescriptor.TYPE_ENUM and self.is_newer:
                self._change_members(message, descriptor)
            elif descriptor.type == FieldDescriptor.TYPE_MESSAGE:
                if descriptor.message_type.GetOptions().map_entry:
                    continue
                for each in value if isinstance(value, Sequence) else [value]:
                    self.change(each)
        if self.is_newer:
            message.MergeFromString(_UNKNOWN_FIELD)

    # A release may bring forms and reasons; what "enabled" and "ended" are stays.
    def _change_members(self, message: Message, descriptor: FieldDescriptor) -> None:
        if descriptor.enum_type.name not in _GROWING:
            return
        value = getattr(message, descriptor.name)
        if isinstance(value, int):
            setattr(message, descriptor.name, _UNKNOWN_MEMBER)
        else:
            value.append(_UNKNOWN_MEMBER)


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    def __init__(self, channel: grpc.aio.Channel, skew: Skew) -> None:
        self._channel = channel
        self._skew = skew

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = _SERVICE.methods_by_name.get(details.method.rpartition("/")[2])
        # gRPC itself says UNIMPLEMENTED then, as an agent does that lacks the call.
        if method is None or method.name in self._skew.missing_calls:
            return None
        request_class = GetMessageClass(method.input_type)
        answer_class = GetMessageClass(method.output_type)
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        call: Any = kind(
            details.method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_class.FromString,
        )

        def ask(request: Message, context: Any) -> Any:
            if not self._skew.is_newer:
                self._skew.change(request)
            return call(
                request, timeout=context.time_remaining(), metadata=context.invocation_metadata()
            )

        async def one(request: Message, context: Any) -> Message:
            with _errors_of(context) as passing:
                answer: Message = await ask(request, context)
                self._skew.change(answer)
                return answer
            return await passing()

        async def several(request: Message, context: Any) -> AsyncIterator[Message]:
            with _errors_of(context) as passing:
                async for answer in ask(request, context):
                    self._skew.change(answer)
                    yield answer
                return
            await passing()

        make: Any = (
            grpc.unary_stream_rpc_method_handler
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        handler: grpc.RpcMethodHandler = make(
            several if method.server_streaming else one,
            request_deserializer=request_class.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        return handler


# An error of the agent becomes that of the call, details and all.
@contextlib.contextmanager
def _errors_of(context: Any) -> Any:
    caught: list[grpc.aio.AioRpcError] = []

    async def passing() -> Any:
        error = caught[0]
        await context.abort(error.code(), error.details(), tuple(error.trailing_metadata() or ()))

    try:
        yield passing
    except grpc.aio.AioRpcError as error:
        caught.append(error)


@contextlib.asynccontextmanager
async def skewed(address: str, state_dir: Path, skew: Skew) -> AsyncIterator[str]:
    """A proxy before the agent at `address`; yields its own address, for `--insecure`."""
    tls = grpc.ssl_channel_credentials((state_dir / "ca.pem").read_bytes())
    options = (("grpc.ssl_target_name_override", "uftrace-agent"),)
    async with grpc.aio.secure_channel(address, tls, options=options) as channel:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Handler(channel, skew),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(1.0)
