"""Taking in, outside `serve`, what came of one site by another way than its own connection."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from google.protobuf.message import DecodeError
from sqlalchemy import Engine

from synthedge_protocols.errors import MalformedError, PolicyError, ProtocolError
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.writer import Writer
from synthedge_server import store
from synthedge_server.broker import Broker
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.intake import Intake
from synthedge_server.ledger import Ledger, system_clock
from synthedge_server.log_heads import LogHeads, load_log_key
from synthedge_server.registries import Registries
from synthedge_server.relay import Spool
from synthedge_server.settings import read_settings
from synthedge_server.standing import MAY_CALL, standing_of


@contextmanager
def taking_in(folder: CoordinatorFolder) -> Iterator[Callable[[str, bytes], None]]:
    """What takes in the bytes that came from one site's SuperNode, as `serve` would from its connection.

    It raises `ProtocolError` where the intake refuses, and for a site whose own calls would not be answered; that is
    on record then.
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
            yield lambda site, data: runner.run(_submit(intake, engine, site, data))
    finally:
        writer.close()
        engine.dispose()


async def _submit(intake: Intake, engine: Engine, site: str, data: bytes) -> None:
    try:
        with engine.connect() as connection:
            standing = standing_of(connection, site)
        if standing not in MAY_CALL:
            raise PolicyError(f"site '{site}' is {standing}")
        signed = pb.SignedStatement.FromString(data)
        await intake.submit(site, signed)
    except DecodeError:
        raise MalformedError(f"site '{site}' replied with bytes that are no statement") from None
    except ProtocolError as error:
        await intake.note_refusal(site, error)
        raise
