"""Joining a consortium: public keys and a one-time token go out, a certificate and the dictionary come back."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from synthedge_client import dictionaries, store
from synthedge_client.connection import enrol
from synthedge_client.keystore import KeyStore, load_keys
from synthedge_client.log_heads import LOG_KEY_FACT
from synthedge_client.settings import load_settings
from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.certificates import load_certificate, pem, site_csr, site_of
from synthedge_protocols.errors import IdentityError
from synthedge_protocols.rotation import HPKE_DAYS, hpke_statement
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

_PENDING = "enrolment request"
_DAY_MS = 86_400_000


def enrol_site(folder: Path, token_file: Path) -> dict[str, Any]:
    """Enrol the site of a folder; it is enrolled only when all of it succeeded, and may be tried again until then.

    Raises
    ------
    UsageError
        If there is no such token file.
    RefusedError
        If the site is enrolled already.
    IdentityError
        If the token is another site's, wrong, used or expired, or the answer is not the consortium's.
    UnavailableError, DeadlineError
        If the coordinator is not reached.
    """
    if not token_file.is_file():
        raise UsageError(f"there is no token file {token_file}; ask the operator for an invitation")
    settings = load_settings(folder)
    # What is no text is no token either: the replacement character never decodes.
    token = EnrolmentToken.decode(token_file.read_text(encoding="utf-8", errors="replace"))
    if token.site != settings.id:
        raise IdentityError(
            f"the token invites site '{token.site}', this folder is site '{settings.id}'; ask the operator for yours"
        )
    database = store.Store(settings.database)
    try:
        return _enrol(database, load_keys(settings.keys), token, settings.id)
    finally:
        database.close()


def _enrol(
    database: store.Store, keys: KeyStore, token: EnrolmentToken, site: str
) -> dict[str, Any]:
    with database.write() as connection:
        if consortium := store.get_fact(connection, "consortium"):
            raise RefusedError(f"site '{site}' is enrolled in '{consortium}' already")
        request = _pending_request(connection, token) or _request(keys, token, site)
        # A token is spent by the first answer, which may get lost: the very same request gets it again.
        store.set_fact(connection, _PENDING, request.SerializeToString().hex())
    response = enrol(token, request)
    ca = load_certificate(token.ca_certificate)
    check_certificate(response.certificate, ca, token.consortium, keys, site)
    certificate = load_certificate(response.certificate)
    replace_file(keys.ca_file, pem(ca))
    replace_file(keys.certificate_file, pem(certificate))
    # The facts come last and together: a site without them is not enrolled, whatever files there are.
    with database.write() as connection:
        store.set_fact(connection, "consortium", token.consortium)
        store.set_fact(connection, "address", token.address)
        store.set_fact(connection, store.HPKE_UNTIL, str(store.now_ms() + HPKE_DAYS * _DAY_MS))
        store.set_fact(connection, "enrolment address", token.enrolment_address)
        dictionary = dictionaries.remember(connection, response.dictionary)
        store.set_fact(connection, LOG_KEY_FACT, response.log_public_key.hex())
        store.delete_fact(connection, _PENDING)
        store.record(
            connection,
            "enrolled",
            "steward",
            consortium=token.consortium,
            dictionary=dictionary.digest,
            ca_fingerprint=token.ca_fingerprint,
        )
    return {
        "site": site,
        "consortium": token.consortium,
        "certificate_expires": certificate.not_valid_after_utc.isoformat(),
        "dictionary": dictionary.name,
        "dictionary_digest": dictionary.digest,
        "dictionary_version": response.dictionary.version,
        "outcome": dictionary.target.in_words(),
        "policy": dictionary.policy.in_words(),
    }


def _pending_request(connection: sa.Connection, token: EnrolmentToken) -> wire.EnrolRequest | None:
    pending = store.get_fact(connection, _PENDING)
    if pending is None:
        return None
    request = wire.EnrolRequest.FromString(bytes.fromhex(pending))
    return request if request.token_secret == token.secret else None


def _request(keys: KeyStore, token: EnrolmentToken, site: str) -> wire.EnrolRequest:
    now = store.now_ms()
    signed = hpke_statement(
        keys.statement, keys.hpke, consortium=token.consortium, site=site, now_ms=now
    )
    return wire.EnrolRequest(
        token_secret=token.secret,
        site=site,
        certificate_request=site_csr(keys.tls, site),
        keys=pb.SiteKeys(
            site=site, statement_public_key=keys.statement.public_bytes, hpke_key=signed
        ),
    )


def check_certificate(
    certificate: bytes, ca: x509.Certificate, consortium: str, keys: KeyStore, site: str
) -> None:
    """Return if a certificate is one of this site's TLS key, by its consortium's authority.

    Raises
    ------
    IdentityError
        If not.
    """
    named = site_of(certificate, ca, consortium, now=datetime.now(tz=UTC))
    certified = load_certificate(certificate).public_key()
    if named != site or certified != load_pem_private_key(keys.tls.pem(), None).public_key():
        raise IdentityError(
            "the coordinator answered with a certificate for somebody else; ask its operator"
        )


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file in one step; mode 0600."""
    staged = path.with_suffix(".new")
    staged.write_bytes(data)
    staged.chmod(0o600)
    staged.replace(path)
