"""Metrics and probes over HTTP, for programs on this machine only.

``/metrics`` for Prometheus; ``/healthz``: 200 unless only a new start helps; ``/readyz``: 200 while sites can be
served. In a thread of its own, so that it still answers when the event loop does not.
"""

import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from synthedge_protocols.errors import UnavailableError
from synthedge_server.health import Health
from synthedge_server.log import log
from synthedge_server.settings import Address

_SLOW_CLIENT_S: Final = 5.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Write one line of ours instead of a traceback, unless the asker went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            log("failed", level=logging.ERROR, failed=True, method="probe")


class Probes:
    """The listening port.

    Parameters
    ----------
    address : Address
        Of this machine alone; `settings` refuses another.
    registry : CollectorRegistry
    health : Health

    Raises
    ------
    UnavailableError
        If the port is taken.
    """

    def __init__(self, address: Address, registry: CollectorRegistry, health: Health) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = _SLOW_CLIENT_S

            def do_GET(self) -> None:
                """Answer one of the three paths."""
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path in ("/healthz", "/readyz"):
                    problem = health.stuck() if self.path == "/healthz" else health.problem()
                    text = f"{problem or 'ok'}\n".encode()
                    self._answer(503 if problem else 200, "text/plain; charset=utf-8", text)
                else:
                    self._answer(404, "text/plain; charset=utf-8", b"/metrics /healthz /readyz\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: a probe every few seconds is no event."""

        try:
            self._server = _Server((address.host, address.port), Handler)
        except OSError:
            raise UnavailableError(
                f"cannot listen on {address}: the port is taken; change 'metrics_listen' in coordinator.toml, or start "
                "this one of several processes with a --metrics-listen of its own"
            ) from None
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="probes", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
