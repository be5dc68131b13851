"""How often and how much at once one caller may: nobody's calls wait for somebody else's flood.

Rules
-----
* A caller is a site, by its certificate; at the enrolment port an address, of IPv6 its network of 64 bits.
* What is too much is refused with the time to wait, and only after a part of it: who asks again at once gains nothing.
* Sealed bytes are held back instead of refused: a refusal would make the site send them again.
"""

import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from synthedge_protocols.errors import BusyError, UnavailableError
from synthedge_protocols.limits import Limits
from synthedge_server.log import log
from synthedge_server.tallies import Tallies

_MAX_KNOWN: Final = 20_000
_LOG_EVERY_S: Final = 10.0
_AT_ONCE_WAIT_S: Final = 1.0
# What a change leaves beside its own bytes: rows, and an entry of the audit log, which a refused one leaves too.
_ENTRY_BYTES: Final = 1_024


class Rates:
    """Token buckets, one a caller.

    Parameters
    ----------
    per_s : float
        What flows in.
    burst : float
        What a bucket holds.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str, amount: float = 1.0) -> float:
        """Take some; return 0, or how many seconds there is not so much."""
        level, now = self._level(caller)
        if level < amount:
            return (amount - level) / self._per_s
        self._buckets[caller] = (level - amount, now)
        return 0.0

    def owe(self, caller: str, amount: float) -> float:
        """Take some, also what is not there yet; return how many seconds until it will have been."""
        level, now = self._level(caller)
        self._buckets[caller] = (level - amount, now)
        return max(0.0, (amount - level) / self._per_s)

    def _level(self, caller: str) -> tuple[float, float]:
        now = self._clock()
        if caller not in self._buckets and len(self._buckets) >= _MAX_KNOWN:
            self._forget(now)
        level, at = self._buckets.get(caller, (self._burst, now))
        return min(self._burst, level + (now - at) * self._per_s), now

    def _forget(self, now: float) -> None:
        """Drop full buckets, which say nothing; if there are none, those used longest ago."""
        full_s = self._burst / self._per_s
        kept = {c: b for c, b in self._buckets.items() if now - b[1] < full_s}
        oldest_first = sorted(kept, key=lambda caller: kept[caller][1])
        self._buckets = {caller: kept[caller] for caller in oldest_first[-_MAX_KNOWN // 2 :]}


class Admission:
    """Decides whether a call is answered now.

    Parameters
    ----------
    calls, changes, kept, reads : Rates
        Of all calls, of those that change something, of the bytes of these, and of the seconds that the others took.
    limits : Limits
        How many may be under way at once.
    tallies : Tallies
        Counts what is refused here.
    """

    def __init__(
        self,
        calls: Rates,
        changes: Rates,
        kept: Rates,
        reads: Rates,
        limits: Limits,
        tallies: Tallies,
    ) -> None:
        self._calls, self._changes, self._kept, self._reads = calls, changes, kept, reads
        self._limits, self._tallies = limits, tallies
        self._under_way: Counter[tuple[str, bool]] = Counter()
        self._told: dict[str, float] = {}
        self._untold: Counter[str] = Counter()

    @contextmanager
    def admitted(
        self, caller: str, *, changes: bool, is_stream: bool, n_bytes: int = 0
    ) -> Iterator[None]:
        """Count a call for as long as the body runs.

        Parameters
        ----------
        caller : str
        changes : bool
            Whether it changes something here.
        is_stream : bool
            Streams and other calls are counted apart.
        n_bytes : int
            Of its message.

        Raises
        ------
        BusyError
            If the caller asked for too much; with the time to wait.
        """
        key = (caller, is_stream)
        bound = self._limits.streams_at_once if is_stream else self._limits.calls_at_once
        if self._under_way[key] >= bound:
            what = "streams" if is_stream else "calls"
            raise self._busy(caller, "at-once", f"has {bound} {what} under way", _AT_ONCE_WAIT_S)
        if wait_s := self._calls.take(caller):
            raise self._busy(caller, "calls", "calls too often", wait_s)
        if changes and (wait_s := self._changes.take(caller)):
            raise self._busy(caller, "statements", "hands in too much at a time", wait_s)
        if changes and (wait_s := self._kept.take(caller, n_bytes + _ENTRY_BYTES)):
            raise self._busy(caller, "kept", "hands in more than is kept of one site", wait_s)
        is_read = not changes and not is_stream
        if is_read and (wait_s := self._reads.take(caller, 0.0)):
            raise self._busy(caller, "reads", "asks for what takes too long", wait_s)
        self._under_way[key] += 1
        start = time.perf_counter()
        try:
            yield
        except UnavailableError:
            is_read = False  # a database that is away takes long to say so, and is nobody's fault
            raise
        finally:
            if is_read:
                self._reads.owe(caller, time.perf_counter() - start)
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]

    def _busy(self, caller: str, reason: str, text: str, wait_s: float) -> BusyError:
        self._tallies.limited[reason] += 1
        self._untold[caller] += 1
        now = time.monotonic()
        if now - self._told.get(caller, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            # One line for a flood, not one a call.
            n_calls = self._untold.pop(caller)
            log("limited", level=logging.WARNING, site=caller, limit=reason, calls=n_calls)
            if len(self._told) >= _MAX_KNOWN:
                self._told.clear()
                self._untold.clear()
            self._told[caller] = now
        return BusyError(f"'{caller}' {text}; wait {wait_s:.1f} s", wait_s)


def network_of(peer: str) -> str:
    """Name whose calls are counted together at a port for strangers.

    Parameters
    ----------
    peer : str
        As gRPC names it, e.g. ``ipv4:192.0.2.1:50000``.
    """
    host = (
        peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    )
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))
