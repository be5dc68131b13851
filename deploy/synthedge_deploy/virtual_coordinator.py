"""A coordinator for virtual sites: the product's own parts on a folder of their own, without ports."""

import asyncio
import hashlib
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import insert, select

from synthedge_deploy.generated import Plan
from synthedge_deploy.planning_figures import Figures
from synthedge_deploy.virtual_site import CONSORTIUM, VirtualKeys
from synthedge_protocols.limits import Limits
from synthedge_protocols.standing import Standing
from synthedge_protocols.statements import read_unverified
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.writer import Writer
from synthedge_server import store
from synthedge_server.broker import Broker
from synthedge_server.directory import KeyDirectory
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.intake import Intake
from synthedge_server.ledger import Ledger, Transaction, system_clock
from synthedge_server.log_heads import LogHeads, load_log_key
from synthedge_server.operations import create_coordinator
from synthedge_server.registries import Registries
from synthedge_server.relay import Spool
from synthedge_server.rounds import open_round
from synthedge_server.settings import Address, read_settings
from synthedge_server.telling import Telling

_LIMITS: Final = Limits()
# Of a round: as long as the largest simulation takes.
TIMEOUT_S: Final = 3600.0
_NOBODY: Final = Address(host="127.0.0.1", port=0)


class VirtualCoordinator:
    """The coordinator's own parts on a folder of their own, without its ports; all virtual sites are enrolled."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self._plan = plan
        folder = CoordinatorFolder(path)
        create_coordinator(
            folder,
            name=CONSORTIUM,
            dictionary_toml=plan.dictionary_text,
            listen=_NOBODY,
            enrolment_listen=_NOBODY,
        )
        settings = read_settings(folder.settings)
        self._engine = store.open_database(folder, settings)
        self._writer = Writer(self._engine)
        self._runner = asyncio.Runner()
        registries = Registries()
        self._ledger = Ledger(self._engine, self._writer, Spool(folder.spool), system_clock)
        self._intake = Intake(
            CONSORTIUM,
            self._ledger,
            registries,
            Broker(registries, _LIMITS),
            LogHeads(CONSORTIUM, load_log_key(folder)),
            _LIMITS,
        )
        self._telling = Telling(self._ledger, registries)

    def __enter__(self) -> "VirtualCoordinator":
        self._runner.run(self._ledger.write(partial(_enrol_all, plan=self._plan)))
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()
        self._writer.close()
        self._engine.dispose()

    def open_round(self) -> wire.DiscoveryRound:
        """Open a round over all sites."""
        change = partial(open_round, engine="flower", sites=None, timeout_s=TIMEOUT_S)
        return self._runner.run(self._ledger.write(change))

    def take(self, data: bytes) -> None:
        """Take one answer in."""
        signed = pb.SignedStatement.FromString(data)
        # A simulation's nodes have no names: the statement says whose it is, and its signature is checked.
        site = read_unverified(signed, limits=_LIMITS).signer_site
        self._runner.run(self._intake.submit(site, signed))

    def tell(self) -> None:
        """Tell everybody what follows."""
        self._runner.run(self._telling.tell_if_due())

    def told(self, figures: Figures) -> dict[str, tuple[wire.HoleProfile, wire.Proposals]]:
        """What lies in the inboxes, by site; counted."""
        profiles: dict[str, wire.HoleProfile] = {}
        proposals: dict[str, wire.Proposals] = {}
        table = store.inbox
        with self._engine.connect() as connection:
            for row in connection.execute(select(table.c.site, table.c.kind, table.c.message)):
                message = wire.InboxMessage.FromString(row.message)
                if row.kind == "profile":
                    profiles[row.site] = message.profile
                elif row.kind == "proposals":
                    proposals[row.site] = message.proposals
                    figures.proposals += len(message.proposals.proposals)
                figures.wire_bytes[f"{row.kind.removesuffix('s')}s"] += len(row.message)
            figures.wire_bytes["directory"] = self._plan.n_sites * _directory_bytes(connection)
        return {site: (profile, proposals[site]) for site, profile in profiles.items()}


def _enrol_all(transaction: Transaction, *, plan: Plan) -> None:
    """Write what enrolment and the acceptance of the dictionary leave, for all virtual sites."""
    now, connection = transaction.now_ms, transaction.connection
    sites, keys, acceptances = [], [], []
    for i in range(plan.n_sites):
        own = VirtualKeys(plan, plan.site(i))
        sites.append(
            {
                "site": own.site,
                "state": Standing.ACTIVE.value,
                "statement_public_key": own.statement.public_bytes,
                "hpke_key_id": own.hpke.key_id,
                "tls_key_digest": hashlib.sha256(own.site.encode()).digest(),
                "last_sequence": 0,
                "enrolled_at_ms": now,
                "certified_at_ms": now,
            }
        )
        keys.append(
            {
                "key_id": own.hpke.key_id,
                "site": own.site,
                "statement": own.hpke_statement(now).SerializeToString(),
                "registered_at_ms": now,
            }
        )
        acceptances.append(
            {
                "site": own.site,
                "digest": bytes.fromhex(plan.dictionary.digest),
                "steward": "steward",
                "statement": b"",
                "accepted_at_ms": now,
            }
        )
    connection.execute(insert(store.sites), sites)
    connection.execute(insert(store.keys), keys)
    connection.execute(insert(store.acceptances), acceptances)


def _directory_bytes(connection: Any) -> int:
    """What one site reads to know all others."""
    directory, since, n_bytes = KeyDirectory(_LIMITS), b"", 0
    while True:
        part = directory.answer(connection, wire.DirectoryRequest(since=since, in_parts=True))
        since, n_bytes = part.version, n_bytes + part.ByteSize()
        if not part.more:
            return n_bytes
