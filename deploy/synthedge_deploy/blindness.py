"""`synthedge-coordinator prove-blind`: canary patients go from one site to another; the coordinator is searched.

Real processes on this machine: a recording coordinator, a donor whose region holds only canary patients, a recipient
that asks for them. Searched for every canary's id and every value, in the forms a program keeps numbers in: the
coordinator's folder and log, every message it was sent or sent, and its memory, once while the sealed bytes lie there
and once at the end. The same search must find the canaries at the donor and at the recipient, or it proves nothing.
"""

import os
import secrets
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from synthedge_core.errors import SynthEdgeError
from synthedge_deploy.consortium import Consortium, free_port
from synthedge_deploy.recorder import read_messages
from synthedge_protocols.errors import VerificationError

N_CANARIES: Final = 6
_PASSPHRASE: Final = "only for this machine"  # noqa: S105 - of keys that are deleted a minute later
_PURPOSE: Final = "DUO:0000007"
_REGION: Final = "pressure/2"  # the voxel from 130 on

# Six decimals: no value of a canary is found anywhere by chance.
_DICTIONARY: Final = """
schema_version = 1
name = "blindness"

[target]
column = "outcome"
positive = "1"
definition = "made up for this proof"
time_window = "none"
exclusions = "none"

[[features]]
name = "pressure"
kind = "continuous"
unit = "mm[Hg]"
plausible = [60, 200]
center = 120.0
scale = 20.0
cut_points = [100, 130]
privacy = "measurement"
decimals = 6

[[features]]
name = "weight"
kind = "continuous"
unit = "kg"
plausible = [30, 200]
center = 75.0
scale = 15.0
cut_points = [60, 90]
privacy = "measurement"
decimals = 6

[[grids]]
name = "pressure"
features = ["pressure"]

[policy]
disclosure = "dp"
epsilon = 1.0
epsilon_total = 4.0
min_count = 5
min_sites = 3
similarity = 0.70
rows_per_transfer = 20
"""


@dataclass(frozen=True)
class Canaries:
    """Patients nobody can mistake for chance.

    Attributes
    ----------
    ids : list of str
    values : ndarray of shape (n_canaries, 2)
        Pressure and weight, with six decimals.
    """

    ids: list[str]
    values: NDArray[np.float64]

    @classmethod
    def new(cls) -> "Canaries":
        """Draw some."""
        generator = np.random.default_rng(secrets.randbits(128))
        pressure = generator.uniform(131, 190, N_CANARIES)
        weight = generator.uniform(45, 130, N_CANARIES)
        ids = [f"canary-{secrets.token_hex(8)}" for _ in range(N_CANARIES)]
        return cls(ids, np.column_stack([pressure, weight]).astype(np.float64).round(6))

    def needles(self) -> Iterator[tuple[str, bytes]]:
        """Every form that is searched for, each with its kind."""
        for patient in self.ids:
            yield "id", patient.encode()
            yield "id, UTF-16", patient.encode("utf-16-le")
        for value in map(float, self.values.ravel()):
            yield "value as text", f"{value:.6f}".rstrip("0").encode()
            yield "value as float64", struct.pack("<d", value)
            yield "value as float64, big-endian", struct.pack(">d", value)
        # Four bytes of one float32 occur in a hundred megabytes by chance; two in a row, as a row is kept, do not.
        for row in self.values:
            yield "row as float32", struct.pack("<2f", *map(float, row))


def found_in(data: bytes, canaries: Canaries) -> list[str]:
    """Kinds of traces of canaries in some bytes, one entry a trace."""
    return [kind for kind, needle in canaries.needles() if needle in data]


