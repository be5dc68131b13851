"""Bounds on what a peer may make this process hold or wait for."""

from dataclasses import dataclass, fields

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds on what a peer may make this process hold or wait for.

    Sizes are in bytes, times in seconds. Every bound is inclusive.

    Attributes
    ----------
    message_bytes : int
        One gRPC message, one signed statement.
    stranger_bytes : int
        One message at the enrolment port, where anybody may call.
    statement_bytes : int
        What one signature covers, unless it carries a sealed note: a megabyte of short lists takes a tenth of a
        second to read, and statements are read one after the other.
    chunk_bytes : int
        The most data in one upload or download chunk, and plaintext of one sealed chunk.
    sent_bytes : int
        Data in one upload or download chunk as this software sends it. gRPC and protobuf hold each one some ten
        times over: of 256 KiB they cost a relaying coordinator 3 MB less and up to half as much CPU again.
    padding_bytes : int
        The smallest size class that a sealed transfer's content is padded to.
    ciphertext_bytes : int
        One sealed transfer. The stream format itself ends at 2**32 chunks.
    waiting_bytes : int
        Of all sealed transfers of one donor that lie at the coordinator, or are announced, at a time.
    payload_bytes : int
        One transfer's payload after decompression: it is held in memory.
    digests_compared : int
        Of statements that got a receipt, of those that wait, and of inbox messages, that a site may name at a time.
    text_bytes : int
        A reason or name that a peer wrote, UTF-8.
    sites : int
        Of one consortium. Grids, voxels and features of a report, and rows of a transfer, are bounded
        by the dictionary alone.
    releases : int
        Gap reports of one site under one dictionary: they are all read when it asks what was received.
    inbox_batch : int
        Inbox messages sent before the reader's sequence number is looked at again.
    statements_per_site : int
        Unfinished transfers that one site has asked for, and withdrawals it has announced.
    calls_per_s, calls_burst : float
        Calls of one site, in the long run and at a time; at the enrolment port of one address.
    statements_per_s, statements_burst : float
        Those of them that change something.
    read_share, read_burst_s : float
        Of this process's time that calls of one site which only read may take, in the long run and at a time.
    kept_bytes_per_s, kept_bytes_burst : float
        Of what changes something, refused or not: it is kept, here and in other sites' inboxes. 4 KiB/s are 350 MB
        a day; a transfer has some 5 kB.
    bytes_per_s : float
        Sealed bytes of one site in and out. What is faster is held back, not refused.
    calls_at_once, streams_at_once : int
        Of one caller.
    connections : int
        Of all peers, also those that have not said who they are.
    handshake_timeout_s : float
        From the first byte to a connection on which calls can be made.
    call_timeout_s : float
        Deadline of every unary call.
    authority_timeout_s : float
        Deadline of those for which the authority makes a certificate.
    stream_idle_s : float
        A stream that moved nothing for so long is ended.
    clock_skew_s : float
        How far ahead of this process's clock a peer's may be.

    Raises
    ------
    ValueError
        If a bound is not positive, or a chunk does not fit into a message.
    """

    message_bytes: int = 1_048_576
    stranger_bytes: int = 65_536
    statement_bytes: int = 65_536
    chunk_bytes: int = 524_288
    sent_bytes: int = 524_288
    padding_bytes: int = 16_384
    ciphertext_bytes: int = 4 * 1024**3
    waiting_bytes: int = 8 * 1024**3
    payload_bytes: int = 256 * 1024**2
    digests_compared: int = 4_096
    text_bytes: int = 2_000
    sites: int = 10_000
    releases: int = 1_000
    inbox_batch: int = 64
    statements_per_site: int = 10_000
    calls_per_s: float = 50.0
    calls_burst: float = 1_000.0
    statements_per_s: float = 10.0
    statements_burst: float = 500.0
    read_share: float = 0.1
    read_burst_s: float = 2.0
    kept_bytes_per_s: float = 4_096.0
    kept_bytes_burst: float = 256.0 * 1024**2
    bytes_per_s: float = 128.0 * 1024**2
    calls_at_once: int = 64
    streams_at_once: int = 16
    connections: int = 25_000
    handshake_timeout_s: float = 10.0
    call_timeout_s: float = 10.0
    authority_timeout_s: float = 30.0
    stream_idle_s: float = 60.0
    clock_skew_s: float = 300.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"limit {field.name} must be positive")
        # Room for the other fields of a chunk message.
        if self.chunk_bytes + 1024 > self.message_bytes:
            raise ValueError("chunk_bytes must leave 1024 bytes of message_bytes for the envelope")
