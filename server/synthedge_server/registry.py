"""Gap reports: stored once they are believed, turned into hole profiles and proposals for every site."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, bindparam, insert, select, update

from synthedge_core.dictionary import Dictionary
from synthedge_core.grids import NamedGrid
from synthedge_core.holes import GridStatistics, VoxelProfile, leave_one_out_profiles
from synthedge_core.match_strategies import SiteReport
from synthedge_core.matching import Matcher, StrategyName
from synthedge_protocols.errors import ReplayError
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.ledger import Transaction
from synthedge_server.releases import check_budget
from synthedge_server.report_checks import check_report

Statistics = Mapping[str, GridStatistics]

_PAYLOAD_OF: Final = Prepared(
    select(store.reports.c.payload)
    .join(store.sites, store.sites.c.site == store.reports.c.site)
    .where(
        store.reports.c.site == bindparam("of_site"),
        store.reports.c.dictionary_digest == bindparam("of_digest"),
        store.reports.c.is_current,
        store.sites.c.state == "active",
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conclusion:
    """What one site is told.

    Attributes
    ----------
    site : str
    profile : HoleProfile
        Means over the others.
    proposals : Proposals
        Who could help it.
    """

    site: str
    profile: wire.HoleProfile
    proposals: wire.Proposals


class Registry:
    """What sites published under one dictionary, and what follows from it.

    Rules: a release has one report, byte for byte; a site's newest release is its current report; nothing
    follows for anybody before `policy.min_sites` sites have reported, because the mean of one other site would be
    that site's own numbers.

    Parameters
    ----------
    dictionary : Dictionary
        The current one; reports under another are refused before they come here.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.digest = bytes.fromhex(dictionary.digest)
        self.grids = {spec.name: NamedGrid(dictionary, spec) for spec in dictionary.grids}
        # What is decoded stays: a release has one report for ever, so nothing here can become wrong.
        self._decoded: dict[tuple[str, bytes], SiteReport] = {}
        self._matcher = self.new_matcher("share")

    def accept(self, transaction: Transaction, verified: Verified[pb.GapReport]) -> None:
        """Store a report; every site is told by and by what follows from it, see `telling`.

        Raises
        ------
        MalformedError, PolicyError
            See `report_checks.check_report`.
        ReplayError
            If the release already has a report with other content.
        PolicyError
            Also if the site's releases would exceed the budget of the dictionary.
        """
        report = verified.payload
        check_report(report, self.dictionary, self.grids)
        connection, table = transaction.connection, store.reports
        stored = connection.execute(
            select(table.c.payload).where(
                table.c.site == verified.site,
                table.c.dictionary_digest == self.digest,
                table.c.release_id == report.release_id,
            )
        ).scalar_one_or_none()
        if stored is not None:
            if stored != verified.payload_bytes:
                raise ReplayError(
                    f"release {report.release_id.hex()[:8]} of site '{verified.site}' has a report "
                    "with other content already; a new report needs a new release"
                )
        else:
            policy = self.dictionary.policy
            check_budget(connection, verified.site, self.digest, policy, report)
            connection.execute(
                insert(table).values(
                    site=verified.site,
                    dictionary_digest=self.digest,
                    release_id=report.release_id,
                    payload=verified.payload_bytes,
                    epsilon=report.epsilon,
                    received_at_ms=transaction.now_ms,
                    is_current=True,
                )
            )
        # An earlier release that was signed anew is the current one again: the data are as they were.
        connection.execute(
            update(table)
            .where(table.c.site == verified.site, table.c.dictionary_digest == self.digest)
            .values(is_current=table.c.release_id == report.release_id)
        )
        mark_due(connection, self.digest)

    def grids_of(self, connection: Connection, site: str) -> set[str]:
        """Grids of an active site's current report; none without one."""
        row = _PAYLOAD_OF.one(connection, of_site=site, of_digest=self.digest)
        # It was checked as a whole when it was taken in.
        report = pb.GapReport() if row is None else pb.GapReport.FromString(row.payload)
        return {grid.grid for grid in report.grids}

    def current_reports(self, connection: Connection) -> dict[str, SiteReport]:
        """Current reports of all active sites; the same release is the same object every time."""
        table = store.reports
        before, self._decoded = self._decoded, {}
        keys = self._current(table.c.site, table.c.release_id).order_by(table.c.site)
        for site, release_id in connection.execute(keys).all():
            report = before.get((site, release_id))
            if report is None:
                payload = connection.execute(
                    select(table.c.payload).where(
                        table.c.site == site,
                        table.c.dictionary_digest == self.digest,
                        table.c.release_id == release_id,
                    )
                ).scalar_one()
                report = self._decode(payload)
            self._decoded[site, release_id] = report
        return {site: report for (site, _), report in self._decoded.items()}

    def conclusions(self, reports: Mapping[str, SiteReport]) -> Iterator[Conclusion]:
        """What follows from all current reports, site by site; nothing from too few.

        Nothing is read or written here, so that it can be worked out beside the writer's transactions.
        """
        if len(reports) < self.dictionary.policy.min_sites:
            return
        self._matcher.update(reports)
        profiles = hole_profiles(self.dictionary, {s: r.grids for s, r in reports.items()})
        for site in reports:
            yield Conclusion(site=site, profile=profiles[site], proposals=self._proposals(site))

    def new_matcher(self, strategy: StrategyName) -> Matcher:
        """A matcher with the dictionary's policy that knows no report yet."""
        policy = self.dictionary.policy
        return Matcher(
            list(self.grids.values()),
            similarity=policy.similarity,
            min_shared_features=policy.min_shared_features,
            min_others=policy.min_sites - 1,
            strategy=strategy,
        )

    def _current(self, *columns: ColumnElement[Any]) -> Select[Any]:
        table = store.reports
        return (
            select(*columns)
            .join(store.sites, store.sites.c.site == table.c.site)
            .where(
                table.c.dictionary_digest == self.digest,
                table.c.is_current,
                store.sites.c.state == "active",
            )
        )

    def _decode(self, payload: bytes) -> SiteReport:
        report = pb.GapReport.FromString(payload)
        grids = check_report(report, self.dictionary, self.grids)
        return SiteReport(features=tuple(report.features), grids=grids)

    def _proposals(self, site: str) -> wire.Proposals:
        message = wire.Proposals(dictionary_digest=self.digest)
        message.proposals.extend(
            wire.Proposal(
                grid=match.grid,
                voxel=self.grids[match.grid].index_of(match.voxel),
                donor=match.donor,
                donor_voxel=self.grids[match.donor_grid].index_of(match.donor_voxel),
                similarity=match.similarity,
                rank=match.rank,
                reason=match.reason,
            )
            for match in self._matcher.matches(site)
        )
        return message


