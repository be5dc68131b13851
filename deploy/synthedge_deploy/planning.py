"""`synthedge-coordinator simulate`: what a consortium of so many hospitals would find, move and cost.

Every hospital is generated, with a hole at some of them, and runs the product's own site: mapping, counting,
protection, signature. A Flower round carries the reports to the product's own intake; registry, profiles and
proposals follow as in a running coordinator. Then every hospital compares as its agent would, and donors choose,
protect and seal rows. What is left out: the network between, the statements of a transfer, and people.
"""

import asyncio
import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from sqlalchemy import insert, select

from synthedge_client.discovery import answer_round
from synthedge_client.dose import recommend, rows_of_each
from synthedge_client.flower_app import make_client_app
from synthedge_client.hints import check_profile, check_proposals, profile_of_grid
from synthedge_client.outbound import build_payload, commitment
from synthedge_core.errors import SynthEdgeError, UsageError
from synthedge_core.grids import count
from synthedge_core.holes import Hole, find_holes, rank_holes
from synthedge_core.public_dictionaries import public_dictionary
from synthedge_deploy.engines import ENGINES, PARTITION, Engine, require, run_round
from synthedge_deploy.generated import GeneratedHospital, Plan, hospitals
from synthedge_deploy.simulate import deliver
from synthedge_deploy.uci import DICTIONARY
from synthedge_deploy.virtual_site import CONSORTIUM, VirtualKeys, open_published
from synthedge_protocols.compression import compress
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import SealingContext, seal
from synthedge_protocols.standing import Standing
from synthedge_protocols.statements import read_unverified
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.writer import Writer
from synthedge_server import store
from synthedge_server.broker import Broker
from synthedge_server.directory import KeyDirectory
from synthedge_server.flower_round import ask_nodes
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

MAX_GRID_SITES: Final = 200
_LIMITS: Final = Limits()
_TIMEOUT_S: Final = 3600.0
_NOBODY: Final = Address(host="127.0.0.1", port=0)


@dataclass(kw_only=True)
class Figures:
    """What one simulated consortium found, moved and cost.

    Attributes
    ----------
    sites, reports : int
        Sites, and those whose report was taken in.
    holes_made : int
    holes_confirmed, confirmed_right : int
        Confirmed holes of all sites, and how many of them are where one was made.
    made_confirmed, made_first : int
        Made holes that were confirmed, and that came first in their site's list.
    proposals, asks : int
        Donors proposed, and regions that sites would ask for.
    transfers, rows : int
        Deliveries that passed the recipient's gate, and their rows.
    refused : int
        Deliveries that did not.
    to_made, rows_to_made : int
        Those of `transfers` and `rows` that went where a hole was made.
    wire_bytes : dict of str to int
        By kind: `rounds` and `reports` as Flower carries them, `profiles`, `proposals`, `directory` (what every site
        reads once) and `sealed` rows with their shipment.
    wall_s : dict of str to float
        By stage, in seconds.
    cpu_ms : dict of str to float
        By stage, milliseconds of processor time a site. `report` is measured at a few sites in this process.
    """

    sites: int
    reports: int = 0
    holes_made: int = 0
    holes_confirmed: int = 0
    confirmed_right: int = 0
    made_confirmed: int = 0
    made_first: int = 0
    proposals: int = 0
    asks: int = 0
    transfers: int = 0
    rows: int = 0
    refused: int = 0
    to_made: int = 0
    rows_to_made: int = 0
    wire_bytes: Counter[str] = field(default_factory=Counter)
    wall_s: dict[str, float] = field(default_factory=dict)
    cpu_ms: dict[str, float] = field(default_factory=dict)

    @property
    def precision(self) -> float | None:
        """Share of the confirmed holes that were made; None without any."""
        return self.confirmed_right / self.holes_confirmed if self.holes_confirmed else None

    @property
    def recall(self) -> float | None:
        """Share of the made holes that were confirmed; None without any."""
        return self.made_confirmed / self.holes_made if self.holes_made else None

    @property
    def first(self) -> float | None:
        """Share of the made holes that came first; None without any."""
        return self.made_first / self.holes_made if self.holes_made else None

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        shares = {"precision": self.precision, "recall": self.recall, "first": self.first}
        return asdict(self) | shares | {"wire_bytes": dict(self.wire_bytes)}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        self.wall_s[stage] = time.perf_counter() - wall_s
        self.cpu_ms[stage] = (time.process_time() - cpu_s) * 1000 / self.sites


def steps(n_sites: int) -> list[int]:
    """Numbers of sites to simulate on the way to one: 10, 100, ..., and itself."""
    return [n for n in (10, 100, 1000) if n < n_sites] + [n_sites]


