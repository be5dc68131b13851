"""Received samples at rest: encrypted, in the site's own units and codes, each with where it came from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from synthedge_client import store
from synthedge_client.exports import mark_exports
from synthedge_client.site import Site
from synthedge_client.site_table import SiteTable
from synthedge_client.transfers import Transfer
from synthedge_client.withdrawn import withdrawn_tokens
from synthedge_protocols.lifecycle import State

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ReceivedSamples:
    """Opened samples of one transfer.

    Attributes
    ----------
    tokens : list of bytes
        16 bytes a row.
    values : ndarray of shape (n_rows, n_features)
        Dictionary units; NaN = missing.
    coarsened : tuple of str
        Features whose values are centres of the dictionary's intervals.
    """

    tokens: list[bytes]
    values: NDArray[np.float64]
    coarsened: tuple[str, ...] = ()

    def only(self, kept: NDArray[np.bool_]) -> "ReceivedSamples":
        """Some of the rows; `kept` has shape (n_rows,)."""
        tokens = [token for token, is_kept in zip(self.tokens, kept, strict=True) if is_kept]
        return replace(self, tokens=tokens, values=self.values[kept])


def received_before(site: Site, transaction: sa.Connection, samples: ReceivedSamples) -> int:
    """How many of these rows, or of their tokens, came in an earlier transfer or were withdrawn."""
    rows = transaction.execute(sa.select(store.received.c.row_tag, store.received.c.token)).all()
    known = {row.row_tag for row in rows} | {row.token for row in rows}
    known |= withdrawn_tokens(transaction)
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


def received_values(
    site: Site, transaction: sa.Connection, table: SiteTable
) -> NDArray[np.float64]:
    """Every received row that is here, active or not yet decided on, in dictionary units.

    Returns
    -------
    ndarray of shape (n_rows, n_features)
    """
    import pandas as pd

    rows = transaction.execute(sa.select(store.received.c.token, store.received.c.sample)).all()
    if not rows:
        return np.empty((0, table.values.shape[1]))
    samples = [json.loads(site.keys.decrypt(r.sample, b"sample" + r.token)) for r in rows]
    return table.from_own_rows(pd.DataFrame(samples))


def replace_sample(
    site: Site,
    transaction: sa.Connection,
    table: SiteTable,
    token: bytes,
    values: NDArray[np.float64],
) -> None:
    """Put a corrected row in the place of the one with its token.

    Parameters
    ----------
    values : ndarray of shape (1, n_features)
        Dictionary units.
    """
    (record,) = table.to_own_rows(values).to_dict(orient="records")
    transaction.execute(
        store.received.update()
        .where(store.received.c.token == token)
        .values(
            sample=site.keys.encrypt(json.dumps(record).encode(), b"sample" + token),
            row_tag=_row_tag(site, values[0]),
        )
    )


def all_tokens(transaction: sa.Connection) -> set[bytes]:
    """Tokens of every received row that is here."""
    return set(transaction.execute(sa.select(store.received.c.token)).scalars())


def tokens_of(transaction: sa.Connection, transfer: Transfer) -> list[bytes]:
    """Tokens of the rows that one transfer brought and that are still here."""
    return list(
        transaction.execute(
            sa.select(store.received.c.token).where(store.received.c.transfer_id == transfer.id)
        ).scalars()
    )


def delete_samples(
    transaction: sa.Connection,
    transfer: Transfer,
    tokens: Sequence[bytes] | None = None,
    *,
    holds: str = "purged rows",
) -> int:
    """Delete what one transfer brought, and mark the files that were written with it; return how many rows.

    Parameters
    ----------
    tokens : sequence of bytes, optional
        Only these rows of it.
    holds : str
        What the files hold from now on.
    """
    here = tokens_of(transaction, transfer)
    gone = here if tokens is None else [token for token in here if token in set(tokens)]
    # Overwritten in the file too: who finds the disk and the site's secret later finds nothing.
    transaction.exec_driver_sql("PRAGMA secure_delete = ON")
    if gone:
        transaction.execute(
            store.received.delete().where(store.received.c.token == sa.bindparam("gone")),
            [{"gone": token} for token in gone],
        )
    mark_exports(transaction, gone if tokens is None else tokens, holds)
    return len(gone)


def load_samples(site: Site) -> "pd.DataFrame":
    """All received samples that are active, in the site's own columns, units and codes, in the order they came.

    Returns
    -------
    DataFrame
        One row a sample; the column ``_donor`` names the site it came from.
    """
    return load_with_tokens(site)[0]


def load_with_tokens(site: Site) -> "tuple[pd.DataFrame, list[bytes]]":
    """The same with the rows' tokens, in the same order."""
    import pandas as pd

    with site.store.read() as transaction:
        rows = transaction.execute(
            sa.select(store.received.c.token, store.received.c.sample, store.transfers.c.peer)
            .join(store.transfers, store.transfers.c.transfer_id == store.received.c.transfer_id)
            .where(store.transfers.c.state == State.ACTIVE.value)
            .order_by(sa.literal_column("received.rowid"))
        ).all()
    samples = [
        json.loads(site.keys.decrypt(r.sample, b"sample" + r.token)) | {"_donor": r.peer}
        for r in rows
    ]
    return pd.DataFrame(samples), [r.token for r in rows]
