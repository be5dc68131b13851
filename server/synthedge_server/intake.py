"""The one place where a signed statement is checked and becomes a change of state."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from sqlalchemy import Connection, bindparam, insert, select

from synthedge_protocols.errors import IdentityError, PolicyError, UnavailableError
from synthedge_protocols.limits import Limits
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.statements import (
    STATEMENT_TYPES,
    Verified,
    read_unverified,
    transfer_id,
    type_name,
    verify,
)
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import dictionaries, store
from synthedge_server.broker import Broker
from synthedge_server.flower_nodes import accept_node
from synthedge_server.ledger import Ledger, Transaction
from synthedge_server.log_heads import LogHeads
from synthedge_server.registries import Registries
from synthedge_server.rotation import accept_rotation, statement_key
from synthedge_server.rounds import note_answer
from synthedge_server.standing import OwnWill, refuse_if_closed
from synthedge_server.withdrawals import Withdrawals

M = TypeVar("M", bound=Message)
Handler = Callable[[Transaction, Verified[Any]], None]
# What starts something new is made under the current dictionary; the rest finishes under its transfer's.
_STARTS = ("gap-report", "transfer-request")
_EARLIER: Final = Prepared(
    select(store.statements.c.received_at_ms).where(
        store.statements.c.digest == bindparam("of_digest"),
        store.statements.c.site == bindparam("of_site"),
        store.statements.c.type == bindparam("of_type"),
    )
)
_KEEP: Final = Prepared(insert(store.statements))


class Intake:
    """Decode once, check everything, then act once.

    Rules: the signer is the calling site; the same statement bytes always get the same receipt and act only
    the first time; a refused statement leaves no trace but an audit event.

    Parameters
    ----------
    consortium : str
        The consortium's name.
    ledger : Ledger
    registries : Registries
    broker : Broker
    heads : LogHeads
    limits : Limits
    """

    def __init__(
        self,
        consortium: str,
        ledger: Ledger,
        registries: Registries,
        broker: Broker,
        heads: LogHeads,
        limits: Limits,
    ) -> None:
        self._consortium = consortium
        self._ledger = ledger
        self._limits = limits
        self._registries = registries
        withdrawals = Withdrawals(broker, registries, limits)
        self._handlers: dict[str, Handler] = {
            "dictionary-acceptance": dictionaries.accept,
            "gap-report": registries.accept,
            "discovery-answer": partial(note_answer, take_report=self._take_report),
            "flower-node": accept_node,
            "transfer-request": broker.request,
            "approval": broker.approve,
            "shipment": broker.ship,
            "receipt": broker.receive,
            "ending": broker.end,
            "withdrawal-notice": withdrawals.notify,
            "withdrawal-receipt": withdrawals.settle,
            "site-leaving": OwnWill(broker).accept,
            "witnessed-head": heads.witness,
            "key-rotation": partial(accept_rotation, consortium=consortium, limits=limits),
        }

    async def submit(self, site: str, signed: pb.SignedStatement) -> wire.SubmitReceipt:
        """Take one statement in.

        Parameters
        ----------
        site : str
            Who calls, by its certificate.
        signed : SignedStatement
            As received.

        Returns
        -------
        SubmitReceipt
            Durable: a statement with a receipt survives any crash.

        Raises
        ------
        ProtocolError
            Of the kind that says why the statement is refused; see `statements.verify` and the handlers.
        """
        statement = read_unverified(signed, limits=self._limits)
        if statement.signer_site != site:
            raise IdentityError(
                f"site '{site}' handed in a statement of site '{statement.signer_site}'"
            )
        handler = self._handlers.get(statement.type)
        if handler is None:
            raise PolicyError(f"a '{statement.type}' is not taken in on its own")
        message = STATEMENT_TYPES[statement.type].message
        return await self._ledger.write(lambda t: self._take_in(t, site, signed, message, handler))

    def _take_report(self, transaction: Transaction, site: str, signed: pb.SignedStatement) -> None:
        """Take in a gap report that came inside a site's answer to a round, as if it had come alone."""
        self._take_in(transaction, site, signed, pb.GapReport, self._registries.accept)

    def _take_in(
        self,
        transaction: Transaction,
        site: str,
        signed: pb.SignedStatement,
        expected_type: type[Message],
        handler: Handler,
    ) -> wire.SubmitReceipt:
        # In the transaction of the change: what a statement is judged by cannot change before it acts.
        connection, digest = transaction.connection, hashlib.sha256(signed.statement).digest()
        earlier = _EARLIER.one(
            connection, of_digest=digest, of_site=site, of_type=type_name(expected_type)
        )
        if earlier is not None:
            # Before anything is judged: a certificate that expired since must not turn a repeated question into a
            # refusal.
            return wire.SubmitReceipt(
                statement_digest=digest, received_at_ms=earlier.received_at_ms
            )
        verified = self.verified(connection, site, signed, expected_type)
        refuse_if_closed(connection, site, verified.type)
        if verified.type in _STARTS:
            dictionaries.require_acceptance(connection, site, verified.dictionary_digest)
        handler(transaction, verified)
        _KEEP.run(
            connection,
            digest=digest,
            site=site,
            type=verified.type,
            received_at_ms=transaction.now_ms,
            transfer_id=_transfer_of(verified),
        )
        signer = f"{verified.signer.kind} {verified.signer.name}"
        transaction.record(site, f"{verified.type}-accepted", digest.hex(), signer)
        return wire.SubmitReceipt(statement_digest=digest, received_at_ms=transaction.now_ms)

    def verified(
        self,
        connection: Connection,
        site: str,
        signed: pb.SignedStatement,
        expected_type: type[M],
    ) -> Verified[M]:
        """Check one statement of a site against its keys on record; raises as `statements.verify`."""
        starts = type_name(expected_type) in _STARTS
        return verify(
            signed,
            expected_type=expected_type,
            consortium=self._consortium,
            site=site,
            site_public_key=statement_key(connection, site, signed, expected_type),
            dictionary_digest=dictionaries.newest(connection).digest if starts else None,
            now_ms=self._ledger.clock(),
            limits=self._limits,
        )

    async def note_refusal(self, site: str, error: Exception) -> None:
        """Write down that a statement of a site was refused, and why; one that could not be judged was not."""
        if isinstance(error, UnavailableError):
            return
        await self._ledger.write(
            lambda t: t.record(site, "statement-refused", type(error).__name__, str(error))
        )


def _transfer_of(verified: Verified[Any]) -> bytes | None:
    """Which transfer a statement is about, if it is about one."""
    if isinstance(verified.payload, pb.TransferRequest):
        return transfer_id(verified.payload_bytes)
    return getattr(verified.payload, "transfer_id", None)