def engine_for(asked: str | None, n_sites: int) -> Engine:
    """The engine that was asked for; without one the grid in this process, where it is enough.

    Raises
    ------
    UsageError
        If there is no such engine, it is asked for too much, or is not installed.
    """
    if asked is None:
        asked = "grid" if n_sites <= MAX_GRID_SITES else "ray"
    engine = next((known for known in ENGINES if known == asked), None)
    if engine is None:
        raise UsageError(f"there is no engine '{asked}'; take {' or '.join(ENGINES)}")
    if engine == "grid" and n_sites > MAX_GRID_SITES:
        raise UsageError(
            f"{n_sites} sites are too many for the grid in this process, which takes up to {MAX_GRID_SITES}; "
            "take '--engine ray'"
        )
    require(engine)
    return engine


def simulate(
    dictionary_text: str | None,
    sizes: list[int],
    *,
    engine: Engine,
    shift: float,
    patients: int,
    holes: float,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Simulate a consortium at several numbers of sites; parameters as `Plan`.

    Parameters
    ----------
    dictionary_text : str or None
        None takes the public heart dictionary.
    sizes : list of int
        Numbers of sites, one simulation each.
    engine : {"grid", "ray"}
    say : callable
        Told what goes on.

    Returns
    -------
    list of dict
        `Figures.as_dict` of each.

    Raises
    ------
    UsageError
        If a number is out of range, or the engine is not installed.
    DictionaryError
        If the dictionary is not valid.
    """
    plans = [
        Plan(
            dictionary_text=dictionary_text or public_dictionary(DICTIONARY),
            n_sites=n_sites,
            shift=shift,
            patients=patients,
            holes=holes,
            seed=seed,
        )
        for n_sites in sizes
    ]
    found = []
    for plan in plans:
        say(f"{plan.n_sites} sites on {engine}")
        found.append(run(plan, engine).as_dict())
    return found


def run(plan: Plan, engine: Engine) -> Figures:
    """Simulate one consortium.

    Raises
    ------
    SynthEdgeError
        If a site could not report; see `simulate` for the rest.
    """
    figures = Figures(sites=plan.n_sites)
    with TemporaryDirectory(prefix="synthedge-simulated-") as name:
        with _Coordinator(Path(name) / "coordinator", plan) as coordinator:
            asked = coordinator.open_round()
            with figures.timed("round"):
                answers = collect(plan, engine, asked, figures)
            with figures.timed("intake"):
                for data in answers:
                    coordinator.take(data)
                figures.reports = len(answers)
            with figures.timed("telling"):
                coordinator.tell()
            told = coordinator.told(figures)
        figures.cpu_ms["report"] = _report_ms(plan, asked)
        made = {one.site: one for one in hospitals(plan)}
        with figures.timed("comparing"):
            ranked = {
                site: _compare(plan, made[site], profile, proposals, figures)
                for site, (profile, proposals) in told.items()
            }
        with figures.timed("transfers"):
            for site, holes in ranked.items():
                _transfer(plan, made, site, holes, told[site][1], figures)
    return figures


def collect(
    plan: Plan, engine: Engine, asked: wire.DiscoveryRound, figures: Figures
) -> list[bytes]:
    """Run one round over all virtual sites; the answers as they came.

    Raises
    ------
    SynthEdgeError
        If a site did not answer.
    """
    answers: list[bytes] = []
    unreached: dict[str, Any] = {}

    def serve(grid: Any, nodes: Any) -> None:
        named = {f"node {node}": node for node in nodes}
        take = lambda _, data: answers.append(data)  # noqa: E731
        unreached.update(ask_nodes(grid, asked, named, take, _TIMEOUT_S))

    app = make_client_app(lambda context: open_published(plan, int(context.node_config[PARTITION])))
    traffic = run_round(engine, app, plan.n_sites, serve)
    if unreached or len(answers) != plan.n_sites:
        why = next(iter(unreached.values()), ("", "no reply"))[1]
        raise SynthEdgeError(
            f"{plan.n_sites - len(answers)} of {plan.n_sites} virtual sites did not answer: {why}"
        )
    figures.wire_bytes["rounds"] = traffic.asked_bytes
    figures.wire_bytes["reports"] = traffic.answered_bytes
    return answers


class _Coordinator:
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

    def __enter__(self) -> "_Coordinator":
        self._runner.run(self._ledger.write(partial(_enrol_all, plan=self._plan)))
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()
        self._writer.close()
        self._engine.dispose()

    def open_round(self) -> wire.DiscoveryRound:
        """Open a round over all sites."""
        change = partial(open_round, engine="flower", sites=None, timeout_s=_TIMEOUT_S)
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


def _report_ms(plan: Plan, asked: wire.DiscoveryRound) -> float:
    """Processor time of one site's report, milliseconds: the mean of a few, the libraries being loaded."""
    n = min(5, plan.n_sites)
    started = 0.0
    for i in range(-1, n):  # the first loads the libraries
        if i == 0:
            started = time.process_time()
        with open_published(plan, max(i, 0)) as site:
            answer_round(site, asked, "flower")
    return (time.process_time() - started) * 1000 / n


def _compare(
    plan: Plan,
    made: GeneratedHospital,
    profile: wire.HoleProfile,
    proposals: wire.Proposals,
    figures: Figures,
) -> list[tuple[str, Hole]]:
    """Find a site's holes in what it was told, as its agent and `gaps list` do; count what was found."""
    check_profile(profile, plan.dictionary)
    check_proposals(proposals, plan.dictionary, made.site, _LIMITS)
    holes = {}
    for told in profile.grids:
        own = count(plan.grids[told.grid], made.samples.values, made.samples.positive)
        holes[told.grid] = find_holes(profile_of_grid(told), own.positives, own.negatives)
    ranked = rank_holes(holes)
    confirmed = [(grid, hole.voxel) for grid, hole in ranked if hole.status == "confirmed"]
    figures.holes_confirmed += len(confirmed)
    if made.hole is not None:
        right = [place for place in confirmed if made.hole.is_at(*place)]
        figures.holes_made += 1
        figures.confirmed_right += len(right)
        figures.made_confirmed += bool(right)
        figures.made_first += bool(ranked) and made.hole.is_at(ranked[0][0], ranked[0][1].voxel)
    return ranked


def _transfer(
    plan: Plan,
    made: dict[str, GeneratedHospital],
    site: str,
    ranked: list[tuple[str, Hole]],
    proposals: wire.Proposals,
    figures: Figures,
) -> None:
    """Ask for what is recommended first, as a steward would, and let the proposed donors give."""
    policy, own = plan.dictionary.policy, made[site]
    n_positive = int(own.samples.positive.sum())
    chosen = recommend(
        ranked, n_positive, (), least=policy.min_count, most=policy.rows_per_transfer
    )
    if chosen is None:
        return
    figures.asks += 1
    grid, n_wanted = plan.grids[chosen.grid], chosen.rows
    is_made = own.hole is not None and own.hole.is_at(chosen.grid, chosen.hole.voxel)
    proposed = [
        (p.donor, grid.flat_of(tuple(p.donor_voxel)))
        for p in proposals.proposals
        if p.grid == chosen.grid and grid.flat_of(tuple(p.voxel)) == chosen.hole.voxel
    ]
    generator = np.random.default_rng([plan.seed, 2, int(site.rpartition("-")[2])])
    for i, (donor, voxel) in enumerate(proposed):
        if n_wanted <= 0:
            return
        n_asked = rows_of_each(n_wanted, len(proposed) - i, least=policy.min_count)
        given = deliver(
            made[donor].samples,
            made[donor].has_consent,
            own.samples,
            plan.dictionary,
            plan.agreed,
            grid,
            voxel,
            n_asked,
            generator,
        )
        if given is None:
            continue  # the donor has too few to give
        rows, accepted = given
        figures.wire_bytes["sealed"] += _sealed_bytes(
            plan, donor, site, rows.values, rows.positive, grid.features
        )
        if not accepted:
            figures.refused += 1
            continue
        n_wanted -= len(rows)
        figures.transfers += 1
        figures.rows += len(rows)
        figures.to_made += is_made
        figures.rows_to_made += len(rows) * is_made


def _sealed_bytes(
    plan: Plan,
    donor: str,
    recipient: str,
    values: np.ndarray,
    positive: np.ndarray,
    region: tuple[str, ...],
) -> int:
    """Protect and seal rows as a donor does; how many bytes leave it."""
    dictionary = plan.dictionary
    identifier = hashlib.sha256(f"{donor} {recipient}".encode()).digest()
    payload = build_payload(
        values,
        positive,
        [hashlib.sha256(identifier + bytes([i])).digest()[:16] for i in range(len(values))],
        transfer_id=identifier,
        donor=donor,
        dictionary=dictionary,
        features=plan.agreed,
        region=region,
    )
    giving, asking = VirtualKeys(plan, donor), VirtualKeys(plan, recipient)
    ciphertext = io.BytesIO()
    sealed = seal(
        io.BytesIO(compress(payload.SerializeToString())),
        ciphertext,
        recipient=asking.hpke.public_key,
        context=SealingContext(
            transfer_id=identifier,
            request_digest=identifier,
            manifest_commitment=commitment(payload),
            donor_key_id=giving.statement.key_id,
            recipient_key_id=asking.statement.key_id,
            recipient_hpke_key_id=asking.hpke.key_id,
            dictionary_digest=bytes.fromhex(dictionary.digest),
        ),
        limits=_LIMITS,
    )
    return len(ciphertext.getvalue()) + sealed.shipment(identifier).ByteSize()
