"""Asks the coordinator on this machine whether it answers, as a site without a certificate would: over TLS."""

import os
from typing import Final

# As in `serve`: nothing below TLS 1.3, no lines of gRPC's own.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from synthedge_protocols.certificates import pem
from synthedge_protocols.errors import UnavailableError
from synthedge_server.certificate_files import read_certificate
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.settings import Address, read_settings

_TIMEOUT_S: Final = 5.0
# HealthCheckResponse with status SERVING; the health package itself is for the serving side.
_SERVING: Final = b"\x08\x01"
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to dial instead


def ping(folder: CoordinatorFolder, *, is_enough_to_answer: bool = False) -> Address:
    """Call the health service at the enrolment port; return the address that answered.

    Parameters
    ----------
    folder : CoordinatorFolder
    is_enough_to_answer : bool
        Whether one that cannot serve now, because its database is away, counts too: a new start would not help it.

    Raises
    ------
    UsageError
        If the folder is not a coordinator's, or its port is 0.
    UnavailableError
        If nobody answers in 5 seconds, it is another consortium's coordinator, or it cannot serve now; and as
        `read_certificate`.
    """
    settings = read_settings(folder.settings)
    listen = settings.enrolment_listen
    address = Address(host=_LOOPBACK.get(listen.host, listen.host), port=listen.port)
    channel = grpc.secure_channel(
        str(address),
        grpc.ssl_channel_credentials(pem(read_certificate(folder.ca_certificate))),
        # Names are those that sites dial; here it is dialled where it listens.
        options=[("grpc.ssl_target_name_override", settings.names[0])],
    )
    with channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )
        try:
            answer = check(b"", timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise UnavailableError(
                f"the coordinator at {address} does not answer ({error.code().name}); see its log"
            ) from None
    if answer != _SERVING and not is_enough_to_answer:
        raise UnavailableError(
            f"the coordinator at {address} answers, but cannot serve now; see its log"
        )
    return address
