"""The operator's web console: read-only pages, rendered here, that need nothing from outside.

Rules
-----
* Nothing can be changed: besides the login there is no form.
* A page holds what the command line shows, from the same rows; no script runs in it, nothing is loaded from elsewhere.
* Whoever asks has logged in with the operator's token, under a name this server listens as.
"""

import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Connection, select
from starlette.concurrency import run_in_threadpool

from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.errors import ProtocolError
from synthedge_protocols.private_files import read_private_file, write_private_file
from synthedge_server import store
from synthedge_server.doctor import examine
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import system_clock
from synthedge_server.log import log
from synthedge_server.log_heads import load_log_key, signed_head
from synthedge_server.network import SIZE, draw
from synthedge_server.operations import reading
from synthedge_server.overview import (
    list_matches,
    list_sites,
    list_transfers,
    list_withdrawals,
    when,
)
from synthedge_server.settings import read_settings
from synthedge_server.status import read_status

SESSION_S: Final = 8 * 3600.0
MAX_FORM_BYTES: Final = 4_096
N_ENTRIES: Final = 100
# A guess a second: a token of 32 random bytes cannot be found, a fast loop would only be load.
_WRONG_TOKEN_S: Final = 1.0
_COOKIE: Final = "session"
_TIME: Final = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00$")
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Answer = Callable[[Request], Awaitable[Response]]


def operator_token(folder: CoordinatorFolder) -> str:
    """Read the operator's token, made at its first use.

    Raises
    ------
    IdentityError
        If others may read it.
    """
    if not folder.console_token.exists():
        write_private_file(folder.console_token, secrets.token_urlsafe(32).encode())
    return read_private_file(folder.console_token).decode().strip()


class Sessions:
    """Who is logged in: random names in this process's memory, gone with it."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._until: dict[str, float] = {}

    def open(self, token: str) -> str | None:
        """Return a new session's name if the token is the operator's."""
        if not hmac.compare_digest(token.strip().encode(), self._token):
            return None
        now = time.monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        name = secrets.token_urlsafe(32)
        self._until[name] = now + SESSION_S
        return name

    def holds(self, name: str | None) -> bool:
        """Whether a session is open."""
        return name is not None and self._until.get(name, 0.0) > time.monotonic()

    def close(self, name: str | None) -> None:
        """End a session, if there is one."""
        self._until.pop(name or "", None)


def create_app(folder: CoordinatorFolder, token: str, hosts: set[str]) -> FastAPI:
    """Make the console of one coordinator's folder.

    Parameters
    ----------
    folder : CoordinatorFolder
    token : str
        The operator's; from `operator_token`.
    hosts : set of str
        Values of the Host header that are answered: a page of another site, whose name was pointed at this
        machine, must not get through a browser what the operator gets.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    sessions = Sessions(token)
    pages = _Pages(folder)

    @app.middleware("http")
    async def guard(request: Request, call_next: Answer) -> Response:
        if request.headers.get("host", "") not in hosts:
            return Response("this console answers under its own address only", 421)
        is_open = request.url.path in ("/login", "/style.css")
        if not is_open and not sessions.holds(request.cookies.get(_COOKIE)):
            return RedirectResponse("/login", 303, _HEADERS)
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(ProtocolError)
    @app.exception_handler(SynthEdgeError)
    def refused(request: Request, error: Exception) -> HTMLResponse:
        return pages.render("failed", 503, reason=str(error))

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> HTMLResponse:
        log(
            "console-failed", level=logging.ERROR, path=request.url.path, error=type(error).__name__
        )
        return pages.render("failed", 500, reason="this is a bug; its kind is in the log")

    @app.get("/style.css")
    def style() -> Response:
        return Response(pages.style, media_type="text/css")

    @app.get("/login")
    def login_form() -> HTMLResponse:
        return pages.render("login", is_wrong=False)

    @app.post("/login")
    async def login(request: Request) -> Response:
        name = sessions.open(await _form_value(request, "token"))
        if name is None:
            await run_in_threadpool(time.sleep, _WRONG_TOKEN_S)
            return pages.render("login", 403, is_wrong=True)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(_COOKIE, name, httponly=True, samesite="strict", path="/")
        return answer

    @app.post("/logout")
    def logout(request: Request) -> Response:
        sessions.close(request.cookies.get(_COOKIE))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(_COOKIE, path="/")
        return answer

    @app.get("/")
    def overview() -> HTMLResponse:
        return pages.render("overview", status=read_status(folder), problems=examine(folder))

    for name in ("sites", "network", "proposals", "transfers", "log"):
        app.get(f"/{name}")(pages.page(name))
    return app


class _Pages:
    """The pages, from templates that come with the package."""

    def __init__(self, folder: CoordinatorFolder) -> None:
        self._folder = folder
        self._consortium = read_settings(folder.settings).consortium
        self._log_key = load_log_key(folder)
        self._templates = Environment(
            loader=PackageLoader("synthedge_server"), autoescape=True, undefined=StrictUndefined
        )
        self._templates.filters["time"] = _for_people
        self.style = (Path(__file__).parent / "templates" / "style.css").read_text("utf-8")

    def render(self, name: str, status_code: int = 200, **values: Any) -> HTMLResponse:
        template = self._templates.get_template(f"{name}.html")
        text = template.render(
            page=name, consortium=self._consortium, now=when(system_clock()), **values
        )
        return HTMLResponse(text, status_code)

    def page(self, name: str) -> Callable[[], HTMLResponse]:
        """The handler of a page that reads the database."""
        values: Callable[[Connection, int], dict[str, Any]] = getattr(self, f"_{name}")

        def answer() -> HTMLResponse:
            with reading(self._folder) as engine, engine.connect() as connection:
                found = values(connection, system_clock())
            return self.render(name, **found)

        return answer

    def _sites(self, connection: Connection, now_ms: int) -> dict[str, Any]:
        return {"sites": list_sites(connection, now_ms)}

    def _network(self, connection: Connection, now_ms: int) -> dict[str, Any]:
        matches = list_matches(connection)
        network = draw(list_sites(connection, now_ms), matches, list_transfers(connection, now_ms))
        return {"network": network, "size": SIZE, "matches": matches}

    def _proposals(self, connection: Connection, now_ms: int) -> dict[str, Any]:
        return {"matches": list_matches(connection)}

    def _transfers(self, connection: Connection, now_ms: int) -> dict[str, Any]:
        return {
            "transfers": list_transfers(connection, now_ms),
            "withdrawals": list_withdrawals(connection, now_ms),
        }

    def _log(self, connection: Connection, now_ms: int) -> dict[str, Any]:
        table = store.events
        rows = connection.execute(select(table).order_by(table.c.id.desc()).limit(N_ENTRIES)).all()
        signed = signed_head(connection, self._log_key, self._consortium)
        return {
            "head": signed.checkpoint,
            "note": signed.note,
            "fingerprint": self._log_key.fingerprint,
            "entries": [
                {
                    "number": row.id,
                    "at": when(row.at_ms),
                    "actor": row.actor,
                    "action": row.action,
                    "subject": row.subject,
                    "detail": row.detail,
                }
                for row in rows
            ],
            "sites": [row for row in list_sites(connection, now_ms) if row.log_seen],
        }


def _for_people(text: str) -> str:
    """A time of `overview.when` without its letters; any other text as it is."""
    return _TIME.sub(r"\1 \2 UTC", text)


async def _form_value(request: Request, name: str) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return ""
    return parse_qs(body.decode("ascii", errors="replace")).get(name, [""])[0]
