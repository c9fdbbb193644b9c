"""Calls an agent knowing nothing of it but its address: the API comes by reflection.

    python call.py --state-dir DIR ADDRESS list
    python call.py --state-dir DIR ADDRESS describe Attach
    python call.py --state-dir DIR ADDRESS ListProcesses '{"name_contains": "nginx"}'
    python call.py --state-dir DIR --count 3 ADDRESS StreamEvents '{"session_id": "..."}'

What grpcurl does, in some lines of any language that has gRPC: no generated code of this
project is used. DIR has the agent's `ca.pem` and `token`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import uuid
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICE = "uftrace.agent.v1.AgentService"
DEADLINE_SECONDS = 60.0


def connect(address: str, state_dir: Path) -> grpc.Channel:
    """A channel that trusts this agent's authority and sends its token with every call."""
    tls = grpc.ssl_channel_credentials((state_dir / "ca.pem").read_bytes())
    token = grpc.access_token_call_credentials((state_dir / "token").read_text().strip())
    # The agent's own certificate has this name beside the host's.
    options = [("grpc.ssl_target_name_override", "uftrace-agent")]
    return grpc.secure_channel(address, grpc.composite_channel_credentials(tls, token), options)


def call(channel: grpc.Channel, method: MethodDescriptor, content: str, count: int) -> None:
    """Make one call; print the answer, or `count` of them, as JSON."""
    request = GetMessageClass(method.input_type)()
    json_format.Parse(content, request)
    # A change is made once, however often it is sent.
    if "request_id" in method.input_type.fields_by_name and not request.request_id:
        request.request_id = str(uuid.uuid4())
    answer_class = GetMessageClass(method.output_type)
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    ask: Any = kind(
        f"/{SERVICE}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer_class.FromString,
    )
    # Agents refuse changes without a deadline.
    answers = ask(request, timeout=DEADLINE_SECONDS)
    if not method.server_streaming:
        answers = [answers]
    for answer in itertools.islice(answers, count):
        print(json.dumps(json_format.MessageToDict(answer, preserving_proto_field_name=True)))


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1, help="answers of a stream to print")
    parser.add_argument("address")
    parser.add_argument("what", help="list, describe or a method")
    parser.add_argument("content", nargs="?", default="{}", help="the request, as JSON")
    arguments = parser.parse_args()
    with connect(arguments.address, arguments.state_dir) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        methods = pool.FindServiceByName(SERVICE).methods_by_name
        if arguments.what == "list":
            print("\n".join(methods))
        elif arguments.what == "describe":
            method = methods[arguments.content]
            for message in (method.input_type, method.output_type):
                print(message.full_name, *(field.name for field in message.fields), sep="\n    ")
        else:
            call(channel, methods[arguments.what], arguments.content, arguments.count)


if __name__ == "__main__":
    main()
