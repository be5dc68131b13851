"""The boundary of every RPC: who may call, how much, how long, and what an error looks like from outside.

An interceptor of `grpc.aio` sees no peer certificate, but may wrap the handler, which does. Every method of a
service passes through here, so a new one cannot be forgotten.
"""

import asyncio
import inspect
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError

from synthedge_protocols.errors import (
    BusyError,
    DeadlineError,
    MalformedError,
    ProtocolError,
    status_of,
)
from synthedge_protocols.limits import Limits
from synthedge_server.callers import Context
from synthedge_server.log import log
from synthedge_server.rates import Admission
from synthedge_server.tallies import Tallies

if TYPE_CHECKING:  # generic in its type stubs only
    _Handler = grpc.RpcMethodHandler[Any, Any]

CALL_KEY: Final = "synthedge-call"
"""Trailing metadata key of a refusal: the call's id in the coordinator's log."""

# Methods that write; all others only read.
_CHANGES: Final = frozenset(
    {"Submit", "ReleaseKey", "Compare", "Renew", "RenewExpired", "Enrol", "Upload"}
)
# For these the authority is asked, a process that starts for the answer; the others wait.
_CERTIFYING: Final = frozenset({"Renew", "RenewExpired", "Enrol"})
_CERTIFYING_AT_ONCE: Final = 4
_SLOW_S: Final = 1.0
# A refused call is answered no sooner than this, or its wait if that is shorter.
_HELD_BACK_S: Final = 1.0
# A status waits behind the message that a slow reader does not take; the call is given up then.
_FAREWELL_S: Final = 1.0


