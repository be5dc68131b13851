"""Hospitals' sites in folders, with made-up patients, for tests that need the site's real parts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from synthedge_client import dictionaries, inbound, store
from synthedge_client.asking import request
from synthedge_client.donating import approve, prepare
from synthedge_client.keystore import load_keys
from synthedge_client.received import ReceivedSamples, keep_samples
from synthedge_client.settings import load_settings
from synthedge_client.shipping import seal_approved
from synthedge_client.site import Site, create_site, open_site
from synthedge_client.site_table import load_site_table
from synthedge_client.stewards import Steward
from synthedge_client.transfers import Transfer, get_transfer, move, note_passed_gate
from synthedge_core.dictionary import parse_dictionary
from synthedge_protocols.certificates import create_ca, issue_site_certificate, pem, site_csr
from synthedge_protocols.keys import StatementKey
from synthedge_protocols.lifecycle import Event, Party
from synthedge_protocols.statements import sign
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

CONSORTIUM = "test-consortium"
DAY_MS = 86_400_000
# Lowest blood pressure of each voxel of the grid "bp" of the dictionary in `server_fixtures`.
BAND_STARTS = (71, 81, 91, 101)
MALE_HIGH = 7  # flat index of "male, 100 and above" in its grid "sex x bp"


def patients(
    prefix: str,
    positives: np.ndarray | None = None,
    negatives: np.ndarray | None = None,
) -> pd.DataFrame:
    """One row a patient, all consenting; counts of shape (2 sexes, 4 bands of blood pressure)."""
    positives = np.full((2, 4), 8) if positives is None else positives
    negatives = np.full((2, 4), 8) if negatives is None else negatives
    rows = [
        {
            "mrn": f"{prefix}-{label}{sex}{band}{i}",
            "consent": "active",
            "progressed": label,
            # Whole numbers for positives, halves for negatives: no row of one site is another's by accident.
            "bp": BAND_STARTS[band] + i % (9 if band < 3 else 60) + (0.0 if label else 0.25),
            "sex": sex + 1,
            "note": i % 2,
        }
        for label, counts in ((1, positives), (0, negatives))
        for sex in range(2)
        for band in range(4)
        for i in range(counts[sex, band])
    ]
    return pd.DataFrame(rows)


def with_hole(n: int = 8) -> np.ndarray:
    """Positives of a site that has none at male, 100 and above."""
    positives = np.full((2, 4), n)
    positives[1, 3] = 0
    return positives


def make_site(parent: Path, name: str, rows: pd.DataFrame, settings: str = "") -> Path:
    """A site's folder, not enrolled; `settings` is appended to its site.toml."""
    table = parent / f"{name}.csv"
    rows.to_csv(table, index=False)
    folder = parent / name
    create_site(folder, id=name, data=table, patient_id="mrn", consent="consent")
    with (folder / "site.toml").open("a", encoding="utf-8") as file:
        file.write(settings)
    return folder


def accept_dictionary(folder: Path, dictionary: str) -> None:
    """Write down what enrolment would, without a coordinator: nobody listens at the address."""
    settings = load_settings(folder)
    keys, now = load_keys(settings.keys), datetime.now(tz=UTC)
    ca_key, ca = create_ca(CONSORTIUM, now=now)
    certificate = issue_site_certificate(
        ca_key,
        ca,
        site_csr(keys.tls, settings.id),
        consortium=CONSORTIUM,
        site=settings.id,
        now=now,
    )
    keys.ca_file.write_bytes(pem(ca))
    keys.certificate_file.write_bytes(pem(certificate))
    database = store.Store(settings.database)
    with database.write() as connection:
        store.set_fact(connection, "consortium", CONSORTIUM)
        store.set_fact(connection, "address", "127.0.0.1:1")
        document = wire.DictionaryDocument(
            digest=bytes.fromhex(parse_dictionary(dictionary).digest), toml=dictionary, version=1
        )
        dictionaries.remember(connection, document)
        connection.execute(
            store.dictionaries.update().values(accepted_at_ms=store.now_ms(), accepted_by="ada")
        )
    database.close()


@contextmanager
def sites(parent: Path, dictionary: str, **tables: pd.DataFrame) -> Iterator[list[Site]]:
    """Opened sites that accepted a dictionary, know each other and compared keys; no coordinator."""
    opened: list[Site] = []
    with ExitStack() as stack:
        for name, rows in tables.items():
            folder = make_site(parent, name, rows)
            accept_dictionary(folder, dictionary)
            opened.append(stack.enter_context(open_site(folder)))
        directory = wire.Directory(sites=[site_keys(site) for site in opened])
        for site in opened:
            learn(site, directory)
            for other in opened:
                if other is not site:
                    site.verify_peer(other.settings.id, other.fingerprint)
        yield opened


def site_keys(site: Site) -> pb.SiteKeys:
    """A site's entry in the coordinator's directory."""
    now = store.now_ms()
    keys = load_keys(site.settings.keys)
    hpke = pb.HpkeKey(
        key_id=keys.hpke.key_id,
        public_key=keys.hpke.public_bytes,
        not_before_ms=now - DAY_MS,
        not_after_ms=now + DAY_MS,
    )
    signed = sign(
        keys.statement,
        hpke,
        consortium=CONSORTIUM,
        site=site.settings.id,
        dictionary_digest=b"",
        issued_at_ms=now,
    )
    return pb.SiteKeys(
        site=site.settings.id, statement_public_key=keys.statement.public_bytes, hpke_key=signed
    )


