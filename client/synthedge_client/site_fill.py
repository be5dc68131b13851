"""A site's own fill: own rows, the rows it received, and synthetic rows drawn around those, one for one.

The synthetic rows come from a copula on the received rows and the own positives nearest to them: measured, that adds
to what the received rows bring; without received rows it adds nothing, so a site that received nothing gets no
synthetic row here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from synthedge_client import store
from synthedge_client.accounts import row_name
from synthedge_client.harmonise import harmonise_received
from synthedge_client.purging import require_current
from synthedge_client.received import load_with_tokens
from synthedge_client.received_files import check_output, write_table
from synthedge_client.site import Site
from synthedge_client.site_table import load_site_table
from synthedge_client.tables import whole_numbers
from synthedge_core.dictionary import Dictionary
from synthedge_core.frame import Frame

FloatArray = NDArray[np.float64]

# How many own positives nearest to the received rows join them, at the most as many as were received.
OWN_NEAR_SHARE = 0.5


def fill_site(site: Site, output: Path, seed: int, *, harmonise: bool = False) -> dict[str, Any]:
    """Write the filled table.

    Parameters
    ----------
    site : Site
    output : Path
        A CSV file; replaced only when the new one is complete.
    seed : int
        Makes the synthetic rows repeatable.
    harmonise : bool
        Match the received measurements' location and scale to this site's own; see `harmonise`.

    Returns
    -------
    dict
        Counts of observed, received and synthetic rows, and notes for the user.

    Raises
    ------
    UsageError
        If the output would replace the site's own table, or its folder is not there.
    RefusedError
        If a withdrawal of received rows waits, or may wait in an inbox that was not read for too long.
    """
    check_output(site, output)
    require_current(site)
    table = load_site_table(site.settings, site.dictionary)
    received, tokens = load_with_tokens(site)
    parts = [whole_numbers(table.own).assign(_origin="observed", _donor="", _row="")]
    notes: list[str] = []
    n_synthetic = 0
    if len(received) and harmonise:
        received, changed = harmonise_received(site, table, received, tokens)
        notes.append(
            f"Matched to this site's own location and scale: {', '.join(changed) or 'nothing'}."
        )
    if len(received):
        names = [row_name(token) for token in tokens]
        parts.append(whole_numbers(received, complete=True).assign(_origin="received", _row=names))
        # scikit-learn takes a second to load: only a site that received something waits for it.
        from synthedge_core.fill_copula import copula_rows
        from synthedge_core.fill_schema import RowSchema

        near = neighbourhood(
            table.from_own_rows(received), table.values[table.positive], table.dictionary
        )
        drawn = copula_rows(
            near, len(received), RowSchema.of_features(site.dictionary.features), seed=seed
        )
        n_synthetic = len(drawn)
        made = whole_numbers(table.to_own_rows(drawn), complete=True)
        parts.append(made.assign(_origin="synthetic", _donor="", _row=""))
        notes.append(
            "Synthetic rows are drawn around the received ones; models may leave them out."
        )
    else:
        notes.append(
            "Nothing was received, so nothing was filled: synthetic rows alone did not help."
        )
    # As objects: else an own column of whole numbers would be written as fractions beside missing cells.
    filled = pd.concat([part.astype(object) for part in parts], ignore_index=True)
    write_table(site, filled, output, "fill", tokens)
    result = {
        "output": str(output),
        "observed": len(table.own),
        "received": len(received),
        "synthetic": n_synthetic,
        "notes": notes,
    }
    with site.store.write() as connection:
        store.record(
            connection,
            "filled",
            "data manager",
            **{k: result[k] for k in ("received", "synthetic")},
        )
    return result


def neighbourhood(
    received: FloatArray, positives: FloatArray, dictionary: Dictionary
) -> FloatArray:
    """Received rows and the own positives nearest to their middle.

    Parameters
    ----------
    received : ndarray of shape (n_received, n_features)
        Dictionary units.
    positives : ndarray of shape (n_positives, n_features)
        The site's own positive rows, dictionary units.
    dictionary : Dictionary

    Returns
    -------
    ndarray of shape (n_near, n_features)
        `received` first; at least 2 rows whenever there are 2 at all.
    """
    frame = Frame(dictionary)
    z_own, z_received = frame.transform(positives), frame.transform(received)
    # A missing coordinate says nothing about distance: it counts neither in the middle nor in the sum.
    n_known = np.maximum((~np.isnan(z_received)).sum(axis=0), 1)
    middle = np.nansum(z_received, axis=0) / n_known
    distance = np.nansum((z_own - middle) ** 2, axis=1)
    n_near = max(2, round(OWN_NEAR_SHARE * len(received)))
    return np.vstack([received, positives[np.argsort(distance, kind="stable")[:n_near]]])
