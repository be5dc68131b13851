"""The coordinator's RPCs: thin shells around intake, broker, inbox and spool."""

from collections.abc import AsyncIterator

from synthedge_protocols.errors import (
    MalformedError,
    ProtocolError,
    UnavailableError,
    VerificationError,
)
from synthedge_protocols.lifecycle import Party, State
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import coordinator_pb2_grpc as rpc
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import dictionaries
from synthedge_server.broker import Broker
from synthedge_server.callers import Callers, Context
from synthedge_server.directory import KeyDirectory
from synthedge_server.divergence import compare
from synthedge_server.inbox import messages_after
from synthedge_server.intake import Intake
from synthedge_server.ledger import Ledger, Transaction
from synthedge_server.log_heads import LogHeads
from synthedge_server.releases import received_releases
from synthedge_server.renewal import Renewal
from synthedge_server.streams import Streams
from synthedge_server.transfer_records import transfer_of
from synthedge_server.withdrawals import notice_message, open_notices

_UPLOADED = (State.RELAYED, State.DELIVERED, State.ACTIVE, State.REFUSED, State.PURGED)


class CoordinatorServicer(rpc.CoordinatorServicer):
    """What an enrolled site may call.

    Parameters
    ----------
    callers : Callers
        Whose call it is; asked again whenever a stream goes on.
    intake : Intake
    broker : Broker
    renewal : Renewal
    heads : LogHeads
    ledger : Ledger
    limits : Limits
    """

    def __init__(
        self,
        callers: Callers,
        intake: Intake,
        broker: Broker,
        renewal: Renewal,
        heads: LogHeads,
        ledger: Ledger,
        limits: Limits,
    ) -> None:
        self._callers = callers
        self._intake = intake
        self._broker = broker
        self._renewal = renewal
        self._heads = heads
        self._ledger = ledger
        self._limits = limits
        self._directory = KeyDirectory(limits)
        self._streams = Streams(callers, broker, ledger, limits)
        self._is_stopping = False

    def stop(self) -> None:
        """Let every open inbox stream end with a status, so that sites connect again at once."""
        self._is_stopping = True
        self._ledger.wake()

    async def Submit(self, request: pb.SignedStatement, context: Context) -> wire.SubmitReceipt:
        """Take one signed statement in."""
        site = self._callers.calling(context)
        try:
            return await self._intake.submit(site, request)
        except ProtocolError as error:
            await self._intake.note_refusal(site, error)
            raise

    async def Inbox(
        self, request: wire.InboxRequest, context: Context
    ) -> AsyncIterator[wire.InboxMessage]:
        """Send what lies behind a sequence number, and new messages as they come."""
        site = self._callers.calling(context)
        # At once, so that a site knows its stream is open while there is nothing to say.
        await context.send_initial_metadata(())
        after = request.after
        # Withdrawals come first, and again on every stream until their receipt is here.
        told: set[bytes] = set()
        bell = self._ledger.listen(site)
        try:
            while True:
                bell.clear()
                with self._ledger.reading as connection:
                    notices = open_notices(connection, site)
                for notice_id in notices:
                    if notice_id in told:
                        continue
                    told.add(notice_id)
                    # One at a time: together they may be more than one reader should make this process hold.
                    with self._ledger.reading as connection:
                        notice = notice_message(connection, notice_id)
                    if notice is not None:
                        yield notice
                with self._ledger.reading as connection:
                    batch, is_more = messages_after(connection, site, after, self._limits)
                for message in batch:
                    yield message
                    after = message.sequence
                if is_more:
                    continue
                if not request.follow:
                    return
                await bell.wait()
                if self._is_stopping:
                    raise UnavailableError("the coordinator is stopping; connect again")
                # A bell also rings when sites were suspended or revoked.
                self._callers.site_of(context)
        finally:
            self._ledger.unlisten(site, bell)

    async def GetDirectory(
        self, request: wire.DirectoryRequest, context: Context
    ) -> wire.Directory:
        """List the keys of all active sites, or of those that changed since an earlier answer."""
        with self._ledger.reading as connection:
            return self._directory.answer(connection, request)

    async def GetDictionary(
        self, request: wire.DictionaryRequest, context: Context
    ) -> wire.DictionaryDocument:
        """Send the current dictionary, or the one of a digest."""
        with self._ledger.reading as connection:
            version = (
                dictionaries.of_digest(connection, request.digest)
                if request.digest
                else dictionaries.newest(connection)
            )
        if version is None:
            raise MalformedError(f"there is no dictionary {request.digest.hex()[:12]}")
        return version.document()

    async def GetReleases(self, request: wire.ReleasesRequest, context: Context) -> wire.Releases:
        """List the gap reports received from the calling site, and from no other."""
        site = self._callers.calling(context)
        with self._ledger.reading as connection:
            return received_releases(connection, site, request.dictionary_digest)

    async def GetUpload(self, request: wire.UploadQuery, context: Context) -> wire.UploadProgress:
        """Say how much of a shipment is durably stored: where an upload goes on."""
        site = self._callers.calling(context)
        with self._ledger.reading as connection:
            transfer = transfer_of(connection, request.transfer_id, site, Party.DONOR)
        if State(transfer.state) in _UPLOADED:
            return wire.UploadProgress(complete=True)
        upload = self._streams.announced(request.transfer_id, site)
        return await self._streams.progress(request.transfer_id, upload)

    async def Upload(
        self, request_iterator: AsyncIterator[wire.UploadChunk], context: Context
    ) -> wire.UploadProgress:
        """Append chunks of one shipment; the answer counts what is on disk."""
        return await self._streams.upload(request_iterator, context)

    async def Download(
        self, request: wire.DownloadRequest, context: Context
    ) -> AsyncIterator[wire.DownloadChunk]:
        """Send the sealed bytes from an offset on, to their recipient only."""
        async for chunk in self._streams.download(request, context):
            yield chunk

    async def ReleaseKey(self, request: wire.KeyRequest, context: Context) -> pb.SignedStatement:
        """Hand out the sealed key after a last look at who was suspended."""
        site = self._callers.calling(context)
        try:
            shipment = await self._ledger.write(lambda t: self._release(t, site, request))
        except ProtocolError as error:
            await self._intake.note_refusal(site, error)
            raise
        return pb.SignedStatement.FromString(shipment)

    def _release(self, transaction: Transaction, site: str, request: wire.KeyRequest) -> bytes:
        verified = self._intake.verified(
            transaction.connection, site, request.request, pb.ReleaseRequest
        )
        if verified.payload.transfer_id != request.transfer_id:
            raise VerificationError("the key request was signed for another transfer")
        return self._broker.release_key(transaction, verified)

    async def Renew(self, request: wire.RenewRequest, context: Context) -> wire.RenewResponse:
        """Certify the calling site's TLS key anew."""
        return await self._renewal.renew(request, self._callers.calling(context))

    async def Compare(self, request: wire.CompareRequest, context: Context) -> wire.CompareAnswer:
        """Compare what both ends remember of each other; freeze the site if it differs."""
        site = self._callers.calling(context)
        return await self._ledger.write(
            lambda t: compare(t, self._broker, site, request, self._limits)
        )

    async def GetLogHead(self, request: wire.LogHeadRequest, context: Context) -> wire.LogHead:
        """Sign the head of the audit log, or prove that one head extends another."""
        with self._ledger.reading as connection:
            return self._heads.prove(connection, request)
