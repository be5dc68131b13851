"""A generated hospital as a site of the product: its table, keys, database, dictionary and published report.

Keys follow from the plan's seed, so that any process can open the site and the coordinator knows it beforehand. They
protect nothing: nobody but the simulation ever sees what they sign.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pandas as pd

from synthedge_client import dictionaries, releases, store
from synthedge_client.keystore import KeyStore
from synthedge_client.settings import SiteSettings
from synthedge_client.site import Site
from synthedge_client.stewards import Steward
from synthedge_core.dictionary import Dictionary
from synthedge_deploy.generated import GeneratedHospital, Plan, hospital
from synthedge_protocols.keys import HpkeKeyPair, StatementKey, TlsKey
from synthedge_protocols.statements import sign
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

CONSORTIUM: Final = "simulated"
_STEWARD: Final = "steward"
_PATIENT: Final = "patient"
_CONSENT: Final = "consent"
_DAY_MS: Final = 86_400_000


class VirtualKeys:
    """The keys of one virtual site.

    Parameters
    ----------
    plan : Plan
    site : str
    """

    def __init__(self, plan: Plan, site: str) -> None:
        self._seed = f"synthedge simulation {plan.seed} {site}"
        self.site = site

    @cached_property
    def statement(self) -> StatementKey:
        """The site's own."""
        return StatementKey.from_seed(self._bytes("statement", 32))

    @cached_property
    def steward(self) -> StatementKey:
        """Its steward's."""
        return StatementKey.from_seed(self._bytes("steward", 32))

    @cached_property
    def hpke(self) -> HpkeKeyPair:
        """What others seal to."""
        return HpkeKeyPair(self._bytes("hpke", 96))

    def hpke_statement(self, now_ms: int) -> pb.SignedStatement:
        """The HPKE key as the site signs it for the directory."""
        return sign(
            self.statement,
            pb.HpkeKey(
                key_id=self.hpke.key_id,
                public_key=self.hpke.public_bytes,
                not_before_ms=now_ms - _DAY_MS,
                not_after_ms=now_ms + _DAY_MS,
            ),
            consortium=CONSORTIUM,
            site=self.site,
            dictionary_digest=b"",
            issued_at_ms=now_ms,
        )

    def _bytes(self, purpose: str, n: int) -> bytes:
        return hashlib.shake_256(f"{self._seed} {purpose}".encode()).digest(n)


@contextmanager
def open_published(plan: Plan, i: int, scratch: str) -> Iterator[Site]:
    """The i-th hospital's site, which has published its report; it is gone afterwards.

    Parameters
    ----------
    plan : Plan
    i : int
    scratch : str
        A folder for what is gone afterwards, even if this process is killed: its owner deletes it.

    Raises
    ------
    DisclosureRefusedError
        If the dictionary's policy does not protect the report.
    """
    made = hospital(plan, i)
    with TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        (folder / "keys").mkdir(mode=0o700)  # where the steward's certificate is kept
        _write_table(made, plan.dictionary, folder / "patients.csv")
        keys = VirtualKeys(plan, made.site)
        database = store.Store(folder / "site.db")
        try:
            with database.write() as connection:
                store.set_fact(connection, "consortium", CONSORTIUM)
                store.set_fact(connection, "address", "127.0.0.1:1")  # nobody calls
                dictionaries.remember(
                    connection,
                    wire.DictionaryDocument(
                        digest=bytes.fromhex(plan.dictionary.digest),
                        toml=plan.dictionary_text,
                        version=1,
                    ),
                )
            site = Site(
                SiteSettings(
                    folder=folder,
                    id=made.site,
                    data=folder / "patients.csv",
                    patient_id=_PATIENT,
                    consent=_CONSENT,
                ),
                KeyStore(
                    folder / "keys", os.urandom(32), keys.statement, keys.hpke, TlsKey.generate()
                ),
                database,
            )
            steward = Steward(_STEWARD, keys.steward)
            dictionaries.accept(site, steward)
            releases.publish(site, steward)
            yield site
        finally:
            database.close()


def _write_table(made: GeneratedHospital, dictionary: Dictionary, path: Path) -> None:
    """Write the table as a hospital keeps it: level codes, one row a patient, consents in a column."""
    n = len(made.samples)
    columns: dict[str, object] = {
        _PATIENT: [f"{made.site}-{k}" for k in range(n)],
        _CONSENT: ["active" if consents else "withdrawn" for consents in made.has_consent],
        dictionary.target.column: [
            dictionary.target.positive if positive else f"not {dictionary.target.positive}"
            for positive in made.samples.positive
        ],
    }
    for feature, values in zip(dictionary.features, made.samples.values.T, strict=True):
        columns[feature.name] = (
            [feature.levels[int(level)] for level in values] if feature.levels else values
        )
    pd.DataFrame(columns).to_csv(path, index=False)
