"""The boundary of every RPC: who may call, and what an error looks like from outside.

An interceptor of `grpc.aio` sees no peer certificate, but may wrap the handler, which does. Every method of a
service passes through here, so a new one cannot be forgotten.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from synthedge_protocols.errors import MalformedError, ProtocolError, status_of
from synthedge_server.callers import Context
from synthedge_server.log import log

if TYPE_CHECKING:  # generic in its type stubs only
    _Handler = grpc.RpcMethodHandler[Any, Any]


class Boundary(grpc.aio.ServerInterceptor):
    """Identify the caller, run the handler, translate what it raises.

    Parameters
    ----------
    identify : callable
        Returns the caller's name for the log, or raises the ProtocolError that turns it away.
    """

    def __init__(self, identify: Callable[[Context], str]) -> None:
        self._identify = identify

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Wrap the handler of one call; unknown methods stay unknown."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        kinds: dict[tuple[bool, bool], tuple[str, Callable[..., _Handler], Any]] = {
            (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler, self._one),
            (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler, self._many),
            (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler, self._one),
            (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler, self._many),
        }
        name, build, wrap = kinds[handler.request_streaming, handler.response_streaming]
        read = partial(_read, handler.request_deserializer)
        decode = partial(_read_each, read) if handler.request_streaming else read
        return build(
            wrap(method, getattr(handler, name), decode),
            # Decoded only behind the check of the caller, and where an error is answered: gRPC would answer bytes it
            # cannot decode with an internal text, and log a traceback for each.
            request_deserializer=bytes,
            response_serializer=handler.response_serializer,
        )

    def _one(
        self,
        method: str,
        behaviour: Callable[[Any, Context], Awaitable[Any]],
        decode: Callable[[Any], Any],
    ) -> Any:
        async def call(request: Any, context: Context) -> Any:
            caller = "unknown"
            try:
                caller = self._identify(context)
                return await behaviour(decode(request), context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the one place
                await _answer(context, error, method, caller)

        return call

    def _many(
        self,
        method: str,
        behaviour: Callable[[Any, Context], AsyncIterator[Any]],
        decode: Callable[[Any], Any],
    ) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            caller = "unknown"
            try:
                caller = self._identify(context)
                async with aclosing(behaviour(decode(request), context)) as responses:  # type: ignore[type-var]
                    async for response in responses:
                        yield response
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the one place
                await _answer(context, error, method, caller)

        return call


def _read(deserialise: Callable[[bytes], Any] | None, data: bytes) -> Any:
    try:
        return data if deserialise is None else deserialise(data)
    except DecodeError:
        raise MalformedError(f"the message of {len(data)} bytes does not decode") from None


async def _read_each(read: Callable[[bytes], Any], messages: AsyncIterator[bytes]) -> Any:
    async for data in messages:
        yield read(data)


async def _answer(context: Context, error: Exception, method: str, caller: str) -> NoReturn:
    """End a call with the status of an error; a bug gets a fixed text and a line in the log."""
    if isinstance(error, ProtocolError):
        log(
            "refused",
            level=logging.WARNING,
            method=method,
            site=caller,
            error=type(error).__name__,
            reason=str(error),
        )
    else:
        log("failed", level=logging.ERROR, failed=True, method=method, site=caller)
        error = ProtocolError()
    code, text, metadata = status_of(error)
    await context.abort(code, text, metadata)
