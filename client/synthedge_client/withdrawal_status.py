"""What a site's withdrawals have come to, overdue ones first: for `status`, `withdrawals` and the audit."""

import json
from typing import Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.exports import list_exports
from synthedge_client.site import Site
from synthedge_client.standing import own_standing
from synthedge_client.withdrawals import missing_patients
from synthedge_core.errors import TableError
from synthedge_protocols.withdrawal import NoticeState, is_overdue


def describe_withdrawals(site: Site) -> list[dict[str, Any]]:
    """One entry a notice, sent or taken in: overdue first, then open, then settled; oldest first in each."""
    now, limit_h = store.now_ms(), site.dictionary.policy.withdrawal_h
    with site.store.read() as connection:
        rows = connection.execute(
            sa.select(store.withdrawals).order_by(
                store.withdrawals.c.since_ms, store.withdrawals.c.notice_id
            )
        ).all()
    described = [
        {
            "notice_id": row.notice_id.hex(),
            "transfer_id": row.transfer_id.hex(),
            "role": row.role,
            "peer": row.peer,
            "state": row.state,
            "overdue": is_overdue(NoticeState(row.state), row.since_ms, now, limit_h),
            "rows": row.rows,
            "reason": row.reason or "",
            "since": store.when(row.since_ms),
            "settled": store.when(row.settled_at_ms),
            "problem": row.problem or "",
            "report": None if row.report is None else json.loads(row.report),
        }
        for row in rows
    ]
    return sorted(described, key=lambda d: (not d["overdue"], d["state"] != NoticeState.NOTIFIED))


def withdrawal_summary(site: Site) -> dict[str, Any]:
    """What `synthedge site status` says of withdrawals, files and standing; only what is not as it should be."""
    described = describe_withdrawals(site)
    with site.store.read() as connection:
        files = [f for f in list_exports(connection) if f["holds"] and f["state"] != "gone"]
        standing = own_standing(connection)
        peers = connection.execute(
            sa.select(store.peers.c.site, store.peers.c.standing)
            .where(store.peers.c.standing.is_not(None))
            .order_by(store.peers.c.site)
        ).all()
    waiting = [d for d in described if d["state"] == NoticeState.NOTIFIED]
    return {
        "withdrawals_overdue": [in_words(d) for d in waiting if d["overdue"]],
        "withdrawals_open": [in_words(d) for d in waiting if not d["overdue"]],
        "files_to_delete": [f"{f['path']} holds {f['holds']}" for f in files],
        "delivered_patients_not_in_table": _missing(site),
        "standing": standing.value,
        "peers_standing": {row.site: row.standing for row in peers},
    }


def in_words(entry: dict[str, Any]) -> str:
    """One notice in a line."""
    what = "sent to" if entry["role"] == "donor" else "of"
    late = "OVERDUE: " if entry["overdue"] else ""
    problem = f": {entry['problem']}" if entry["problem"] else ""
    return (
        f"{late}withdrawal {entry['notice_id'][:12]} {what} '{entry['peer']}', transfer "
        f"{entry['transfer_id'][:12]}, since {entry['since']}{problem}"
    )


def _missing(site: Site) -> int | str:
    try:
        return missing_patients(site)
    except TableError:
        return "the table cannot be read"
