"""Accounts a hospital owes: disclosures of a patient's data, records of processing, where a received row is from."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.exports import file_state
from synthedge_client.site import Site
from synthedge_client.transfers import Transfer, get_transfer, list_transfers, region_of
from synthedge_core.errors import UsageError
from synthedge_protocols.purposes import purpose_name
from synthedge_protocols.v1 import statements_pb2 as pb

ROW_DIGITS = 16
"""Hex digits of a received row's token that name it in files and on the command line."""


def disclosures(site: Site, patient: str | None = None) -> list[dict[str, Any]]:
    """Account for what left: date, recipient, description and purpose (45 CFR 164.528(b)(2)).

    Parameters
    ----------
    site : Site
    patient : str, optional
        Only what left of this patient, by the id of the site's own table.

    Returns
    -------
    list of dict
        One entry a transfer, oldest first; the patient's id is in none.
    """
    tag = None if patient is None else site.keys.tag(patient)
    table = store.disclosed
    with site.store.read() as connection:
        left = _left_at(connection)
        n_rows: dict[bytes, int] = {}
        for row in connection.execute(sa.select(table.c.transfer_id, table.c.patient_tag)):
            if tag is None or row.patient_tag == tag:
                n_rows[row.transfer_id] = n_rows.get(row.transfer_id, 0) + 1
        withdrawn = _n_withdrawn(connection, tag)
        return [
            {
                "date": left[transfer.id],
                "recipient": transfer.peer,
                "description": _description(site, transfer, n_rows[transfer.id]),
                "purpose": _purpose(transfer),
                "transfer_id": transfer.id.hex(),
                "state": transfer.state.value,
                "withdrawn": withdrawn.get(transfer.id, 0),
            }
            for transfer in list_transfers(connection)
            if transfer.role == "donor" and transfer.id in left and transfer.id in n_rows
        ]


def records_of_processing(site: Site) -> list[dict[str, str]]:
    """Records of processing activities, as far as this software can know them (GDPR, Article 30(1)).

    Returns
    -------
    list of dict
        ``heading`` and ``text``; what only the hospital knows is named as such.
    """
    dictionary = site.dictionary
    with site.store.read() as connection:
        transfers = list_transfers(connection)
        left = _left_at(connection)
    given = sorted({t.peer for t in transfers if t.role == "donor" and t.id in left})
    purposes = sorted({_purpose(transfer) for transfer in transfers})
    shared = [f"{f.name} ({f.privacy})" for f in dictionary.features if f.is_shareable]
    kept = [
        f"{f.name} ({f.privacy or 'no class'})" for f in dictionary.features if not f.is_shareable
    ]
    to_fill_in = "to be filled in by the hospital"
    entries = [
        ("controller", f"the hospital that runs site '{site.settings.id}'; {to_fill_in}"),
        ("data protection officer", to_fill_in),
        (
            "purposes",
            "finding groups of patients the hospital has too few of, and exchanging samples of such patients; "
            f"purposes of requests so far: {', '.join(purposes) or 'none'}",
        ),
        (
            "legal basis",
            f"patients' consent, looked at for every row before it leaves; {to_fill_in}",
        ),
        ("data subjects", "patients of the hospital's table; stewards who sign decisions"),
        (
            "personal data that may leave",
            f"pseudonymised rows of {', '.join(shared)} and the outcome '{dictionary.target.column}'",
        ),
        ("personal data that never leaves", ", ".join(["the patient's id", *kept])),
        (
            "recipients",
            f"samples: {', '.join(given) or 'nobody so far'}; protected gap reports: the coordinator of "
            f"'{site.consortium}', which can read no sample",
        ),
        ("third countries", to_fill_in),
        (
            "time limits",
            f"received rows are purged after at most {dictionary.policy.retention_days} days, withdrawn ones "
            f"at once and reported within {dictionary.policy.withdrawal_h:g} hours; this record and the audit log stay",
        ),
        (
            "security",
            "mutual TLS 1.3; samples sealed from site to site (HPKE ML-KEM-768 + X25519, AES-256-GCM); keys and "
            "received rows encrypted at rest; every decision signed by a steward; an audit log that cannot be "
            "changed unseen",
        ),
    ]
    return [{"heading": heading, "text": text} for heading, text in entries]


def list_received(site: Site) -> list[dict[str, Any]]:
    """Every received row that is here, in the order they came; no value of it."""
    with site.store.read() as connection:
        transfers = {t.id: t for t in list_transfers(connection) if t.role == "recipient"}
        rows = connection.execute(
            sa.select(store.received.c.token, store.received.c.transfer_id).order_by(
                sa.literal_column("received.rowid")
            )
        ).all()
        arrived = _arrived_at(connection)
    return [
        {
            "row": row_name(row.token),
            "donor": transfers[row.transfer_id].peer,
            "transfer_id": row.transfer_id.hex(),
            "arrived": arrived.get(row.transfer_id, ""),
            "until": _until(transfers[row.transfer_id], arrived.get(row.transfer_id, "")),
        }
        for row in rows
    ]


