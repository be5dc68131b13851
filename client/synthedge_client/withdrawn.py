"""Who withdrew at this donor, whatever its table says, and which tokens a notice was sent or carried out for."""

from collections.abc import Iterable

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.transfers import Transfer
from synthedge_protocols.errors import LifecycleError
from synthedge_protocols.purposes import overlaps

EVERY_PURPOSE = ""


def withdrawn_tags(connection: sa.Connection, purpose: str) -> set[bytes]:
    """Tags of the patients who withdrew by command, for one purpose or for every one.

    Parameters
    ----------
    purpose : str
        A DUO code: of the request whose rows are looked at.
    """
    rows = connection.execute(sa.select(store.withdrawn_patients)).all()
    return {
        row.patient_tag
        for row in rows
        if row.purpose == EVERY_PURPOSE or overlaps(row.purpose, purpose)
    }


def withdraw_tag(connection: sa.Connection, tag: bytes, purpose: str) -> None:
    """Write down that a patient withdrew; a second time changes nothing."""
    table = store.withdrawn_patients
    known = (table.c.patient_tag == tag) & (table.c.purpose == purpose)
    connection.execute(table.delete().where(known))
    connection.execute(
        table.insert().values(patient_tag=tag, purpose=purpose, at_ms=store.now_ms())
    )


def withdrawn_tokens(connection: sa.Connection) -> set[bytes]:
    """Tokens that a notice named to be purged."""
    return set(connection.execute(sa.select(store.withdrawn_tokens.c.token)).scalars())


def withdraw_tokens(connection: sa.Connection, tokens: Iterable[bytes], notice_id: bytes) -> None:
    """Write tokens down as withdrawn; those that are stay with their first notice."""
    known = withdrawn_tokens(connection)
    new = [token for token in tokens if token not in known]
    if new:
        connection.execute(
            store.withdrawn_tokens.insert(),
            [{"token": token, "notice_id": notice_id} for token in new],
        )


def refuse_withdrawn(connection: sa.Connection, transfer: Transfer) -> None:
    """Refuse to take in a transfer that a notice named while it was on its way.

    Raises
    ------
    LifecycleError
        If so: the coordinator ends it.
    """
    named = connection.execute(
        sa.select(store.withdrawals.c.notice_id).where(
            (store.withdrawals.c.role == "recipient")
            & (store.withdrawals.c.transfer_id == transfer.id)
        )
    ).first()
    if named is not None:
        raise LifecycleError(
            f"rows of transfer {transfer.short_id} were withdrawn while it was on its way; "
            "it waits for the coordinator to end it"
        )
