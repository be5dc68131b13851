"""A round of discovery: what is asked, and the reasons a site may have to send no report."""

from enum import StrEnum
from typing import Final, Literal

from synthedge_protocols.errors import MalformedError
from synthedge_protocols.v1 import coordinator_pb2 as wire

__all__ = ["ENGINES", "ROUND_ID_BYTES", "Engine", "Refusal", "check_round"]

Engine = Literal["channel", "flower"]
ENGINES: Final[tuple[Engine, ...]] = ("channel", "flower")
"""What can carry a round: the site's own connection, or a Flower run."""

ROUND_ID_BYTES: Final = 16


class Refusal(StrEnum):
    """Why a site sends no report; the value is what it signs, `in_words` what an operator reads."""

    ENGINE = "engine-not-allowed"
    PAUSED = "paused"
    FROZEN = "ledger-frozen"
    DICTIONARY = "dictionary-not-accepted"
    NOTHING = "nothing-published"
    STALE = "report-stale"
    UNREADABLE = "table-not-readable"
    APP = "app-not-approved"

    @property
    def in_words(self) -> str:
        """One clause."""
        return _WORDS[self]


_WORDS: Final = {
    Refusal.ENGINE: "its site.toml answers no rounds of this engine",
    Refusal.PAUSED: "the site pauses, or left, by its stewards' decision",
    Refusal.FROZEN: "its release ledger is frozen until a steward looks at it",
    Refusal.DICTIONARY: "its steward has not accepted the current dictionary",
    Refusal.NOTHING: "its steward has published no report under the current dictionary",
    Refusal.STALE: "its data changed since its report, and its site.toml sends no stale one",
    Refusal.UNREADABLE: "its table cannot be read now, so it cannot tell whether its report is stale",
    Refusal.APP: "the app that Flower shipped is none its data manager approved",
}


def check_round(asked: wire.DiscoveryRound) -> wire.DiscoveryRound:
    """Return a round whose fields are what they must be.

    Raises
    ------
    MalformedError
        If an identifier has another length, or no time is given.
    """
    if len(asked.round_id) != ROUND_ID_BYTES or len(asked.dictionary_digest) != 32:
        raise MalformedError(
            f"a round of discovery needs an id of {ROUND_ID_BYTES} bytes and a dictionary digest of 32, found "
            f"{len(asked.round_id)} and {len(asked.dictionary_digest)}; the coordinator may be newer than this site"
        )
    if not 0 < asked.opened_at_ms < asked.deadline_ms:
        raise MalformedError("a round of discovery ends before it was opened")
    return asked
