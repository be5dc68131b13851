"""The keys that sites' Flower SuperNodes run under, as the sites announced them."""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from sqlalchemy import Connection, delete, insert, select

from synthedge_protocols.errors import MalformedError, PolicyError
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.ledger import Transaction
from synthedge_server.rounds import ASKED


def accept_node(transaction: Transaction, verified: Verified[pb.FlowerNode]) -> None:
    """Note a site's SuperNode key in place of an earlier one; the next Flower round registers it.

    Raises
    ------
    MalformedError
        If it is no public key on the curve P-384.
    PolicyError
        If another site announced the same key: a reply could not be told apart.
    """
    public_key = verified.payload.public_key
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise MalformedError(
            f"site '{verified.site}' announced a SuperNode key that is none of the curve P-384"
        )
    table, connection = store.flower_nodes, transaction.connection
    connection.execute(delete(table).where(table.c.site == verified.site))
    taken = connection.execute(select(table.c.site).where(table.c.public_key == public_key)).first()
    if taken is not None:
        raise PolicyError(f"the SuperNode key of site '{verified.site}' is another site's")
    connection.execute(
        insert(table).values(
            site=verified.site,
            public_key=public_key,
            statement=verified.signed.SerializeToString(),
            announced_at_ms=transaction.now_ms,
        )
    )


def announced_keys(connection: Connection) -> dict[str, bytes]:
    """Site to its SuperNode's public key, PEM, of every site that may be asked."""
    table, sites = store.flower_nodes, store.sites
    rows = connection.execute(
        select(table.c.site, table.c.public_key)
        .join(sites, sites.c.site == table.c.site)
        .where(sites.c.state.in_([standing.value for standing in ASKED]))
    )
    return {
        row.site: load_der_public_key(row.public_key).public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        for row in rows
    }
