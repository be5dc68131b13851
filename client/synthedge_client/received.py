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
    """How many of these rows this site has received in an earlier transfer."""
    return int(
        transaction.execute(
            sa.select(sa.func.count())
            .select_from(store.received)
            .where(store.received.c.row_tag.in_([_row_tag(site, row) for row in samples.values]))
        ).scalar_one()
    )


def _row_tag(site: Site, row: NDArray[np.float64]) -> bytes:
    return site.keys.tag(row.tobytes().hex())


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
                "sample": site.keys.encrypt(json.dumps(record).encode(), token),
                "row_tag": _row_tag(site, row),
            }
            for token, row, record in zip(samples.tokens, samples.values, records, strict=True)
        ],
    )


def load_samples(site: Site) -> pd.DataFrame:
    """All received samples in the site's own columns, units and codes, in the order they came.

    Returns
    -------
    DataFrame
        One row a sample; the column ``_donor`` names the site it came from.
    """
    with site.store.read() as transaction:
        rows = transaction.execute(
            sa.select(store.received.c.token, store.received.c.sample, store.transfers.c.peer)
            .join(store.transfers, store.transfers.c.transfer_id == store.received.c.transfer_id)
            .order_by(sa.literal_column("received.rowid"))
        ).all()
    return pd.DataFrame(
        [json.loads(site.keys.decrypt(r.sample, r.token)) | {"_donor": r.peer} for r in rows]
    )
