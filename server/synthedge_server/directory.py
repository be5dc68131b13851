"""The directory of keys: what changed since a site last looked, in parts that fit into a message.

Every site asks every few seconds. Sending all keys each time would cost the square of the number of sites.
"""

import secrets
import time
from typing import Final

from sqlalchemy import Connection, select

from synthedge_protocols.errors import LimitExceededError
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.rotation import directory_entries

# Who only asks for news hears of them so late at most; all that ask within it cost one look.
_LOOK_EVERY_S: Final = 1.0
_NONCE_BYTES: Final = 8
_AT_A_TIME: Final = 64


class KeyDirectory:
    """What one process tells of the sites' keys.

    Rules: every change of a site's keys gets the next number; a version names this process and the last number
    told, so that a version of another process is answered with everything.

    Parameters
    ----------
    limits : Limits
        A part is at most half a message, and at least one site.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._n_changes = 0
        # By site, in the order of the numbers: the number of its last change, and the keys it has.
        self._changed: dict[str, tuple[int, bytes, bytes]] = {}
        self._looked_s = -_LOOK_EVERY_S

    def answer(self, connection: Connection, request: wire.DirectoryRequest) -> wire.Directory:
        """Answer one request.

        Raises
        ------
        LimitExceededError
            If the caller cannot read parts and the keys do not fit into one message.
        """
        since = self._number(request.since)
        if not since or time.monotonic() - self._looked_s >= _LOOK_EVERY_S:
            self._look(connection)
        behind = []
        if since < self._n_changes:
            behind = [site for site, (number, *_) in self._changed.items() if number > since]
        if request.in_parts:
            return self._part(connection, behind, since)
        directory = wire.Directory(
            sites=directory_entries(connection, behind), version=self._version(self._n_changes)
        )
        if directory.ByteSize() > self._limits.message_bytes:
            raise LimitExceededError(
                f"the keys of {len(behind)} sites do not fit into one message; update this site's software, which "
                "cannot read them in parts"
            )
        return directory

    def _part(self, connection: Connection, behind: list[str], since: int) -> wire.Directory:
        found: list[pb.SiteKeys] = []
        n_bytes, last = 0, since
        for start in range(0, len(behind), _AT_A_TIME):
            names = behind[start : start + _AT_A_TIME]
            entries = {keys.site: keys for keys in directory_entries(connection, names)}
            for name in names:
                if name not in entries:
                    continue  # no longer active
                n_bytes += entries[name].ByteSize()
                if found and n_bytes > self._limits.message_bytes // 2:
                    return wire.Directory(sites=found, version=self._version(last), more=True)
                found.append(entries[name])
                last = self._changed[name][0]
        return wire.Directory(sites=found, version=self._version(self._n_changes))

    def _look(self, connection: Connection) -> None:
        """Number what changed since the last look."""
        self._looked_s = time.monotonic()
        table = store.sites
        rows = connection.execute(
            select(table.c.site, table.c.statement_public_key, table.c.hpke_key_id)
            .where(table.c.state == "active")
            .order_by(table.c.site)
        ).all()
        for gone in self._changed.keys() - {row.site for row in rows}:
            del self._changed[gone]
        for row in rows:
            keys = (row.statement_public_key, row.hpke_key_id)
            if self._changed.get(row.site, ())[1:] != keys:
                self._changed.pop(row.site, None)
                self._n_changes += 1
                self._changed[row.site] = (self._n_changes, *keys)

    def _version(self, number: int) -> bytes:
        return self._nonce + number.to_bytes(8, "big")

    def _number(self, version: bytes) -> int:
        """The number in a version of this process; 0 for any other."""
        number = int.from_bytes(version[_NONCE_BYTES:], "big")
        is_ours = len(version) == _NONCE_BYTES + 8 and version.startswith(self._nonce)
        return number if is_ours and number <= self._n_changes else 0
