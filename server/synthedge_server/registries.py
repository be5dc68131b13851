"""One registry a dictionary: the current one changes while the coordinator runs."""

from sqlalchemy import Connection

from synthedge_core.dictionary import Policy, parse_dictionary
from synthedge_protocols.errors import PolicyError
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import dictionaries
from synthedge_server.ledger import Transaction
from synthedge_server.registry import Registry


class Registries:
    """Registries by dictionary, made when first asked for.

    Which one is current is looked up in the database at every use: `dictionary set` runs in another process.
    """

    def __init__(self) -> None:
        self._of: dict[bytes, Registry] = {}

    def current(self, connection: Connection) -> Registry:
        """The registry of the current dictionary."""
        version = dictionaries.newest(connection)
        if version.digest not in self._of:
            self._of[version.digest] = Registry(parse_dictionary(version.toml))
        return self._of[version.digest]

    def policy(self, connection: Connection, digest: bytes) -> Policy:
        """The policy of the dictionary a transfer was requested under.

        Raises
        ------
        PolicyError
            If there is no such dictionary.
        """
        if digest not in self._of:
            version = dictionaries.of_digest(connection, digest)
            if version is None:
                raise PolicyError(f"there is no dictionary {digest.hex()[:12]} here")
            self._of[digest] = Registry(parse_dictionary(version.toml))
        return self._of[digest].dictionary.policy

    def accept(self, transaction: Transaction, verified: Verified[pb.GapReport]) -> None:
        """Hand a report to the current registry; raises as `Registry.accept`."""
        self.current(transaction.connection).accept(transaction, verified)