class Boundary(grpc.aio.ServerInterceptor):
    """Identify the caller, run the handler within its bounds, translate what it raises.

    Parameters
    ----------
    identify : callable
        Returns the caller's name, under which calls are counted and logged, or raises the ProtocolError that turns
        it away.
    admission : Admission
    limits : Limits
    tallies : Tallies
    """

    def __init__(
        self,
        identify: Callable[[Context], str],
        admission: Admission,
        limits: Limits,
        tallies: Tallies,
    ) -> None:
        self._identify = identify
        self._admission = admission
        self._limits = limits
        self._tallies = tallies
        self._certifying = asyncio.Semaphore(_CERTIFYING_AT_ONCE)
        # Wrapping costs a tenth of a small call; a service has the same handlers for ever.
        self._wrapped: dict[str, tuple[_Handler, _Handler]] = {}

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
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(handler, method))
        return known[1]

    def _wrap(self, handler: "_Handler", path: str) -> "_Handler":
        kinds: dict[tuple[bool, bool], tuple[str, Callable[..., _Handler]]] = {
            (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
            (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
            (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
            (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
        }
        name, build = kinds[handler.request_streaming, handler.response_streaming]
        method = path.rpartition("/")[2]
        read = partial(_read, handler.request_deserializer)
        decode = partial(_read_each, read) if handler.request_streaming else read
        answer = self._many if handler.response_streaming else self._one
        if method in _CERTIFYING:
            answer = self._one_of_few
        return build(
            self._bounded(
                method,
                partial(answer, getattr(handler, name), decode),
                is_stream=handler.request_streaming or handler.response_streaming,
            ),
            # Decoded only behind the check of the caller, and where an error is answered: gRPC would answer bytes it
            # cannot decode with an internal text, and log a traceback for each.
            request_deserializer=bytes,
            response_serializer=handler.response_serializer,
        )

    def _bounded(
        self, method: str, answer: Callable[[Any, Context], Awaitable[Any]], *, is_stream: bool
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        changes = method in _CHANGES
        limits = self._limits
        certifying_s = limits.authority_timeout_s
        timeout_s = certifying_s if method in _CERTIFYING else limits.call_timeout_s

        async def call(request: Any, context: Context) -> Any:
            caller, status, start = "unknown", "CANCELLED", time.perf_counter()
            self._tallies.under_way[method] += 1
            try:
                caller = self._identify(context)
                n_bytes = 0 if is_stream else len(request)
                with self._admission.admitted(
                    caller, changes=changes, is_stream=is_stream, n_bytes=n_bytes
                ):
                    # A stream is bounded by what moves on it, see `_many` and `Streams`.
                    async with asyncio.timeout(None if is_stream else timeout_s):
                        response = await answer(request, context)
                status = "OK"
                return response
            except grpc.aio.AbortError:
                status = "ABORTED"
                raise
            except Exception as error:  # noqa: BLE001 - the one place
                if isinstance(error, TimeoutError):
                    error = DeadlineError(f"'{method}' took longer than it may; try again")
                refusal = _refusal(error)
                status = refusal[0].name
                await self._refuse(context, error, refusal, _Call(method, caller, start))
            finally:
                self._tallies.under_way[method] -= 1
                seconds = time.perf_counter() - start
                self._tallies.call_ended(method, status, seconds)
                if seconds >= _SLOW_S and not is_stream and status == "OK":
                    _Call(method, caller, start).log("slow", context, status=status)

        return call

    async def _one(
        self,
        behaviour: Callable[[Any, Context], Awaitable[Any]],
        decode: Callable[[Any], Any],
        request: Any,
        context: Context,
    ) -> Any:
        return await behaviour(decode(request), context)

    async def _one_of_few(
        self,
        behaviour: Callable[[Any, Context], Awaitable[Any]],
        decode: Callable[[Any], Any],
        request: Any,
        context: Context,
    ) -> Any:
        async with self._certifying:
            return await self._one(behaviour, decode, request, context)

    async def _many(
        self,
        behaviour: Callable[[Any, Context], AsyncIterator[Any]],
        decode: Callable[[Any], Any],
        request: Any,
        context: Context,
    ) -> None:
        idle_s = self._limits.stream_idle_s
        answers: Any = behaviour(decode(request), context)
        if inspect.isawaitable(answers):  # gRPC's own services write by themselves
            await answers
            return
        async with aclosing(answers) as responses:
            async for response in responses:
                try:
                    async with asyncio.timeout(idle_s):
                        await context.write(response)
                except TimeoutError:
                    # What it does not read would be kept here.
                    raise DeadlineError(
                        f"nothing was read for {idle_s:g} s; go on where you stopped"
                    ) from None

    async def _refuse(
        self,
        context: Context,
        error: Exception,
        refusal: tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]],
        call: "_Call",
    ) -> NoReturn:
        """End a call with the status of an error; a bug gets a fixed text and a line in the log."""
        code, text, metadata = refusal
        if isinstance(error, BusyError):  # `rates` has logged it, once for many
            await asyncio.sleep(min(error.wait_s, _HELD_BACK_S))
        elif isinstance(error, ProtocolError):
            call.log(
                "refused", context, status=code.name, error=type(error).__name__, reason=str(error)
            )
        else:
            call.log("failed", context, level=logging.ERROR, failed=True, status=code.name)
        abort = asyncio.ensure_future(context.abort(code, text, (*metadata, (CALL_KEY, call.id))))
        await asyncio.wait({abort}, timeout=_FAREWELL_S)
        if abort.done():
            abort.result()
        # The status goes out when the reader goes on, or with the connection; nothing else of the call is kept.
        abort.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise asyncio.CancelledError


class _Call:
    """One call as a line in the log tells it."""

    def __init__(self, method: str, caller: str, start: float) -> None:
        self.id = secrets.token_hex(6)
        self._method, self._caller, self._start = method, caller, start

    def log(
        self, event: str, context: Context, *, level: int = logging.WARNING, **fields: Any
    ) -> None:
        """Write it."""
        log(
            event,
            level=level,
            call=self.id,
            method=self._method,
            site=self._caller,
            peer=context.peer(),
            ms=round(1000 * (time.perf_counter() - self._start)),
            **fields,
        )


def _refusal(error: Exception) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    return status_of(error if isinstance(error, ProtocolError) else ProtocolError())


def _read(deserialise: Callable[[bytes], Any] | None, data: bytes) -> Any:
    try:
        return data if deserialise is None else deserialise(data)
    except DecodeError:
        raise MalformedError(f"the message of {len(data)} bytes does not decode") from None


async def _read_each(read: Callable[[bytes], Any], messages: AsyncIterator[bytes]) -> Any:
    async for data in messages:
        yield read(data)
