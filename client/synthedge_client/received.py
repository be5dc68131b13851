"""Received samples at rest: encrypted, in the site's own units and codes, each with where it came from."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray

from synthedge_client import store
from synthedge_client.site import Site
from synthedge_client.site_table import SiteTable
from synthedge_client.transfers import Transfer
from synthedge_protocols.lifecycle import State


@dataclass(frozen=True)
class ReceivedSamples:
    """Opened samples of one transfer.

    Attributes
    ----------
    tokens : list of bytes
        16 bytes a row.
    values : ndarray of shape (n_rows, n_features)
        Dictionary units; NaN = missing.
    """

    tokens: list[bytes]
    values: NDArray[np.float64]


def received_before(site: Site, transaction: sa.Connection, samples: ReceivedSamples) -> int:
    """How many of these rows, or of their tokens, this site has received in an earlier transfer."""
    rows = transaction.execute(sa.select(store.received.c.row_tag, store.received.c.token)).all()
    known = {row.row_tag for row in rows} | {row.token for row in rows}
    return sum(
        token in known or _row_tag(site, row) in known
        for token, row in zip(samples.tokens, samples.values, strict=True)
    )


def _row_tag(site: Site, row: NDArray[np.float64]) -> bytes:
    # NaN has many bit patterns and zero two: one each.
    return site.keys.tag((np.where(np.isnan(row), np.nan, row) + 0.0).tobytes().hex())


def keep_samples(
    site: Site,
    transaction: sa.Connection,
    transfer: Transfer,
    table: SiteTable,
    samples: ReceivedSamples,
) -> None:
    """Store samples in the site's own units, encrypted."""
    records = table.to_own_rows(samples.values).to_dict(orient="records")
    transaction.execute(
        store.received.insert(),
        [
            {
                "token": token,
                "transfer_id": transfer.id,
                "sample": site.keys.encrypt(json.dumps(record).encode(), b"sample" + token),
                "row_tag": _row_tag(site, row),
            }
            for token, row, record in zip(samples.tokens, samples.values, records, strict=True)
        ],
    )


def delete_samples(transaction: sa.Connection, transfer: Transfer) -> int:
    """Delete what one transfer brought; return how many rows."""
    deleted = transaction.execute(
        store.received.delete().where(store.received.c.transfer_id == transfer.id)
    )
    return deleted.rowcount


def load_samples(site: Site) -> pd.DataFrame:
    """All received samples that are active, in the site's own columns, units and codes, in the order they came.

    Returns
    -------
    DataFrame
        One row a sample; the column ``_donor`` names the site it came from.
    """
    with site.store.read() as transaction:
        rows = transaction.execute(
            sa.select(store.received.c.token, store.received.c.sample, store.transfers.c.peer)
            .join(store.transfers, store.transfers.c.transfer_id == store.received.c.transfer_id)
            .where(store.transfers.c.state == State.ACTIVE.value)
            .order_by(sa.literal_column("received.rowid"))
        ).all()
    return pd.DataFrame(
        [
            json.loads(site.keys.decrypt(r.sample, b"sample" + r.token)) | {"_donor": r.peer}
            for r in rows
        ]
    )
