"""The rival: a bare gRPC echo server in a process of its own, with the same TLS and the same sizes of messages."""

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator
from typing import Any

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio


class Echo:
    """An echo server of `grpc.aio`; a method's name says how many bytes it answers.

    Parameters
    ----------
    port : int
    ca, certificate, key : bytes
        PEM; client certificates are required.
    """

    def __init__(self, port: int, ca: bytes, certificate: bytes, key: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        ready, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_serve, args=(theirs, port, ca, certificate, key), daemon=True
        )
        self._process.start()
        ready.recv()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid or 0

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def path_of(n_bytes: int, *, is_stream: bool) -> str:
    """Name the method that answers so many bytes; a stream of none if there are none."""
    return f"/echo/{'stream' if is_stream else 'unary'}-{n_bytes}"


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        if path not in self._known:
            self._known[path] = _handler(path)
        return self._known[path]


def _handler(path: str) -> Any:
    kind, _, size = path.rpartition("/")[2].partition("-")
    answer = bytes(int(size))

    async def one(request: bytes, context: Any) -> bytes:
        return answer

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        if answer:
            yield answer

    if kind == "stream":
        return grpc.unary_stream_rpc_method_handler(stream)
    return grpc.unary_unary_rpc_method_handler(one)


def _serve(ready: Any, port: int, ca: bytes, certificate: bytes, key: bytes) -> None:
    asyncio.run(_run(ready, port, ca, certificate, key))


async def _run(ready: Any, port: int, ca: bytes, certificate: bytes, key: bytes) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handlers(),))
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=ca, require_client_auth=True
    )
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    ready.send(True)
    await server.wait_for_termination()
