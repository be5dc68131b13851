"""What waits at a site, and for whom: the models behind `status`, `requests list` and `requests show`."""

from typing import Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.dictionaries import standing
from synthedge_client.divergence import frozen_reason
from synthedge_client.donating import eligible_rows
from synthedge_client.log_heads import alarms
from synthedge_client.releases import FROZEN, report_state, state_in_words
from synthedge_client.site import Site
from synthedge_client.site_table import load_site_table
from synthedge_client.transfers import Transfer, find_transfer, list_transfers, region_of
from synthedge_client.withdrawal_status import withdrawal_summary
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.lifecycle import State
from synthedge_protocols.purposes import purpose_name

# Who has to do something next, by state, from the site's own point of view.
_WAITS_FOR = {
    State.REQUESTED: {"donor": "our steward: requests prepare", "recipient": "the donor's steward"},
    State.PREPARED: {"donor": "our steward: requests approve"},
    State.APPROVED: {"donor": "our agent", "recipient": "the donor's agent"},
    State.SEALED: {"donor": "our agent"},
    State.RELAYED: {"donor": "the recipient", "recipient": "our agent"},
    State.DELIVERED: {"recipient": "our agent"},
}


def summarise(site: Site) -> dict[str, Any]:
    """Counts of what waits."""
    with site.store.read() as connection:
        transfers = list_transfers(connection)
        unsent = _count(connection, store.outbox, store.outbox.c.sent_at_ms.is_(None))
        refusals = connection.execute(
            sa.select(store.outbox.c.kind, store.outbox.c.refusal)
            .where(store.outbox.c.refusal.is_not(None))
            .order_by(store.outbox.c.id)
        ).all()
        unverified = _count(connection, store.peers, store.peers.c.verified_at_ms.is_(None))
        refused_peers = _count(connection, store.peers, store.peers.c.problem.is_not(None))
        n_peers = _count(connection, store.peers, sa.true())
        dictionary = standing(connection)
        log_alarms = [alarm["what"] for alarm in alarms(connection)]
        n_hints = _count(connection, store.hints, store.hints.c.kind == "profile")
        reports_sent = _count(
            connection,
            store.outbox,
            (store.outbox.c.kind == "gap-report") & store.outbox.c.sent_at_ms.is_not(None),
        )
    with site.store.read() as connection:
        frozen = frozen_reason(connection)
    return {
        "site": site.settings.id,
        "frozen": frozen or "no",
        "consortium": site.consortium,
        "fingerprint": site.fingerprint,
        "certificate_expires": site.keys.certificate_expires.isoformat(),
        "dictionary": dictionary,
        "peers": n_peers,
        "peers_unverified": unverified,
        "peers_refused": refused_peers,
        "outbox_waiting": unsent - len(refusals),
        "outbox_refused": [f"{row.kind}: {row.refusal}" for row in refusals],
        "reports_sent": reports_sent,
        "profile_received": n_hints > 0,
        "report": _report(site),
        "waiting_for_us": sum("our steward" in _waits_for(t) for t in transfers),
        "transfers": {t.short_id: t.state.value for t in transfers},
        "problems": {t.short_id: t.problem for t in transfers if t.problem},
        "log_alarms": log_alarms,
        **withdrawal_summary(site),
    }


def _report(site: Site) -> str:
    """Whether the published gap report still describes the data; a table that cannot be read is no reason to fail."""
    with site.store.read() as connection:
        frozen = store.get_fact(connection, FROZEN)
    if frozen is not None:
        return frozen
    try:
        return state_in_words(report_state(site))
    except SynthEdgeError as error:
        return str(error)


def _count(connection: sa.Connection, table: sa.Table, where: sa.ColumnElement[bool]) -> int:
    return int(
        connection.execute(sa.select(sa.func.count()).select_from(table).where(where)).scalar_one()
    )


