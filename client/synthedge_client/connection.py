"""The one connection of a site to its coordinator: gRPC over TLS 1.3 with the site's certificate.

Sites never listen. Every call has a deadline; every error of the wire becomes one of `ProtocolError`'s kinds.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

# Before grpc is imported: with an ECDSA certificate this leaves no TLS 1.2 suite, so only TLS 1.3 can be spoken.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # grpc would log its own lines to stderr

import grpc

from synthedge_client.keystore import read_certificate
from synthedge_protocols.certificates import load_certificate, pem
from synthedge_protocols.errors import (
    ERROR_NAME_KEY,
    DeadlineError,
    LimitExceededError,
    ProtocolError,
    UnavailableError,
    from_status,
)
from synthedge_protocols.limits import Limits
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.v1.coordinator_pb2_grpc import CoordinatorStub, EnrolmentStub

LIMITS = Limits()
TRANSFER_TIMEOUT_S = 3_600.0
# The authority is a process of its own that starts for the answer.
_AUTHORITY_TIMEOUT_S = 30.0
# Clouds drop idle TCP after about four minutes.
_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", LIMITS.message_bytes),
    ("grpc.max_send_message_length", LIMITS.message_bytes),
    ("grpc.enable_retries", 0),
]


@contextmanager
def _as_protocol_errors(address: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise _translated(error, address) from None


def _translated(error: grpc.RpcError, address: str) -> ProtocolError:
    """The coordinator's own refusal, or what a user can do about a connection that failed."""
    code, details = error.code(), error.details()
    # The stubs describe metadata as a tuple of pairs that cannot be unpacked; it is plain pairs.
    metadata = cast("list[tuple[str, str | bytes]]", list(error.trailing_metadata() or ()))
    if code is grpc.StatusCode.UNAVAILABLE and ERROR_NAME_KEY not in dict(metadata):
        return UnavailableError(
            f"the coordinator at {address} was not reached, or TLS failed; check that it runs, that this site's "
            "certificate is of its consortium and in force, and run 'synthedge site doctor'"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"the coordinator at {address} did not answer in time; try again")
    return from_status(code, details, metadata)


def enrol(token: EnrolmentToken, request: wire.EnrolRequest) -> wire.EnrolResponse:
    """Ask the coordinator of a token for a certificate.

    Raises
    ------
    IdentityError
        If the token is wrong, used or expired.
    MalformedError
        If the certificate in the token is none.
    UnavailableError, DeadlineError
        If it cannot be reached, or is not the token's coordinator.
    """
    credentials = grpc.ssl_channel_credentials(pem(load_certificate(token.ca_certificate)))
    address = token.enrolment_address
    with (
        grpc.secure_channel(address, credentials, options=_OPTIONS) as channel,
        _as_protocol_errors(address),
    ):
        response: wire.EnrolResponse = EnrolmentStub(channel).Enrol(
            request, timeout=_AUTHORITY_TIMEOUT_S
        )
        return response


def renew_expired(address: str, request: wire.RenewRequest, *, ca: Path) -> wire.RenewResponse:
    """Ask for a certificate at the enrolment port, when the site's own has expired.

    Raises
    ------
    IdentityError
        If the coordinator does not accept the site.
    UnavailableError, DeadlineError
        If it cannot be reached.
    """
    credentials = grpc.ssl_channel_credentials(read_certificate(ca))
    with (
        grpc.secure_channel(address, credentials, options=_OPTIONS) as channel,
        _as_protocol_errors(address),
    ):
        response: wire.RenewResponse = EnrolmentStub(channel).RenewExpired(
            request, timeout=_AUTHORITY_TIMEOUT_S
        )
        return response


