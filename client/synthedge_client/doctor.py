"""`synthedge site doctor`: everything that is wrong with a site, at once, with what to do."""

from pathlib import Path

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.site import Site, open_site
from synthedge_client.site_table import Problem, examine_site_table
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.errors import ProtocolError


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
        return [*_table(site), *_disclosure(site), *_peers(site), *_connection(site)]


def _table(site: Site) -> list[Problem]:
    try:
        return examine_site_table(site.settings, site.dictionary)[1]
    except SynthEdgeError as error:
        return [Problem(site.settings.data.name, str(error), None, True)]


def _disclosure(site: Site) -> list[Problem]:
    from synthedge_client.counting import effective_disclosure

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
        effective_disclosure(site.dictionary.policy, site.settings.disclosure)
    except SynthEdgeError as error:
        problems.append(Problem("[disclosure]", str(error), None, True))
    return problems


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
    except ProtocolError as error:
        return [Problem("coordinator", str(error), None, True)]
    finally:
        connection.close()
    if document.digest.hex() != site.dictionary.digest:
        return [
            Problem(
                "dictionary",
                f"this site accepted {site.dictionary.digest[:12]}, the coordinator has {document.digest.hex()[:12]}; "
                "ask the operator what changed",
                None,
                True,
            )
        ]
    return []
