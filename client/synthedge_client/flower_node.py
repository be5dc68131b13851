"""What makes a site a Flower node: the key of its SuperNode, which it announces, and the one app it answers to."""

import hashlib
import re
from typing import Final

import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from synthedge_client import outbound, store
from synthedge_client.site import Site
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import IdentityError, MalformedError
from synthedge_protocols.private_files import MACHINE_COST, read_secret, write_secret
from synthedge_protocols.v1 import statements_pb2 as pb

_KIND: Final = "flower-node-key"
_ANNOUNCED: Final = "flower node announced"
_APP: Final = "flower app approved"


def node_key(site: Site) -> ec.EllipticCurvePrivateKey:
    """The SuperNode's key, made when first asked for; encrypted on disk like the site's others.

    Raises
    ------
    IdentityError, MalformedError
        If its file is readable by others, or damaged.
    """
    path = site.keys.folder / "flower-node.key"
    if not path.exists():
        made = ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_secret(path, _KIND, made, site.keys.secret, cost=MACHINE_COST)
    try:
        secret = read_secret(path, _KIND, site.keys.secret)
    except (IdentityError, MalformedError) as error:
        raise type(error)(
            f"{error}; or delete it: 'synthedge site flower run' then makes and announces another"
        ) from None
    key = serialization.load_der_private_key(secret, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - what was written above
    return key


def announce_node(site: Site) -> None:
    """Queue the SuperNode's public key for the coordinator, once; the site's agent sends it."""
    public_key = (
        node_key(site)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    digest = hashlib.sha256(public_key).hexdigest()
    signed = site.sign(pb.FlowerNode(public_key=public_key))
    with site.store.write() as connection:
        if store.get_fact(connection, _ANNOUNCED) != digest:
            store.set_fact(connection, _ANNOUNCED, digest)
            outbound.enqueue(connection, "flower-node", signed, "agent")


def approve_app(site: Site, digest: str) -> None:
    """Answer rounds that ship the app of a digest, and of no other any more.

    Raises
    ------
    UsageError
        If it is no SHA-256.
    """
    digest = digest.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(
            "that is no digest of 64 hexadecimal digits; the operator reads it from "
            "'synthedge-coordinator flower app'"
        )
    with site.store.write() as connection:
        store.set_fact(connection, _APP, digest)
        store.record(connection, "flower app approved", "data manager", digest=digest)


def approved_app(connection: sa.Connection) -> str | None:
    """The digest of the app this site answers to; None before any was approved."""
    return store.get_fact(connection, _APP)
