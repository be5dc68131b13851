"""Gap reports: believed, refused, and what follows from three of them."""

import asyncio
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from server_fixtures import (
    DICTIONARY,
    DIGEST,
    LIMITS,
    TIMEOUT_S,
    Consortium,
    counts_of_site,
    gap_report,
    kinds,
)
from synthedge_core.grids import NamedGrid
from synthedge_protocols.errors import (
    IdentityError,
    LimitExceededError,
    MalformedError,
    PolicyError,
    ProtocolError,
    ReplayError,
    VerificationError,
)
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.operations import reading
from synthedge_server.report_checks import check_report

GRIDS = {spec.name: NamedGrid(DICTIONARY, spec) for spec in DICTIONARY.grids}


def truthful() -> pb.GapReport:
    return gap_report(*counts_of_site(0))


def with_nan(report: pb.GapReport) -> None:
    report.grids[0].voxels[1].density = math.nan


def with_another_centroid(report: pb.GapReport) -> None:
    report.grids[0].voxels[1].centroid[0] += 0.01


def with_an_invented_voxel(report: pb.GapReport) -> None:
    report.grids[0].voxels.append(report.grids[0].voxels[0])


def with_a_missing_voxel(report: pb.GapReport) -> None:
    del report.grids[0].voxels[-1]


def with_a_moved_voxel(report: pb.GapReport) -> None:
    report.grids[0].voxels[1].index[0] = 2


def with_an_invented_grid(report: pb.GapReport) -> None:
    report.grids.append(pb.GridReport(grid="age"))


def with_an_unknown_feature(report: pb.GapReport) -> None:
    report.features.append("weight")


def with_another_gap_score(report: pb.GapReport) -> None:
    report.grids[0].voxels[1].gap_score += 0.1


def with_more_patients_than_all(report: pb.GapReport) -> None:
    voxel = report.grids[0].voxels[1]
    voxel.density += 0.5
    voxel.sparsity = max(0.0, 1 - voxel.density)
    voxel.gap_score = 0.5 * voxel.sparsity + 0.3 * voxel.label_entropy + 0.2 * voxel.positive_rate


def with_numbers_in_a_suppressed_voxel(report: pb.GapReport) -> None:
    report.grids[0].voxels[1].suppressed = True


def with_a_rate_above_one(report: pb.GapReport) -> None:
    report.grids[0].voxels[1].positive_rate = 1.5


def with_less_protection(report: pb.GapReport) -> None:
    report.min_count = 2


def with_no_protection(report: pb.GapReport) -> None:
    report.disclosure = "none"


HOSTILE: list[tuple[Callable[[pb.GapReport], None], type[ProtocolError]]] = [
    (with_nan, MalformedError),
    (with_another_centroid, MalformedError),
    (with_an_invented_voxel, MalformedError),
    (with_a_missing_voxel, MalformedError),
    (with_a_moved_voxel, MalformedError),
    (with_an_invented_grid, MalformedError),
    (with_an_unknown_feature, MalformedError),
    (with_another_gap_score, MalformedError),
    (with_more_patients_than_all, MalformedError),
    (with_numbers_in_a_suppressed_voxel, MalformedError),
    (with_a_rate_above_one, MalformedError),
    (with_less_protection, PolicyError),
    (with_no_protection, PolicyError),
]


@pytest.mark.parametrize(("change", "error"), HOSTILE)
def test_a_report_no_counts_could_give_is_refused(
    change: Callable[[pb.GapReport], None], error: type[ProtocolError]
) -> None:
    report = truthful()
    change(report)
    with pytest.raises(error):
        check_report(report, DICTIONARY, GRIDS)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 500), min_size=16, max_size=16),
)
def test_a_report_of_any_counts_is_believed(counts: list[int]) -> None:
    check_report(gap_report(np.array(counts[:8]), np.array(counts[8:])), DICTIONARY, GRIDS)


