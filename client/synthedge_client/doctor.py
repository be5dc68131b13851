"""`synthedge site doctor`: everything that is wrong with a site, at once, with what to do."""

from pathlib import Path

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.connection_doctor import explain_connection
from synthedge_client.dictionaries import list_known
from synthedge_client.policies import list_policies
from synthedge_client.rotation import ends_soon
from synthedge_client.site import Site, open_site
from synthedge_client.site_table import examine_site_table
from synthedge_client.table_problems import Problem
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.errors import DeadlineError, ProtocolError, UnavailableError


def examine(folder: Path) -> list[Problem]:
    """Check keys, table, mapping, disclosure settings, peers and the connection.

    Raises
    ------
    TableError
        If there is no site in the folder.
    IdentityError
        If a key is missing or may be read by others.
    """
    with open_site(folder) as site:
        with site.store.read() as connection:
            store.require_fact(connection, "consortium")
        return [
            *_table(site),
            *_waiting_dictionary(site),
            *_disclosure(site),
            *_peers(site),
            *_keys(site),
            *_policies(site),
            *_connection(site),
        ]


def _keys(site: Site) -> list[Problem]:
    with site.store.read() as connection:
        found = ends_soon(connection, store.now_ms())
    return [Problem("sealing key", found, None, False)] if found else []


def _waiting_dictionary(site: Site) -> list[Problem]:
    """A version nobody accepted yet, and what of the table would not fit it."""
    with site.store.read() as connection:
        newest = list_known(connection)[-1]
    if newest.is_accepted:
        return []
    about = f"dictionary version {newest.version}"
    found = (
        "not accepted here, so nothing new is published; 'synthedge site dictionary show', then "
        "'synthedge site dictionary accept --steward NAME'"
    )
    problems = [Problem(about, found, None, False)]
    if newest.dictionary.digest != site.dictionary.digest:
        problems += [
            Problem(f"{about}: {p.about}", p.found, p.rows, False)
            for p in _table(site.under(newest.dictionary))
        ]
    return problems


def _table(site: Site) -> list[Problem]:
    try:
        return examine_site_table(site.settings, site.dictionary)[1]
    except SynthEdgeError as error:
        return [Problem(site.settings.data.name, str(error), None, True)]


def _disclosure(site: Site) -> list[Problem]:
    from synthedge_client.counting import effective_disclosure, reported_grids

    problems = [
        Problem(
            f"feature '{feature.name}'",
            f"privacy class '{feature.privacy or 'none'}' does not leave a site; no transfer holds it",
            None,
            False,
        )
        for feature in site.dictionary.features
        if not feature.is_shareable
    ]
    try:
        disclosure = effective_disclosure(site.dictionary.policy, site.settings.disclosure)
        absent = {name for name, column in site.settings.columns.items() if column.absent}
        present = set(site.dictionary.feature_names) - absent
        reported_grids(site.dictionary, present, disclosure)
    except SynthEdgeError as error:
        problems.append(Problem("[disclosure]", str(error), None, True))
    return problems


def _policies(site: Site) -> list[Problem]:
    return [
        Problem(
            f"standing policy {p['policy'][:12]}", f"is not in force: {p['problem']}", None, False
        )
        for p in list_policies(site)
        if p["problem"]
    ]


def _peers(site: Site) -> list[Problem]:
    with site.store.read() as connection:
        unverified = connection.execute(
            sa.select(store.peers.c.site).where(store.peers.c.verified_at_ms.is_(None))
        ).scalars()
        return [
            Problem(
                f"peer '{peer}'",
                f"key not compared; telephone the site, then 'synthedge site peers verify {peer} FINGERPRINT'",
                None,
                False,
            )
            for peer in unverified
        ]


def _connection(site: Site) -> list[Problem]:
    connection = site.connect()
    try:
        document = connection.dictionary()
    except (UnavailableError, DeadlineError) as error:
        causes = explain_connection(site.address, site.keys) or [str(error)]
        return [Problem("coordinator", cause, None, True) for cause in causes]
    except ProtocolError as error:
        return [Problem("coordinator", str(error), None, True)]
    finally:
        connection.close()
    with site.store.read() as store_connection:
        known = {one.dictionary.digest for one in list_known(store_connection)}
    if document.digest.hex() in known:
        return []
    found = (
        f"the coordinator has version {document.version}, which has not arrived here; run 'synthedge site run', "
        "or look at its inbox with 'synthedge site run --once'"
    )
    return [Problem("dictionary", found, None, True)]
