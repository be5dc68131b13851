"""The real coordinator, which writes down every message it is sent and every one it sends, in plaintext.

Run as a program: ``python -m synthedge_deploy.recorder RECORD ARGUMENT...``; ARGUMENT... are those of
`synthedge-coordinator`. A message is written as it came off the wire's encryption, before anything reads it.
"""

import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import grpc

_HEAD: Final = struct.Struct(">?II")


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes
    ----------
    method : str
        The RPC's name.
    data : bytes
        As serialised.
    is_answer : bool
        Whether the coordinator sent it.
    """

    method: str
    data: bytes
    is_answer: bool


def read_messages(record: Path) -> list[Message]:
    """Everything a recording coordinator was sent and sent, in the order it came."""
    return list(_messages(record.read_bytes()))


def _messages(data: bytes) -> Iterator[Message]:
    position = 0
    while position < len(data):
        is_answer, method_bytes, data_bytes = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        method = data[position : position + method_bytes].decode()
        position += method_bytes
        yield Message(method, data[position : position + data_bytes], is_answer)
        position += data_bytes


class Recorder(grpc.aio.ServerInterceptor):
    """Writes down each message of each RPC.

    Parameters
    ----------
    file : binary file
        Open for appending.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def on_message(self, method: str) -> None:
        """Called when a message was written down, before it is read."""

    def on_answer(self, method: str) -> None:
        """Called before an answer is written down and sent."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put the recorder between the wire and the handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        read, write = handler.request_deserializer, handler.response_serializer

        def recorded(data: bytes) -> Any:
            self._write(method, data, is_answer=False)
            self.on_message(method)
            return read(data)

        def answered(message: Any) -> Any:
            self.on_answer(method)
            data = write(message)
            self._write(method, data, is_answer=True)
            return data

        return handler._replace(request_deserializer=recorded, response_serializer=answered)

    def _write(self, method: str, data: bytes, *, is_answer: bool) -> None:
        name = method.encode()
        self._file.write(_HEAD.pack(is_answer, len(name), len(data)) + name + data)
        self._file.flush()


def run_recorded(make: Callable[[BinaryIO], Recorder], record: Path, arguments: list[str]) -> None:
    """Run `synthedge-coordinator` in this process, under a recorder."""
    # Before gRPC makes its first credentials, as the coordinator itself does it.
    import synthedge_server.serve  # noqa: F401
    from synthedge_server.cli import main

    make_server = grpc.aio.server
    file = record.open("ab")  # open as long as the process lives

    def recording_server(*, interceptors: Any, options: Any) -> grpc.aio.Server:
        return make_server(interceptors=[make(file), *interceptors], options=options)

    grpc.aio.server = recording_server  # type: ignore[assignment]
    sys.argv = ["synthedge-coordinator", *arguments]
    main()


if __name__ == "__main__":
    run_recorded(Recorder, Path(sys.argv[1]), sys.argv[2:])