def _waits_for(transfer: Transfer) -> str:
    if transfer.state is State.PREPARED and not transfer.has_manifest:
        return "our steward: requests prepare"  # it was taken back after an approval
    if transfer.state is State.DELIVERED and transfer.gate:
        return "our steward: requests accept or refuse"
    return _WAITS_FOR.get(transfer.state, {}).get(transfer.role, "")


def describe_transfers(site: Site) -> list[dict[str, Any]]:
    """One entry a transfer, oldest first."""
    with site.store.read() as connection:
        transfers = list_transfers(connection)
        here: dict[bytes, int] = dict(
            connection.execute(
                sa.select(store.received.c.transfer_id, sa.func.count()).group_by(
                    store.received.c.transfer_id
                )
            ).all()
        )
    described = []
    for transfer in transfers:
        grid, voxel = region_of(site.under(transfer.dictionary_digest), transfer.request)
        described.append(
            {
                "transfer_id": transfer.id.hex(),
                "role": transfer.role,
                "peer": transfer.peer,
                "region": grid.label(voxel),
                "rows_asked": transfer.request.rows,
                "rows": transfer.rows if transfer.rows is not None else transfer.request.rows,
                "rows_here": here.get(transfer.id, 0),
                "purpose": transfer.request.purpose,
                "state": transfer.state.value,
                "reason": transfer.reason or "",
                "problem": transfer.problem or "",
                "waits_for": _waits_for(transfer),
            }
        )
    return described


def _sent_before(site: Site, transfer: Transfer) -> list[str]:
    """What this recipient got, or may have got, in other transfers."""
    with site.store.read() as connection:
        others = [
            t
            for t in list_transfers(connection)
            if t.role == "donor" and t.peer == transfer.peer and t.id != transfer.id
        ]
        counts: dict[bytes, int] = dict(
            connection.execute(
                sa.select(store.disclosed.c.transfer_id, sa.func.count()).group_by(
                    store.disclosed.c.transfer_id
                )
            ).all()
        )
    said = []
    for other in others:
        n_rows = counts.get(other.id, 0)
        if n_rows:
            grid, voxel = region_of(site.under(other.dictionary_digest), other.request)
            said.append(f"{n_rows} rows, {grid.label(voxel)}, {other.state.value}")
    return said


def describe_request(site: Site, typed: str) -> dict[str, Any]:
    """Everything a steward weighs before deciding about one request."""
    with site.store.read() as connection:
        transfer = find_transfer(connection, typed)
        peer_verified = connection.execute(
            sa.select(store.peers.c.verified_at_ms).where(store.peers.c.site == transfer.peer)
        ).scalar_one()
        before = connection.execute(
            sa.select(sa.func.count())
            .select_from(store.disclosed)
            .where(
                (store.disclosed.c.recipient == transfer.peer)
                & (store.disclosed.c.transfer_id != transfer.id)
            )
        ).scalar_one()
    site = site.under(transfer.dictionary_digest)
    grid, voxel = region_of(site, transfer.request)
    request = transfer.request
    details: dict[str, Any] = {
        "transfer_id": transfer.id.hex(),
        "recipient": request.recipient,
        "donor": request.donor,
        "keys_compared": "yes" if peer_verified else "NO: run 'peers verify' first",
        "purpose": f"{request.purpose} {purpose_name(request.purpose)}",
        "region": f"positive patients, {grid.label(voxel)}",
        "features": ", ".join(request.features),
        "rows_asked": request.rows,
        "retention_days": request.retention_days,
        "state": transfer.state.value,
        "reason": transfer.reason or "",
        "problem": transfer.problem or "",
        "waits_for": _waits_for(transfer),
    }
    if transfer.role == "donor":
        table = load_site_table(site.settings, site.dictionary)
        with site.store.read() as connection:
            details["eligible_patients"] = len(eligible_rows(site, connection, table, transfer))
        details["rows_sent_before"] = before
        details["sent_before"] = _sent_before(site, transfer)
    else:
        details["accepted_by_itself"] = "yes" if request.accept_if_gate_passes else "no"
        details["gate"] = transfer.gate or ""
    return details
