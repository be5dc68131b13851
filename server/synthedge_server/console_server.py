"""Runs the web console in the foreground."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import uvicorn

from synthedge_protocols.errors import UnavailableError
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.settings import Address, on_loopback, read_settings
from synthedge_server.web import create_app, operator_token

_LOCAL: Final = ("127.0.0.1", "localhost", "[::1]")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again at the end, and SIGTERM be no orderly one."""
        yield


def serve_console(
    folder: CoordinatorFolder, listen: Address, announce: Callable[[Address, Path], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Parameters
    ----------
    folder : CoordinatorFolder
    listen : Address
        Port 0 takes a free one.
    announce : callable
        Called with the address and the token's file once the port is open.

    Raises
    ------
    UsageError
        If the folder is not a coordinator's, or other machines reach the address.
    UnavailableError
        If the port is taken or the address is not this machine's.
    """
    settings = read_settings(folder.settings)
    on_loopback(
        listen,
        "where alone the console answers, for the token would travel in the open; from another machine go "
        "through 'ssh -L', or put a proxy with TLS in front of it",
    )
    token = operator_token(folder)
    try:
        listening = socket.create_server((listen.host, listen.port))
    except OSError as error:
        raise UnavailableError(f"cannot listen on {listen}: {error.strerror}") from None
    port = listening.getsockname()[1]
    names = {listen.host, *_LOCAL, *settings.names}
    app = create_app(folder, token, {f"{name}:{port}" for name in names} | names)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    server = _Server(config)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, setattr, server, "should_exit", True)
        announce(Address(host=listen.host, port=port), folder.console_token)
        await server.serve(sockets=[listening])

    with contextlib.closing(listening):
        asyncio.run(run())