def learn(site: Site, directory: wire.Directory) -> list[str]:
    """Read a directory as the agent does."""
    with site.store.write() as connection:
        return inbound.pin_peers(connection, site.settings, directory, CONSORTIUM)


def steward(name: str = "ada") -> Steward:
    """A steward whose key needs no passphrase: opening one costs a quarter of a second on purpose."""
    return Steward(name, StatementKey.generate())


def queued(site: Site) -> list[pb.SignedStatement]:
    """What waits in a site's outbox."""
    with site.store.read() as connection:
        blobs = connection.execute(
            sa.select(store.outbox.c.statement)
            .where(store.outbox.c.sent_at_ms.is_(None) & store.outbox.c.refusal.is_(None))
            .order_by(store.outbox.c.id)
        ).scalars()
        return [pb.SignedStatement.FromString(blob) for blob in blobs]


def arrives(site: Site, **body: object) -> str | None:
    """Let one inbox message arrive and be applied; the reason if it was refused."""
    with site.store.write() as connection:
        last = connection.execute(sa.select(sa.func.max(store.inbox.c.sequence))).scalar_one() or 0
        message = wire.InboxMessage(sequence=last + 1, **body)  # type: ignore[arg-type]
        connection.execute(
            store.inbox.insert().values(
                sequence=last + 1, message=message.SerializeToString(), handled_at_ms=None
            )
        )
    n_before = len(events(site, "message refused"))
    inbound.apply(site, message)
    refused = events(site, "message refused")
    return refused[-1] if len(refused) > n_before else None


def events(site: Site, what: str) -> list[str]:
    """Details of a site's audit events of one kind, in order."""
    with site.store.read() as connection:
        return list(
            connection.execute(
                sa.select(store.events.c.details)
                .where(store.events.c.what == what)
                .order_by(store.events.c.id)
            ).scalars()
        )


def transfer_at(site: Site, transfer_id: bytes) -> Transfer:
    """A site's record of a transfer."""
    with site.store.read() as connection:
        return get_transfer(connection, transfer_id)


def edit(site: Site, **columns: Any) -> None:
    """Change whole columns of a site's table file, as its owner may at any time."""
    table = pd.read_csv(site.settings.data)
    table.assign(**columns).to_csv(site.settings.data, index=False)


def asked(north: Site, south: Site, **changes: Any) -> Transfer:
    """A request of north's that has arrived at south; south's record of it."""
    arguments: dict[str, Any] = {
        "rows": 5,
        "purpose": "DUO:0000007",
        "voxel": MALE_HIGH,
        "accept_if_gate_passes": True,
    }
    grid = north.grid("sex x bp")
    identifier = request(north, steward(), donor="south", grid=grid, **{**arguments, **changes})
    assert arrives(south, statement=queued(north)[-1]) is None
    return transfer_at(south, identifier)


def prepared(north: Site, south: Site) -> Transfer:
    transfer = asked(north, south)
    prepare(south, transfer, "ada")
    return transfer_at(south, transfer.id)


def approved(north: Site, south: Site) -> Transfer:
    transfer = prepared(north, south)
    approve(south, transfer, steward())
    assert arrives(north, statement=queued(south)[-1]) is None
    return transfer_at(south, transfer.id)


def sealed(north: Site, south: Site) -> Transfer:
    transfer = approved(north, south)
    seal_approved(south, transfer)
    return transfer_at(south, transfer.id)


def delivered(
    north: Site, south: Site, values: np.ndarray | None = None, **changes: Any
) -> Transfer:
    """A delivery that passed north's gate, as if `values` had arrived; north's record of it."""
    if values is None:
        values = np.array([[101.0 + i, 1.0, np.nan] for i in range(5)])
    asking = asked(north, south, **changes)
    prepare(south, asking, "ada")
    approve(south, transfer_at(south, asking.id), steward())
    assert arrives(north, statement=queued(south)[-1]) is None
    seal_approved(south, transfer_at(south, asking.id))
    with south.store.read() as connection:
        shipment = connection.execute(
            sa.select(store.transfers.c.shipment).where(store.transfers.c.transfer_id == asking.id)
        ).scalar_one()
    transfer = transfer_at(north, asking.id)
    tokens = [bytes([i]) * 16 for i in range(len(values))]
    with north.store.write() as connection:
        move(connection, transfer, Event.RELAY, Party.DONOR, "coordinator")
        move(connection, transfer, Event.DELIVER, Party.RECIPIENT, "agent", shipment=shipment)
        keep_samples(
            north,
            connection,
            transfer,
            load_site_table(north.settings, north.dictionary),
            ReceivedSamples(tokens=tokens, values=values),
        )
        note_passed_gate(connection, transfer, "schema, region and duplicates checked", len(values))
    return transfer_at(north, asking.id)


def selected(site: Site) -> set[bytes]:
    with site.store.read() as connection:
        return set(connection.execute(sa.select(store.disclosed.c.patient_tag)).scalars())
