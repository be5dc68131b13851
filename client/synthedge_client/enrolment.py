"""Joining a consortium: public keys and a one-time token go out, a certificate and the dictionary come back."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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


def enrol_site(folder: Path, token_file: Path) -> dict[str, Any]:
    """Enrol the site of a folder; nothing is written unless all of it succeeded.

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
    token = EnrolmentToken.decode(token_file.read_text(encoding="utf-8"))
    if token.site != settings.id:
        raise IdentityError(
            f"the token invites site '{token.site}', this folder is site '{settings.id}'; ask the operator for yours"
        )
    database = store.Store(settings.database)
    with database.read() as connection:
        if consortium := store.get_fact(connection, "consortium"):
            raise RefusedError(f"site '{settings.id}' is enrolled in '{consortium}' already")
    keys = load_keys(settings.keys)
    response = enrol(token, _request(keys, token, settings.id))
    _check_answer(response, token, settings.id)
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
        store.record(
            connection,
            "enrolled",
            "steward",
            consortium=token.consortium,
            dictionary=dictionary.digest,
            ca_fingerprint=token.ca_fingerprint,
        )
    database.close()
    return {
        "site": settings.id,
        "consortium": token.consortium,
        "certificate_expires": certificate.not_valid_after_utc.isoformat(),
        "dictionary": dictionary.name,
        "dictionary_digest": dictionary.digest,
        "target_definition": dictionary.target.definition,
    }


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


def _check_answer(response: wire.EnrolResponse, token: EnrolmentToken, site: str) -> None:
    named = site_of(
        response.certificate,
        load_certificate(token.ca_certificate),
        token.consortium,
        now=datetime.now(tz=UTC),
    )
    if named != site or response.consortium != token.consortium:
        raise IdentityError(
            "the coordinator answered with a certificate for somebody else; ask its operator"
        )


def _replace(path: Path, data: bytes) -> None:
    staged = path.with_suffix(".new")
    staged.write_bytes(data)
    staged.chmod(0o600)
    staged.replace(path)