async def test_a_hostile_report_is_refused_loudly_and_changes_nothing(
    coordinator: Consortium,
) -> None:
    hospital = await coordinator.enrol("north")
    report = truthful()
    with_nan(report)

    with pytest.raises(MalformedError, match="not finite"):
        await hospital.submit(hospital.sign_as_steward(report))

    with reading(coordinator.folder) as engine, engine.connect() as connection:
        assert connection.execute(select(store.reports)).all() == []
        actions = connection.execute(select(store.events.c.action)).scalars().all()
    assert "statement-refused" in actions


async def test_a_report_changed_after_signing_is_refused(coordinator: Consortium) -> None:
    hospital = await coordinator.enrol("north")
    signed = hospital.sign_as_steward(truthful())
    signed.statement = signed.statement.replace(b"threshold", b"thresholt")
    with pytest.raises(VerificationError):
        await hospital.submit(signed)


async def test_a_report_under_another_dictionary_is_refused(coordinator: Consortium) -> None:
    hospital = await coordinator.enrol("north")
    with pytest.raises(PolicyError, match="dictionary"):
        await hospital.submit(hospital.sign_as_steward(truthful(), dictionary_digest=bytes(32)))


async def test_a_report_of_another_site_is_refused(coordinator: Consortium) -> None:
    north, south = await coordinator.enrol("north"), await coordinator.enrol("south")
    with pytest.raises(IdentityError, match="site 'south' handed in a statement of site 'north'"):
        await south.submit(north.sign_as_steward(truthful()))


async def test_a_statement_that_is_too_large_is_refused(coordinator: Consortium) -> None:
    hospital = await coordinator.enrol("north")
    report = truthful()
    report.features.append("x" * LIMITS.message_bytes)
    with pytest.raises(LimitExceededError):
        await hospital.submit(hospital.sign_as_steward(report))


async def test_the_same_statement_again_gets_the_same_receipt(coordinator: Consortium) -> None:
    hospital = await coordinator.enrol("north")
    signed = hospital.sign_as_steward(truthful())

    first = await hospital.submit(signed)
    coordinator.clock.ahead_ms = 60_000
    again = await hospital.submit(signed)

    assert again == first


async def test_a_release_cannot_have_two_reports(coordinator: Consortium) -> None:
    hospital = await coordinator.enrol("north")
    report, other = truthful(), gap_report(*counts_of_site(3))
    other.release_id = report.release_id
    await hospital.submit(hospital.sign_as_steward(report))
    with pytest.raises(ReplayError, match="content already"):
        await hospital.submit(hospital.sign_as_steward(other))


