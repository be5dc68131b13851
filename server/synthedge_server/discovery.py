"""One round of discovery from its opening to its end: what `synthedge-coordinator discover` does."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from google.protobuf.message import DecodeError

from synthedge_protocols.discovery import Engine
from synthedge_protocols.errors import MalformedError, ProtocolError
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.writer import Writer
from synthedge_server import operations, store
from synthedge_server.broker import Broker
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.intake import Intake
from synthedge_server.ledger import Ledger, system_clock
from synthedge_server.log_heads import LogHeads, load_log_key
from synthedge_server.registries import Registries
from synthedge_server.relay import Spool
from synthedge_server.rounds import Outcome, close_round, n_waiting, open_round
from synthedge_server.settings import read_settings

_POLL_S: Final = 0.2


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
        As `open_round`.
    UnavailableError
        If Flower's SuperLink does not run.
    """
    operations.current_dictionary(folder)  # says so if this is no coordinator's folder
    asked = operations.change(folder, lambda t: open_round(t, engine, sites, timeout_s))
    unreached: Mapping[str, tuple[Outcome, str]] = {}
    _wait(folder, asked)
    found = operations.change(folder, lambda t: close_round(t, asked.round_id, unreached))
    return {
        "round": asked.round_id.hex(),
        "engine": engine,
        "dictionary": asked.dictionary_digest.hex(),
        "sites": found,
    }


def _wait(folder: CoordinatorFolder, asked: wire.DiscoveryRound) -> None:
    with operations.reading(folder) as engine:
        while system_clock() <= asked.deadline_ms:
            with engine.connect() as connection:
                if not n_waiting(connection, asked.round_id):
                    return
            time.sleep(_POLL_S)


@contextmanager
def taking_in(folder: CoordinatorFolder) -> Iterator[Callable[[str, bytes], None]]:
    """What takes in the bytes that came from one site's SuperNode, as `serve` would from its connection.

    It raises `ProtocolError` where the intake refuses; the refusal is on record then.
    """
    settings, limits, registries = read_settings(folder.settings), Limits(), Registries()
    engine = store.open_database(folder, settings)
    writer = Writer(engine)
    intake = Intake(
        settings.consortium,
        Ledger(engine, writer, Spool(folder.spool), system_clock),
        registries,
        Broker(registries, limits),
        LogHeads(settings.consortium, load_log_key(folder)),
        limits,
    )
    try:
        with asyncio.Runner() as runner:
            yield lambda site, data: runner.run(_submit(intake, site, data))
    finally:
        writer.close()
        engine.dispose()


async def _submit(intake: Intake, site: str, data: bytes) -> None:
    try:
        signed = pb.SignedStatement.FromString(data)
        await intake.submit(site, signed)
    except DecodeError:
        raise MalformedError(f"site '{site}' replied with bytes that are no statement") from None
    except ProtocolError as error:
        await intake.note_refusal(site, error)
        raise
