"""Joining a consortium: public keys and a one-time token go out, a certificate and the dictionary come back."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from synthedge_client import store
from synthedge_client.connection import enrol
from synthedge_client.keystore import KeyStore, load_keys
from synthedge_client.settings import load_settings
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.certificates import load_certificate, pem, site_csr, site_of
from synthedge_protocols.errors import IdentityError, MalformedError
from synthedge_protocols.statements import sign
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

HPKE_DAYS = 365
_DAY_MS = 86_400_000
_PENDING = "enrolment request"


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
    _check_answer(response, token, keys, site)
    certificate = load_certificate(response.certificate)
    dictionary = parse_dictionary(response.dictionary.toml)
    if bytes.fromhex(dictionary.digest) != response.dictionary.digest:
        raise MalformedError("the coordinator's dictionary does not have the digest it names")
    _replace(keys.ca_file, pem(load_certificate(token.ca_certificate)))
    _replace(keys.certificate_file, pem(certificate))
    # The facts come last and together: a site without them is not enrolled, whatever files there are.
    with database.write() as connection:
        store.set_fact(connection, "consortium", token.consortium)
        store.set_fact(connection, "address", token.address)
        store.set_fact(connection, "dictionary", response.dictionary.toml)
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
        "target_definition": dictionary.target.definition,
    }


def _pending_request(connection: sa.Connection, token: EnrolmentToken) -> wire.EnrolRequest | None:
    pending = store.get_fact(connection, _PENDING)
    if pending is None:
        return None
    request = wire.EnrolRequest.FromString(bytes.fromhex(pending))
    return request if request.token_secret == token.secret else None


def _request(keys: KeyStore, token: EnrolmentToken, site: str) -> wire.EnrolRequest:
    now = store.now_ms()
    hpke = pb.HpkeKey(
        key_id=keys.hpke.key_id,
        public_key=keys.hpke.public_bytes,
        not_before_ms=now - _DAY_MS,
        not_after_ms=now + HPKE_DAYS * _DAY_MS,
    )
    signed = sign(
        keys.statement,
        hpke,
        consortium=token.consortium,
        site=site,
        dictionary_digest=b"",
        issued_at_ms=now,
    )
    return wire.EnrolRequest(
        token_secret=token.secret,
        site=site,
        certificate_request=site_csr(keys.tls, site),
        keys=pb.SiteKeys(
            site=site, statement_public_key=keys.statement.public_bytes, hpke_key=signed
        ),
    )


def _check_answer(
    response: wire.EnrolResponse, token: EnrolmentToken, keys: KeyStore, site: str
) -> None:
    named = site_of(
        response.certificate,
        load_certificate(token.ca_certificate),
        token.consortium,
        now=datetime.now(tz=UTC),
    )
    certified = load_certificate(response.certificate).public_key()
    if (
        named != site
        or response.consortium != token.consortium
        or certified != load_pem_private_key(keys.tls.pem(), None).public_key()
    ):
        raise IdentityError(
            "the coordinator answered with a certificate for somebody else; ask its operator"
        )


def _replace(path: Path, data: bytes) -> None:
    staged = path.with_suffix(".new")
    staged.write_bytes(data)
    staged.chmod(0o600)
    staged.replace(path)
