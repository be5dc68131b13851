"""How this site stands by its own stewards' will, and how its peers stand by what they or the coordinator say."""

import sqlalchemy as sa

from synthedge_client import store
from synthedge_core.errors import RefusedError
from synthedge_protocols.standing import ACTIONS, Standing
from synthedge_protocols.texts import printable

STANDING = "standing"


def own_standing(connection: sa.Connection) -> Standing:
    """How this site stands, as its own stewards decided."""
    return Standing(store.get_fact(connection, STANDING) or Standing.ACTIVE.value)


def require_taking_part(connection: sa.Connection) -> None:
    """Refuse to publish, ask for rows or give them while this site pauses, or after it left.

    Raises
    ------
    RefusedError
        If so.
    """
    standing = own_standing(connection)
    if standing is not Standing.ACTIVE:
        hint = "; run 'synthedge site resume'" if standing is Standing.PAUSED else ""
        raise RefusedError(
            f"this site is {standing}: it publishes, asks for and gives nothing{hint}"
        )


def peer_stands(connection: sa.Connection, peer: str, standing: str, reason: str, who: str) -> None:
    """Write down how a peer stands now, for `peers list` and the audit.

    Parameters
    ----------
    standing : str
        A standing, or an action as the peer's steward signed it.
    """
    word = ACTIONS[standing].value if standing in ACTIONS else standing
    word, reason = printable(word[:20]), printable(reason[:500])
    text = None if word == Standing.ACTIVE else f"{word}: {reason}"
    connection.execute(store.peers.update().where(store.peers.c.site == peer).values(standing=text))
    store.record(
        connection, "peer stands", who, peer=printable(peer[:64]), standing=word, reason=reason
    )