def hole_profiles(
    dictionary: Dictionary, reports: Mapping[str, Statistics]
) -> dict[str, wire.HoleProfile]:
    """What every site that reported is told of the others.

    Parameters
    ----------
    dictionary : Dictionary
        The one the reports were made under.
    reports : dict of site id to grid to GridStatistics
        All current reports.

    Returns
    -------
    dict of site id to HoleProfile
        Per site, the grids that it and enough others reported.
    """
    min_others = dictionary.policy.min_sites - 1
    digest = bytes.fromhex(dictionary.digest)
    messages = {site: wire.HoleProfile(dictionary_digest=digest) for site in reports}
    for spec in dictionary.grids:
        published = {site: r[spec.name] for site, r in reports.items() if spec.name in r}
        if len(published) <= min_others:
            continue
        for site, profile in leave_one_out_profiles(published, min_others).items():
            messages[site].grids.append(_grid_profile(spec.name, profile))
    return messages


def _grid_profile(name: str, profile: VoxelProfile) -> wire.GridProfile:
    return wire.GridProfile(
        grid=name,
        n_sites=profile.n_sites,
        voxels=[
            wire.VoxelProfile(
                positive_share=float(profile.f[i]),
                positive_share_var=float(profile.v_f[i]),
                odds_ratio=float(profile.o[i]),
                odds_ratio_var=float(profile.v_o[i]),
                known=bool(profile.known[i]),
                patient_share=float(profile.share[i]),
                patient_share_var=float(profile.v_share[i]),
                patients_known=bool(profile.patients_known[i]),
            )
            for i in range(len(profile.f))
        ],
    )


def mark_due(connection: Connection, dictionary_digest: bytes) -> None:
    """Count one more change of the current reports; `telling` compares with what was told."""
    table = store.tellings
    counted = connection.execute(
        update(table)
        .where(table.c.dictionary_digest == dictionary_digest)
        .values(n_reported=table.c.n_reported + 1)
    )
    if not counted.rowcount:
        connection.execute(
            insert(table).values(dictionary_digest=dictionary_digest, n_reported=1, n_told=0)
        )