async def test_three_reports_bring_everybody_a_profile_and_the_hole_a_donor(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")

    messages = await north.inbox()

    assert kinds(messages) == ["profile", "proposals"]
    assert kinds(await south.inbox()) == ["profile", "proposals"]
    profile = messages[0].profile
    assert profile.dictionary_digest == DIGEST
    assert [(g.grid, g.n_sites, len(g.voxels)) for g in profile.grids] == [
        ("bp", 2, 4),
        ("sex x bp", 2, 8),
    ]
    # By hand from counts_of_site(1) and (2): the others' mean share of positives at male, 100 and above.
    shares = [30 / (140 + 40), 35 / (140 + 80)]
    assert profile.grids[1].voxels[7].positive_share == pytest.approx(np.mean(shares))
    best = [
        p
        for p in messages[1].proposals.proposals
        if p.grid == "sex x bp" and list(p.voxel) == [1, 3] and p.rank == 1
    ]
    assert [(p.donor, list(p.donor_voxel)) for p in best] == [("south", [1, 3])]


async def test_two_reports_tell_nobody_anything(coordinator: Consortium) -> None:
    north, _ = await coordinator.reporting("north", "south")
    assert await north.inbox() == []


async def test_a_new_report_replaces_the_hints_of_the_older_ones(coordinator: Consortium) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    before = await north.inbox()

    await south.submit(south.sign_as_steward(gap_report(*counts_of_site(4))))
    await coordinator.everybody_is_told()

    after = await north.inbox()
    assert kinds(after) == ["profile", "proposals"]
    assert after[0].sequence > before[-1].sequence
    assert await north.inbox(after[-1].sequence) == []


async def test_an_open_inbox_hears_of_new_messages_at_once(coordinator: Consortium) -> None:
    north, _ = await coordinator.reporting("north", "south")
    stream = north.stub.Inbox(wire.InboxRequest(follow=True), timeout=TIMEOUT_S)
    first = asyncio.create_task(stream.read())
    west = await coordinator.enrol("west")

    await west.submit(west.sign_as_steward(gap_report(*counts_of_site(2))))

    assert (await first).WhichOneof("body") == "profile"
    stream.cancel()


def by_noise(i_site: int, epsilon: float = 1.0) -> pb.GapReport:
    report = gap_report(*counts_of_site(i_site))
    report.disclosure, report.epsilon, report.min_count = "dp", epsilon, 0
    return report


async def test_a_site_cannot_release_more_than_the_budget_of_a_dictionary(
    coordinator: Consortium,
) -> None:
    north, south = await coordinator.enrol("north"), await coordinator.enrol("south")
    for i in range(4):
        await north.submit(north.sign_as_steward(by_noise(i)))

    with pytest.raises(PolicyError, match=r"on top of 4 .* allows 4 under one dictionary"):
        await north.submit(north.sign_as_steward(by_noise(4, epsilon=0.1)))

    await south.submit(south.sign_as_steward(by_noise(4)))  # each site has its own


async def test_a_site_is_told_what_was_received_of_it_and_of_nobody_else(
    coordinator: Consortium,
) -> None:
    north, south = await coordinator.enrol("north"), await coordinator.enrol("south")
    report = by_noise(0)
    await north.submit(north.sign_as_steward(report))

    asked = wire.ReleasesRequest(dictionary_digest=DIGEST)
    (told,) = (await north.stub.GetReleases(asked, timeout=TIMEOUT_S)).releases

    assert (told.release_id, told.disclosure, told.epsilon) == (report.release_id, "dp", 1.0)
    assert not (await south.stub.GetReleases(asked, timeout=TIMEOUT_S)).releases
    other = wire.ReleasesRequest(dictionary_digest=bytes(32))
    assert not (await north.stub.GetReleases(other, timeout=TIMEOUT_S)).releases


async def test_an_earlier_release_signed_anew_is_the_current_one_again(
    coordinator: Consortium,
) -> None:
    north = await coordinator.enrol("north")
    first, second = by_noise(0), by_noise(1)
    for report in (first, second, first):
        await north.submit(north.sign_as_steward(report))
        await asyncio.sleep(0.002)  # a statement of another millisecond is another statement

    with reading(coordinator.folder) as engine, engine.connect() as connection:
        table = store.reports
        current = connection.execute(select(table.c.release_id).where(table.c.is_current)).all()
    assert [row.release_id for row in current] == [first.release_id]


async def test_a_recipient_that_suppressed_its_hole_is_told_of_donors_for_it(
    coordinator: Consortium,
) -> None:
    positives, negatives = counts_of_site(0, hole=7)
    negatives[7] = 0
    report = gap_report(positives, negatives)
    report.grids[1].voxels[7].Clear()
    grid = GRIDS["sex x bp"]
    report.grids[1].voxels[7].index.extend(grid.index_of(7))
    report.grids[1].voxels[7].centroid.extend(grid.centroid(7))
    report.grids[1].voxels[7].suppressed = True
    north = await coordinator.enrol("north")
    await north.submit(north.sign_as_steward(report))
    await coordinator.reporting("south", "west")

    (proposals,) = [m.proposals for m in await north.inbox() if m.WhichOneof("body") == "proposals"]

    offers = [p for p in proposals.proposals if list(p.voxel) == [1, 3] and p.grid == "sex x bp"]
    # South, the first of `reporting`, has the same hole.
    assert [(p.donor, list(p.donor_voxel)) for p in offers if p.rank == 1] == [("west", [1, 3])]
    assert "did not publish" in offers[0].reason