def memory_of(pid: int) -> bytes:
    """Everything a process of ours has in memory that it can have written: all but files mapped to be read.

    Raises
    ------
    SynthEdgeError
        If the system does not let this process look: a proof without it would be none.
    """
    parts = []
    try:
        regions = Path(f"/proc/{pid}/maps").read_text().splitlines()
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            for line in regions:
                span, access, *_ = line.split()
                if not access.startswith("rw"):
                    continue
                start, end = (int(part, 16) for part in span.split("-"))
                try:
                    memory.seek(start)
                    parts.append(memory.read(end - start))
                except (OSError, OverflowError, ValueError):
                    continue  # mapped, but nothing behind it
    except OSError as error:
        raise SynthEdgeError(
            f"the memory of process {pid} cannot be read ({error.strerror}); run this as the user of the "
            "coordinator, on Linux"
        ) from None
    return b"".join(parts)


def prove(show: Callable[[str], None]) -> dict[str, Any]:
    """Run the proof.

    Parameters
    ----------
    show : callable
        Takes each command line before it runs.

    Returns
    -------
    dict
        What was searched, how much of it there was, and where else the canaries were found.

    Raises
    ------
    VerificationError
        If a trace of a canary is where none may be; naming the place and the form, never the value.
    ProcessError
        If the transfer does not come about.
    """
    canaries = Canaries.new()
    with tempfile.TemporaryDirectory(prefix="blindness-") as name:
        folder = Path(name)
        with _consortium(folder, canaries, show) as run:
            identifier = run.ask_and_approve()
            run.once("donor")
            pid = run.consortium.process("coordinator").pid
            spool = folder / "coordinator" / "spool"
            sealed = sum(path.stat().st_size for path in spool.iterdir())
            if not sealed:
                raise VerificationError("no sealed bytes lay at the coordinator; nothing is proved")
            holding = memory_of(pid)
            run.once("recipient")
            run.once("recipient")
            after = memory_of(pid)
            state = run.state_of(identifier)
            received = run.received()
        messages = read_messages(folder / "messages")
        places = {
            "memory while it held the sealed bytes": holding,
            "memory at the end": after,
            "files of its folder": _contents(folder / "coordinator"),
            "log": (folder / "logs" / "coordinator.log").read_bytes(),
            "messages, both ways": b"".join(message.data for message in messages),
        }
        for place, data in places.items():
            traces = found_in(data, canaries)
            if traces:
                raise VerificationError(
                    f"NOT blind: {len(traces)} traces of canary patients in the coordinator's {place} "
                    f"({', '.join(sorted(set(traces)))})"
                )
        if not found_in(memory_of(os.getpid()), canaries):
            raise VerificationError(
                "nothing is proved: the search misses them in this very process"
            )
        at_donor = len(found_in(_contents(folder / "donor"), canaries))
        if state != "ACTIVE" or received != N_CANARIES or at_donor < N_CANARIES:
            raise VerificationError(
                f"nothing is proved: the transfer is {state}, {received} of {N_CANARIES} canaries arrived, "
                f"{at_donor} traces were found at the donor"
            )
    return {
        "canaries": N_CANARIES,
        "forms_searched": sum(1 for _ in canaries.needles()),
        "searched_bytes": {place: len(data) for place, data in places.items()},
        "messages": len(messages),
        "sealed_bytes_held": sealed,
        "found_at_coordinator": 0,
        "found_at_donor": at_donor,
        "received_by_recipient": received,
    }


