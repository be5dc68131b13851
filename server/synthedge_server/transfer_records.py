"""Looking transfers up, always on behalf of a site that has a part in them."""

from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, select

from synthedge_protocols.errors import LifecycleError
from synthedge_protocols.lifecycle import Party, State
from synthedge_protocols.prepared import Prepared
from synthedge_server import store
from synthedge_server.relay import spool_key

_TRANSFER: Final = Prepared(
    select(store.transfers).where(store.transfers.c.transfer_id == bindparam("of_transfer"))
)
_UPLOAD: Final = Prepared(
    select(store.uploads).where(store.uploads.c.transfer_id == bindparam("of_transfer"))
)
_STATE: Final = Prepared(
    select(store.sites.c.state).where(store.sites.c.site == bindparam("of_site"))
)


def find_transfer(connection: Connection, identifier: bytes) -> Row[Any] | None:
    """Row of `store.transfers`, if there is one."""
    row: Row[Any] | None = _TRANSFER.one(connection, of_transfer=identifier)
    return row


def upload_of(connection: Connection, identifier: bytes) -> Row[Any] | None:
    """Row of `store.uploads` of a transfer, if a shipment is registered."""
    row: Row[Any] | None = _UPLOAD.one(connection, of_transfer=identifier)
    return row


def transfer_of(
    connection: Connection, identifier: bytes, site: str, party: Party | None
) -> Row[Any]:
    """Row of `store.transfers` in which the site has a part.

    Parameters
    ----------
    connection : Connection
    identifier : bytes
        The transfer's id, as a peer sent it.
    site : str
        Who asks, as authenticated.
    party : Party or None
        DONOR or RECIPIENT: which part it must have; None for either.

    Raises
    ------
    LifecycleError
        With one text whether the transfer does not exist or belongs to others.
    """
    row = find_transfer(connection, identifier)
    parts = {} if row is None else {Party.DONOR: row.donor, Party.RECIPIENT: row.recipient}
    if row is None or site not in (parts.values() if party is None else [parts[party]]):
        part = "no part" if party is None else f"no part as {party.value}"
        raise LifecycleError(f"site '{site}' has {part} in a transfer {identifier.hex()[:8]}")
    return row


def waiting_for(connection: Connection, identifier: bytes, site: str) -> Row[Any]:
    """Row of a transfer whose sealed bytes are all here for the site.

    Raises
    ------
    LifecycleError
        If the site is not the recipient, or nothing waits for it.
    """
    row = transfer_of(connection, identifier, site, Party.RECIPIENT)
    if State(row.state) not in (State.RELAYED, State.DELIVERED):
        raise LifecycleError(f"transfer {short_id(row)} is {row.state}: nothing waits here for it")
    return row


def site_state(connection: Connection, site: str) -> str | None:
    """State of a site: active, suspended or revoked; None if it never enrolled."""
    row = _STATE.one(connection, of_site=site)
    return None if row is None else str(row.state)


def short_id(row: Row[Any]) -> str:
    """Name a transfer in messages: the first eight hex digits of its id."""
    identifier: bytes = row.transfer_id
    return identifier.hex()[:8]


def spool_keys(connection: Connection, *, complete: bool = False) -> set[bytes]:
    """Spool keys of the uploads on record: of all, or of those that are complete."""
    table = store.uploads
    query = select(table.c.transfer_id, table.c.ciphertext_digest)
    if complete:
        query = query.where(table.c.completed_at_ms.is_not(None))
    return {spool_key(row.transfer_id, row.ciphertext_digest) for row in connection.execute(query)}