def trace(site: Site, typed: str) -> dict[str, Any]:
    """Where one received row is from, under which agreement, until when, and in which files it went.

    Parameters
    ----------
    site : Site
    typed : str
        The first digits of the row's name, as `list_received` and the column ``_row`` of files show it.

    Raises
    ------
    UsageError
        If no row, or more than one, is called that.
    """
    with site.store.read() as connection:
        here = dict(
            connection.execute(
                sa.select(store.received.c.token, store.received.c.transfer_id)
            ).all()
        )
        gone = set(connection.execute(sa.select(store.withdrawn_tokens.c.token)).scalars())
        gone |= set(connection.execute(sa.select(store.export_tokens.c.token)).scalars())
        named = [token for token in {*here, *gone} if token.hex().startswith(typed.lower())]
        if len(named) != 1 or not typed:
            raise UsageError(
                f"{len(named) if typed else 'no'} received rows are called '{typed[:32]}'; "
                "see 'synthedge site received list'"
            )
        (token,) = named
        files = _files_with(connection, token)
        if token not in here:
            return {
                "row": row_name(token),
                "state": "purged: the row is not here any more",
                "files": files,
            }
        transfer = get_transfer(connection, here[token])
        arrived = _arrived_at(connection).get(transfer.id, "")
        approval = connection.execute(
            sa.select(store.transfers.c.approval).where(
                store.transfers.c.transfer_id == transfer.id
            )
        ).scalar_one()
    grid, voxel = region_of(site.under(transfer.dictionary_digest), transfer.request)
    return {
        "row": row_name(token),
        "state": transfer.state.value,
        "donor": transfer.peer,
        "region": f"positive patients, {grid.label(voxel)}",
        "purpose": _purpose(transfer),
        "agreement": f"transfer {transfer.id.hex()}",
        "requested_by": _signer(transfer.signed_request),
        "approved_by": _signer(pb.SignedStatement.FromString(approval)) if approval else "",
        "arrived": arrived,
        "until": _until(transfer, arrived),
        "files": files,
    }


def row_name(token: bytes) -> str:
    """What a received row is called here; random, and known to its donor's ledger alone beside this site."""
    return token.hex()[:ROW_DIGITS]


def _left_at(connection: sa.Connection) -> dict[bytes, str]:
    """When the rows of each transfer had left: all sealed bytes were at the coordinator."""
    return _first(connection, ("transfer relayed", "transfer active", "transfer refused"))


def _arrived_at(connection: sa.Connection) -> dict[bytes, str]:
    return _first(connection, ("transfer delivered", "transfer active"))


def _first(connection: sa.Connection, what: tuple[str, ...]) -> dict[bytes, str]:
    table = store.events
    rows = connection.execute(
        sa.select(table.c.at_ms, table.c.details).where(table.c.what.in_(what)).order_by(table.c.id)
    )
    found: dict[bytes, str] = {}
    for row in rows:
        details = json.loads(row.details)
        found.setdefault(bytes.fromhex(details["transfer_id"]), store.when(row.at_ms))
    return found


def _n_withdrawn(connection: sa.Connection, tag: bytes | None) -> dict[bytes, int]:
    table = store.disclosed
    query = (
        sa.select(table.c.transfer_id, sa.func.count().label("n"))
        .join(store.withdrawn_tokens, store.withdrawn_tokens.c.token == table.c.token)
        .group_by(table.c.transfer_id)
    )
    if tag is not None:
        query = query.where(table.c.patient_tag == tag)
    return {row.transfer_id: row.n for row in connection.execute(query)}


def _description(site: Site, transfer: Transfer, n_rows: int) -> str:
    grid, voxel = region_of(site.under(transfer.dictionary_digest), transfer.request)
    return (
        f"{n_rows} pseudonymised row{'s' if n_rows != 1 else ''}, {grid.label(voxel)}: "
        f"{', '.join(transfer.request.features)} and the outcome"
    )


def _purpose(transfer: Transfer) -> str:
    return f"{transfer.request.purpose} ({purpose_name(transfer.request.purpose)})"


def _until(transfer: Transfer, arrived: str) -> str:
    if not arrived:
        return ""
    end = datetime.fromisoformat(arrived) + timedelta(days=transfer.request.retention_days)
    return end.astimezone(UTC).isoformat(timespec="seconds")


def _signer(signed: pb.SignedStatement) -> str:
    statement = pb.Statement.FromString(signed.statement)
    if not signed.HasField("certificate"):
        return f"site '{statement.signer_site}'"
    certificate = pb.Statement.FromString(signed.certificate.statement).payload
    steward = pb.StewardCertificate.FromString(certificate).steward
    return f"steward '{steward}' of site '{statement.signer_site}'"


def _files_with(connection: sa.Connection, token: bytes) -> list[dict[str, Any]]:
    rows = connection.execute(
        sa.select(store.exports)
        .join(store.export_tokens, store.export_tokens.c.export_id == store.exports.c.id)
        .where(store.export_tokens.c.token == token)
        .order_by(store.exports.c.id)
    ).all()
    return [
        {
            "file": row.path,
            "written": store.when(row.written_at_ms),
            "state": file_state(Path(row.path), row.sha256),
        }
        for row in rows
    ]