class Connection:
    """Calls of an enrolled site.

    Every method raises UnavailableError, DeadlineError or IdentityError when the coordinator cannot be
    reached, is too slow or does not accept the site, and the coordinator's own refusal otherwise.
    """

    def __init__(self, address: str, *, ca: Path, certificate: Path, key_pem: bytes) -> None:
        """Prepare the channel; it connects with the first call.

        Raises
        ------
        IdentityError
            If a certificate file is missing.
        """
        self._address = address
        self._ca_pem = read_certificate(ca)
        self._key_pem = key_pem
        self._open(read_certificate(certificate))

    def _open(self, certificate_pem: bytes) -> None:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self._ca_pem,
            private_key=self._key_pem,
            certificate_chain=certificate_pem,
        )
        self._channel = grpc.secure_channel(self._address, credentials, options=_OPTIONS)
        self._stub = CoordinatorStub(self._channel)

    def use_certificate(self, certificate_pem: bytes) -> None:
        """Go on with a renewed certificate; an open inbox stream ends and is to be opened again."""
        old = self._channel
        self._open(certificate_pem)
        old.close()

    @property
    def channel_id(self) -> int:
        """Differs once `use_certificate` was called."""
        return id(self._channel)

    def renew(self, request: wire.RenewRequest) -> wire.RenewResponse:
        """Ask for the next certificate."""
        with _as_protocol_errors(self._address):
            return self._stub.Renew(request, timeout=_AUTHORITY_TIMEOUT_S)

    def close(self) -> None:
        """End every call and stream."""
        self._channel.close()

    def submit(self, signed: pb.SignedStatement) -> wire.SubmitReceipt:
        """Hand over one signed statement; the same bytes may be handed over again."""
        with _as_protocol_errors(self._address):
            return self._stub.Submit(signed, timeout=LIMITS.call_timeout_s)

    def inbox(self, after: int, *, follow: bool) -> Iterator[wire.InboxMessage]:
        """Messages after a sequence number; with `follow` the stream stays open for new ones."""
        timeout = None if follow else LIMITS.call_timeout_s
        with _as_protocol_errors(self._address):
            yield from self._stub.Inbox(
                wire.InboxRequest(after=after, follow=follow), timeout=timeout
            )

    def directory(self, since: bytes = b"") -> Iterator[wire.Directory]:
        """The keys of all sites, or of those that changed since a version, part by part.

        Raises
        ------
        LimitExceededError
            Also if it does not end.
        """
        n_sites, is_more = 0, True
        while is_more:
            request = wire.DirectoryRequest(since=since, in_parts=True)
            with _as_protocol_errors(self._address):
                part = self._stub.GetDirectory(request, timeout=LIMITS.call_timeout_s)
            n_sites += len(part.sites)
            if n_sites > LIMITS.sites or (part.more and not part.sites):
                raise LimitExceededError(
                    f"the coordinator's directory does not end after {n_sites} sites; at most {LIMITS.sites} "
                    "are read"
                )
            yield part
            since, is_more = part.version, part.more

    def dictionary(self) -> wire.DictionaryDocument:
        """The consortium's current dictionary."""
        with _as_protocol_errors(self._address):
            return self._stub.GetDictionary(wire.DictionaryRequest(), timeout=LIMITS.call_timeout_s)

    def upload_progress(self, transfer_id: bytes) -> wire.UploadProgress:
        """How many sealed bytes the coordinator holds for good."""
        with _as_protocol_errors(self._address):
            return self._stub.GetUpload(
                wire.UploadQuery(transfer_id=transfer_id), timeout=LIMITS.call_timeout_s
            )

    def upload(
        self, transfer_id: bytes, chunks: Iterator[tuple[int, bytes]]
    ) -> wire.UploadProgress:
        """Send sealed bytes from an offset on."""
        messages = (
            wire.UploadChunk(transfer_id=transfer_id, offset=offset, data=data)
            for offset, data in chunks
        )
        with _as_protocol_errors(self._address):
            return self._stub.Upload(messages, timeout=TRANSFER_TIMEOUT_S)

    def download(self, transfer_id: bytes, offset: int) -> Iterator[wire.DownloadChunk]:
        """Fetch sealed bytes from an offset on."""
        with _as_protocol_errors(self._address):
            yield from self._stub.Download(
                wire.DownloadRequest(transfer_id=transfer_id, offset=offset),
                timeout=TRANSFER_TIMEOUT_S,
            )

    def compare(self, request: wire.CompareRequest) -> wire.CompareAnswer:
        """Compare what both ends remember of each other."""
        with _as_protocol_errors(self._address):
            return self._stub.Compare(request, timeout=LIMITS.call_timeout_s)

    def log_head(self, old_size: int, size: int = 0) -> wire.LogHead:
        """The newest head of the coordinator's audit log, or a proof between two heads."""
        with _as_protocol_errors(self._address):
            return self._stub.GetLogHead(
                wire.LogHeadRequest(old_size=old_size, size=size), timeout=LIMITS.call_timeout_s
            )

    def releases(self, dictionary_digest: bytes) -> wire.Releases:
        """The gap reports the coordinator has received from this site under a dictionary."""
        with _as_protocol_errors(self._address):
            return self._stub.GetReleases(
                wire.ReleasesRequest(dictionary_digest=dictionary_digest),
                timeout=LIMITS.call_timeout_s,
            )

    def release_key(self, request: pb.SignedStatement) -> pb.SignedStatement:
        """Ask for the sealed key with a signed ReleaseRequest: the last check that nothing was revoked."""
        statement = pb.Statement.FromString(request.statement)
        transfer_id = pb.ReleaseRequest.FromString(statement.payload).transfer_id
        with _as_protocol_errors(self._address):
            return self._stub.ReleaseKey(
                wire.KeyRequest(transfer_id=transfer_id, request=request),
                timeout=LIMITS.call_timeout_s,
            )
