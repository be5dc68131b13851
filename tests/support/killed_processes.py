"""Real processes that do one thing each, and can be killed at a commit that moves a transfer.

Run as a program it is a workshop: it has imported everything, runs no thread, and forks a process for every line of
JSON on its standard input, so that a process costs what it does and not what it imports. Each child notes which
record of a transfer it moved, and kills itself with SIGKILL just before or just after the commit it was told to.
"""

import asyncio
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from synthedge_protocols.prepared import Prepared

COORDINATOR = "coordinator"
TIMEOUT_S = 60.0
WRITES_TRANSFERS = ("UPDATE transfers SET", "INSERT INTO transfers")
# A fork keeps no thread but its own.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Moves(threading.local):
    """What the transaction that is open in this thread has moved; another thread's reading ends none of it."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def take(self) -> list[tuple[str, str]]:
        made, self.made = self.made, []
        return made


class Watch:
    """Notes moves of transfers when they are committed; kills this process at one of them."""

    def __init__(self, party: str, record: Path, death: str) -> None:
        self._party = party
        self._record = record
        self._death = death
        self._moves = Moves()
        sa.event.listen(sa.Engine, "before_cursor_execute", self._notice)
        commit: Any = DefaultDialect.do_commit
        undo: Any = DefaultDialect.do_rollback

        def watched(dialect: Any, connection: Any) -> None:
            moves = self._moves.take()
            self._die(moves, "before")
            commit(dialect, connection)
            with self._record.open("a") as file:
                for move in moves:
                    file.write(" ".join((self._party, *move)) + "\n")
            self._die(moves, "after")

        def undone(dialect: Any, connection: Any) -> None:
            self._moves.take()
            undo(dialect, connection)

        run: Any = Prepared.run

        def noticed(prepared: Prepared, connection: Any, **values: Any) -> Any:
            # It runs past SQLAlchemy's events.
            if str(prepared._statement).startswith(WRITES_TRANSFERS):
                self._note(connection, values)
            return run(prepared, connection, **values)

        Prepared.run = noticed  # type: ignore[method-assign, assignment]
        DefaultDialect.do_commit = watched  # type: ignore[method-assign]
        DefaultDialect.do_rollback = undone  # type: ignore[method-assign]

    def _notice(
        self, connection: Any, cursor: Any, statement: str, _: Any, context: Any, __: bool
    ) -> None:
        if statement.startswith(WRITES_TRANSFERS):
            self._note(connection, context.compiled_parameters[0])

    def _note(self, connection: Any, values: dict[str, Any]) -> None:
        if "state" not in values:
            return
        before = connection.connection.cursor()
        before.execute("SELECT state FROM transfers")
        (source,) = before.fetchone() or ("PROPOSED",)
        self._moves.made.append((source, values["state"]))

    def _die(self, moves: list[tuple[str, str]], when: str) -> None:
        if any(f"{source}>{target}:{when}" == self._death for source, target in moves):
            os.kill(os.getpid(), signal.SIGKILL)


# ---- what a child does -----------------------------------------------------------------------------------------------


def serve(folder: Path, ready: Path, ahead_h: float) -> None:
    """Run the coordinator until killed."""
    from synthedge_server.folder import CoordinatorFolder
    from synthedge_server.serve import running

    def clock() -> int:
        return time.time_ns() // 1_000_000 + int(ahead_h * 3_600_000)

    async def run() -> None:
        async with running(CoordinatorFolder(folder), clock=clock):
            await asyncio.to_thread(ready.touch)
            await asyncio.Event().wait()

    asyncio.run(run())


def operate(folder: Path, what: str, site: str) -> None:
    """A command of the operator: ``revoke`` or ``recover`` a site."""
    from synthedge_server.folder import CoordinatorFolder
    from synthedge_server.operations import recover_site, set_site_state

    if what == "revoke":
        set_site_state(CoordinatorFolder(folder), site, "revoked")
    else:
        recover_site(CoordinatorFolder(folder), site)


def at_site(folder: Path, what: str, ahead_h: float) -> None:
    """One command, or one exchange, at a site; every walk has one transfer."""
    from sites import MALE_HIGH, steward
    from synthedge_client import accepting, asking, cancelling, divergence, donating, purging, store
    from synthedge_client.agent import run_once
    from synthedge_client.site import open_site
    from synthedge_client.transfers import list_transfers

    if ahead_h:
        now_ms = store.now_ms
        store.now_ms = lambda: now_ms() + int(ahead_h * 3_600_000)
    with open_site(folder) as site:
        if what == "exchange":
            run_once(site, site.connect())
            return
        if what == "recover":
            divergence.recover(site, steward())
            return
        with site.store.read() as connection:
            transfers = list_transfers(connection)
        if what == "ask":
            if transfers:
                return  # a steward who is unsure looks first
            asking.request(
                site,
                steward(),
                donor="south",
                grid=site.grid("sex x bp"),
                voxel=MALE_HIGH,
                rows=5,
                purpose="DUO:0000007",
            )
            return
        (transfer,) = transfers
        commands: dict[str, Callable[[], Any]] = {
            "prepare": lambda: donating.prepare(site, transfer, "ada"),
            "approve": lambda: donating.approve(site, transfer, steward()),
            "decline": lambda: donating.decline(site, transfer, steward(), "not now"),
            "cancel": lambda: cancelling.cancel(site, transfer, steward(), "found others"),
            "accept": lambda: accepting.accept(site, transfer, steward()),
            "refuse": lambda: accepting.refuse(site, transfer, steward(), "not plausible"),
            "purge": lambda: purging.purge_transfer(site, transfer, steward(), "study ended"),
        }
        commands[what]()


def _child(task: dict[str, Any]) -> int:
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    party, folder = task["party"], Path(task["folder"])
    Watch(party, Path(task["record"]), task["death"])
    try:
        if task["what"] == "serve":
            serve(folder, Path(task["ready"]), task["ahead_h"])
        elif party == COORDINATOR:
            operate(folder, *task["what"].split())
        else:
            at_site(folder, task["what"], task["ahead_h"])
    except BaseException:  # noqa: BLE001 - a forked child must not return into the workshop
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Fork a child for every line; answer with its exit status, or its id if it is to go on."""
    for package in ("synthedge_client", "synthedge_server"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if not module.name.startswith("cli"):
                importlib.import_module(f"{package}.{module.name}")
    importlib.import_module("sites")
    for line in sys.stdin:
        task = json.loads(line)
        if task["what"] == "end":
            os.kill(task["pid"], signal.SIGKILL)
            answer = os.waitpid(task["pid"], 0)[1]
        else:
            pid = os.fork()
            if pid == 0:
                os._exit(_child(task))
            if "ready" in task:
                answer = pid if _wait_until_ready(pid, Path(task["ready"])) else 0
            else:
                answer = -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait_until_ready(pid: int, ready: Path) -> bool:
    """Whether a child that goes on is ready; False if it died before."""
    end = time.monotonic() + TIMEOUT_S
    while not ready.exists():
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError(str(ready))
        time.sleep(0.01)
    return True


class Workshop:
    """The workshop, from outside."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONE_THREAD},
        )

    def ask(self, **task: Any) -> int:
        """Do one task: its exit status (9 if it was killed), or the id of a process that goes on (0: it died)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        answer: int = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT_S)
        self._process.stdout.close()


if __name__ == "__main__":
    main()
