"""One round of discovery from its opening to its end: what `synthedge-coordinator discover` does."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from synthedge_core.errors import RefusedError
from synthedge_protocols.discovery import Engine
from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.flower_app import prepare_flower
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server import operations
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import system_clock
from synthedge_server.locks import alone
from synthedge_server.rounds import Outcome, close_round, n_waiting, open_round
from synthedge_server.settings import read_settings

_POLL_S: Final = 0.2
# What an engine knows of sites whose answer did not come.
_Unreached = Mapping[str, tuple[Outcome, str]]


def run_round(
    folder: CoordinatorFolder, engine: Engine, sites: Iterable[str] | None, timeout_s: float
) -> dict[str, Any]:
    """Open a round, wait for the answers, close it; beside a running `serve`, which takes the channel's answers in.

    Returns
    -------
    dict
        ``round``, ``engine``, ``dictionary``, ``sites``: the outcomes.

    Raises
    ------
    UsageError, RefusedError
        As `open_round`; also if another Flower round runs.
    UnavailableError
        If nothing serves the folder, or Flower's SuperLink does not run or went away: whoever answered before stays
        answered.
    """
    operations.current_dictionary(folder)  # says so if this is no coordinator's folder
    if engine == "channel":
        _refuse_unserved(folder)
        return _run(folder, engine, sites, timeout_s, lambda asked: _wait(folder, asked))
    prepare_flower()
    from synthedge_server import flower_run

    with flower_run.ready(folder) as link:
        return _run(
            folder, engine, sites, timeout_s, lambda asked: flower_run.carry(folder, link, asked)
        )


def _run(
    folder: CoordinatorFolder,
    engine: Engine,
    sites: Iterable[str] | None,
    timeout_s: float,
    carry: Callable[[wire.DiscoveryRound], _Unreached],
) -> dict[str, Any]:
    asked = operations.change(folder, lambda t: open_round(t, engine, sites, timeout_s))
    try:
        unreached = carry(asked)
    except UnavailableError:
        operations.change(folder, lambda t: close_round(t, asked.round_id, {}))
        raise
    found = operations.change(folder, lambda t: close_round(t, asked.round_id, unreached))
    return {
        "round": asked.round_id.hex(),
        "engine": engine,
        "dictionary": asked.dictionary_digest.hex(),
        "sites": found,
    }


def _refuse_unserved(folder: CoordinatorFolder) -> None:
    """Answers over the channel reach `serve` and nobody else; on PostgreSQL it may run on another machine."""
    if read_settings(folder.settings).database is None:
        with suppress(RefusedError), alone(folder):
            raise UnavailableError(
                f"no coordinator runs on {folder.path}, so no site can answer; start 'synthedge-coordinator serve'"
            )


def _wait(folder: CoordinatorFolder, asked: wire.DiscoveryRound) -> _Unreached:
    with operations.reading(folder) as engine:
        while system_clock() <= asked.deadline_ms:
            with engine.connect() as connection:
                if not n_waiting(connection, asked.round_id):
                    break
            time.sleep(_POLL_S)
    return {}
