"""Calls of any RPC by its descriptor, in bytes: what a stranger's program could send."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from synthedge_protocols.v1 import coordinator_pb2 as wire

TIMEOUT_S = 10.0
# Streams that end with their caller; the first answer is all that is looked at.
ENDLESS = {"grpc.health.v1.Health.Watch"}


def all_methods(service: str) -> list[MethodDescriptor]:
    """Every RPC of a service, by reflection: a new one cannot be forgotten."""
    for module in (wire, health_pb2, reflection_pb2):
        if service in module.DESCRIPTOR.services_by_name:
            return list(module.DESCRIPTOR.services_by_name[service].methods)
    raise KeyError(service)


async def call_raw(
    channel: grpc.aio.Channel, method: MethodDescriptor, request: bytes
) -> list[bytes]:
    """Call with one message of bytes; return the answers' bytes, or raise AioRpcError."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    behaviour = kinds[method.client_streaming, method.server_streaming](
        path, request_serializer=bytes, response_deserializer=bytes
    )
    sent = _one(request) if method.client_streaming else request
    call = behaviour(sent, timeout=TIMEOUT_S)
    if method.server_streaming:
        answers = []
        async for answer in call:
            answers.append(answer)
            if method.full_name in ENDLESS:
                call.cancel()
                break
        return answers
    return [await call]


async def _one(request: bytes) -> AsyncIterator[bytes]:
    yield request
