"""The real coordinator, which writes down every message it is sent, and can be made to die at one of them.

Run as a program: ``recording_coordinator.py RECORD DEATH ARGUMENT...``; ARGUMENT... are those of
`synthedge-coordinator`, DEATH is described in `deaths`. What a site sent is written as it came, before anything
reads it.
"""

import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from deaths import die_at

_HEAD = struct.Struct(">II")


@dataclass(frozen=True)
class Message:
    """One message as it came."""

    method: str
    data: bytes


def read_messages(record: Path) -> list[Message]:
    """Everything a recording coordinator was sent, in the order it came."""
    return list(_messages(record.read_bytes()))


def _messages(data: bytes) -> Iterator[Message]:
    position = 0
    while position < len(data):
        method_bytes, data_bytes = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        method = data[position : position + method_bytes].decode()
        position += method_bytes
        yield Message(method, data[position : position + data_bytes])
        position += data_bytes


class Recorder(grpc.aio.ServerInterceptor):
    """Writes down each inbound message, and dies where it was told to."""

    def __init__(self, file: BinaryIO, death: str) -> None:
        self._file = file
        self._death = death

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        read, write = handler.request_deserializer, handler.response_serializer

        def recorded(data: bytes) -> Any:
            name = method.encode()
            self._file.write(_HEAD.pack(len(name), len(data)) + name + data)
            self._file.flush()
            die_at(self._death, method, "before")
            return read(data)

        def answered(message: Any) -> Any:
            die_at(self._death, method, "after")
            return write(message)

        return handler._replace(request_deserializer=recorded, response_serializer=answered)


def main() -> None:
    record, death, *arguments = sys.argv[1:]
    make_server = grpc.aio.server
    file = Path(record).open("ab")  # noqa: SIM115 - open as long as the process lives

    def recording_server(*, interceptors: Any, options: Any) -> grpc.aio.Server:
        return make_server(interceptors=[Recorder(file, death), *interceptors], options=options)

    grpc.aio.server = recording_server  # type: ignore[assignment]
    sys.argv = ["synthedge-coordinator", *arguments]
    from synthedge_server.cli import main as run

    run()


if __name__ == "__main__":
    # Before gRPC makes its first credentials, as the coordinator itself does it.
    import synthedge_server.serve  # noqa: F401

    main()