class _Run:
    """The people of the proof, typing."""

    def __init__(self, consortium: Consortium, canaries: Canaries) -> None:
        self.consortium = consortium
        self._canaries = canaries
        self._folder = consortium.folder

    def site(self, site: str, *command: str) -> Any:
        return self.consortium.command(
            "synthedge", "site", *command, "--dir", str(self._folder / site)
        )

    def sign(self) -> tuple[str, ...]:
        return ("--steward", "steward", "--passphrase-file", str(self._folder / "passphrase"))

    def once(self, site: str) -> None:
        self.site(site, "run", "--once")

    def set_up(self) -> None:
        (self._folder / "consortium.toml").write_text(_DICTIONARY)
        passphrase = self._folder / "passphrase"
        passphrase.write_text(_PASSPHRASE)
        passphrase.chmod(0o600)
        coordinator = self._folder / "coordinator"
        self.consortium.command(
            "synthedge-coordinator", "init", str(coordinator), "--name", "blindness",
            "--dictionary", str(self._folder / "consortium.toml"),
            "--listen", f"127.0.0.1:{free_port()}",
            "--enrolment-listen", f"127.0.0.1:{free_port()}",
        )  # fmt: skip
        self.consortium.start(
            "coordinator", Path(sys.executable).name, "-m", "synthedge_deploy.recorder",
            str(self._folder / "messages"), "serve", "--dir", str(coordinator),
        )  # fmt: skip
        log = self.consortium.log("coordinator")
        self.consortium.wait_for("the coordinator", lambda: "ready" in log.read_text())
        fingerprints = {site: self._make_site(site) for site in ("donor", "recipient")}
        for site in fingerprints:
            self.once(site)
        for site in fingerprints:
            self.once(site)  # the first to enrol learns of the second
        for site, other in (("donor", "recipient"), ("recipient", "donor")):
            self.site(site, "peers", "verify", other, fingerprints[other])

    def _make_site(self, site: str) -> str:
        folder = self._folder / site
        folder.mkdir()
        _patients(self._canaries if site == "donor" else None).to_csv(
            folder / "patients.csv", index=False
        )
        fingerprint: str = self.consortium.command(
            "synthedge", "site", "init", str(folder), "--id", site,
            "--data", str(folder / "patients.csv"), "--patient-id", "id", "--consent", "consent",
        )["fingerprint"]  # fmt: skip
        self.site(site, "steward", "add", "steward", *self.sign()[2:])
        token = self.consortium.command(
            "synthedge-coordinator", "invite", site, "--dir", str(self._folder / "coordinator")
        )["token"]
        (folder / "token").write_text(token)
        self.site(site, "enrol", "--token-file", str(folder / "token"))
        self.site(site, "dictionary", "accept", *self.sign())
        self.site(site, "gaps", "publish", *self.sign())
        return fingerprint

    def ask_and_approve(self) -> str:
        asked = self.site(
            "recipient", "requests", "new", _REGION, "--rows", str(N_CANARIES), "--purpose",
            _PURPOSE, "--donor", "donor", "--accept-if-gate-passes", *self.sign(),
        )  # fmt: skip
        identifier: str = asked["transfer_id"]
        self.once("recipient")
        self.once("donor")
        self.site("donor", "requests", "prepare", identifier)
        self.site("donor", "requests", "approve", identifier, *self.sign())
        return identifier

    def state_of(self, identifier: str) -> str:
        listed = self.site("recipient", "requests", "list")
        return str(next(row["state"] for row in listed if row["transfer_id"] == identifier))

    def received(self) -> int:
        """How many canaries the recipient can read."""
        output = self._folder / "recipient" / "received.csv"
        self.site("recipient", "received", "export", "--output", str(output))
        text = output.read_text()
        return sum(f"{row[0]:.6f}".rstrip("0") in text for row in self._canaries.values)


@contextmanager
def _consortium(folder: Path, canaries: Canaries, show: Callable[[str], None]) -> Iterator[_Run]:
    with Consortium(folder, show) as consortium:
        run = _Run(consortium, canaries)
        run.set_up()
        yield run


def _patients(canaries: Canaries | None) -> pd.DataFrame:
    """Ordinary patients, and the canaries as the only positives from 130 on."""
    generator = np.random.default_rng(7)
    n = 120
    pressure = np.round(generator.uniform(70, 190, n), 1)
    positive = (generator.random(n) < 0.5) & (pressure < 130)
    table = pd.DataFrame(
        {
            "id": [f"patient-{i:04d}" for i in range(n)],
            "consent": "active",
            "outcome": positive.astype(int),
            "pressure": pressure,
            "weight": np.round(generator.uniform(45, 130, n), 1),
        }
    )
    if canaries is None:
        return table
    rare = pd.DataFrame(
        {
            "id": canaries.ids,
            "consent": "active",
            "outcome": 1,
            "pressure": canaries.values[:, 0],
            "weight": canaries.values[:, 1],
        }
    )
    return pd.concat([table, rare], ignore_index=True)


def _contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
