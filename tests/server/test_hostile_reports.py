"""Reports from a hostile site: whatever is changed in a report, it is refused, or it is as good as an honest one."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from server_fixtures import (
    CONSORTIUM,
    DICTIONARY,
    Clock,
    Consortium,
    counts_of_site,
    gap_report,
    new_folder,
    request_of,
    ship,
)
from synthedge_core.grids import NamedGrid
from synthedge_core.holes import find_holes, hole_profile, population_holes
from synthedge_protocols.errors import LimitExceededError, MalformedError, ProtocolError
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import releases
from synthedge_server.report_checks import check_report
from synthedge_server.serve import running

GRIDS = {spec.name: NamedGrid(DICTIONARY, spec) for spec in DICTIONARY.grids}
Path_ = tuple[tuple[str, int | None], ...]
HONEST = gap_report(*counts_of_site(0))
# What one number may be changed into: values a formula can trip over, and small lies.
NUMBERS = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, -1.0, 0.0, 1.0, 2.0, 1e300, 5e-324]),
    st.floats(-2, 2),
)
TEXTS = st.sampled_from(["", "dp", "threshold", "bp", "sex", "age", "x" * 100_000, "sex x bp"])


def leaves(message: Message, path: Path_ = ()) -> list[Path_]:
    """Every single value of a message: field names, each with its position where it is repeated."""
    found: list[Path_] = []
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        values = list(enumerate(value)) if field.is_repeated else [(None, value)]
        for i, one in values:
            here = (*path, (field.name, i))
            found += leaves(one, here) if field.message_type else [here]
    return found


def change(report: pb.GapReport, path: Path_, value: Any) -> None:
    """Set one value of a report."""
    message: Any = report
    for name, i in path[:-1]:
        message = getattr(message, name) if i is None else getattr(message, name)[i]
    name, i = path[-1]
    if i is None:
        setattr(message, name, value)
    else:
        getattr(message, name)[i] = value


def value_at(report: pb.GapReport, path: Path_) -> Any:
    message: Any = report
    for name, i in path:
        message = getattr(message, name) if i is None else getattr(message, name)[i]
    return message


LEAVES = leaves(HONEST)


def other_values(old: Any) -> st.SearchStrategy[Any]:
    """Values of the same type as one that is there."""
    if isinstance(old, bool):
        return st.just(not old)
    if isinstance(old, int):
        return st.sampled_from([0, 1, 2, 3, 4, 5, 6, 100, 2**32 - 1])
    if isinstance(old, float):
        return NUMBERS
    return TEXTS if isinstance(old, str) else st.binary(max_size=40)


def judge(report: pb.GapReport) -> None:
    """Return if a report is refused, or is fit to be computed with."""
    refusals: list[str] = []
    statistics = {}
    try:
        statistics = check_report(report, DICTIONARY, GRIDS)
    except ProtocolError as refusal:
        refusals.append(str(refusal))
    if refusals:
        # What a hostile site wrote does not fill the log.
        assert len(refusals[0]) < 500
        return
    assert list(statistics) == [grid.grid for grid in report.grids]
    for name, grid in statistics.items():
        assert grid.density.shape == (GRIDS[name].n_voxels,)
        assert np.all(grid.density >= 0)
        assert np.all((grid.positive_rate >= 0) & (grid.positive_rate <= 1 + 1e-6))
        assert 0 <= grid.grid_positive_rate <= 1
        profile = hole_profile([grid, grid])
        for find in (find_holes, population_holes):
            for hole in find(profile, np.full(len(profile.f), 9), np.full(len(profile.f), 9)):
                assert math.isfinite(hole.z)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_value_is_refused_or_as_good_as_an_honest_one(data: st.DataObject) -> None:
    report = pb.GapReport.FromString(HONEST.SerializeToString())
    for path in data.draw(st.lists(st.sampled_from(LEAVES), min_size=1, max_size=3)):
        change(report, path, data.draw(other_values(value_at(report, path))))
    judge(report)


@pytest.mark.parametrize(
    "field", ["density", "positive_rate", "gap_score", "sparsity", "label_entropy"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 1e9])
def test_a_voxels_number_that_is_none_is_refused(field: str, value: float) -> None:
    report = pb.GapReport.FromString(HONEST.SerializeToString())
    setattr(report.grids[1].voxels[2], field, value)
    with pytest.raises(MalformedError, match=r"not finite|out of range|contradict"):
        check_report(report, DICTIONARY, GRIDS)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_repeated_left_out_or_swapped_parts_are_refused(data: st.DataObject) -> None:
    report = pb.GapReport.FromString(HONEST.SerializeToString())
    grid = data.draw(st.sampled_from(report.grids))
    parts: Any = data.draw(
        st.sampled_from([report.grids, grid.voxels, report.features, grid.voxels[0].centroid])
    )
    before = list(parts)
    i, j = (data.draw(st.integers(0, len(before) - 1)) for _ in range(2))
    after = data.draw(
        st.sampled_from([before + before[i : i + 1], before[:i] + before[i + 1 :], before * 50])
    )
    if data.draw(st.booleans()):
        after = list(before)
        after[i], after[j] = before[j], before[i]
    copies = [pb.GapReport.FromString(HONEST.SerializeToString())]
    del parts[:]
    parts.extend(after)
    if report == copies[0]:
        check_report(report, DICTIONARY, GRIDS)
    else:
        with pytest.raises(MalformedError):
            check_report(report, DICTIONARY, GRIDS)


async def test_unknown_fields_in_a_report_are_refused(coordinator: Consortium) -> None:
    hospital = await coordinator.enrol("north")
    # Field 127, three bytes of text: where a patient's name could hide.
    report = pb.GapReport.FromString(HONEST.SerializeToString() + b"\xfa\x07\x03abc")
    with pytest.raises(MalformedError, match="fields this version does not know"):
        await hospital.submit(hospital.sign_as_steward(report))


async def test_a_consortium_that_is_full_enrols_nobody(tmp_path: Path) -> None:
    clock = Clock()
    consortium = Consortium(new_folder(tmp_path / CONSORTIUM), clock)
    async with running(consortium.folder, clock=clock, limits=Limits(sites=1)) as started:
        consortium.listens(started)
        await consortium.enrol("north")
        with pytest.raises(LimitExceededError, match="has 1 sites, as many as it may have"):
            await consortium.enrol("south")
        await consortium.close()


async def test_a_site_publishes_only_so_often_under_one_dictionary(
    coordinator: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In threshold mode no budget ends it, and every report is read whenever the site asks what was received.
    monkeypatch.setattr(releases, "_MAX_RELEASES", 2)
    hospital = await coordinator.enrol("north")
    first, second, third = (gap_report(*counts_of_site(i)) for i in range(3))
    for report in (first, second, first):
        await hospital.submit(hospital.sign_as_steward(report))
    with pytest.raises(LimitExceededError, match="has published 2 under this dictionary"):
        await hospital.submit(hospital.sign_as_steward(third))


async def test_a_donors_sealed_bytes_that_wait_are_bounded(tmp_path: Path) -> None:
    clock = Clock()
    consortium = Consortium(new_folder(tmp_path / CONSORTIUM), clock)
    limits = Limits(waiting_bytes=50_000)
    async with running(consortium.folder, clock=clock, limits=limits) as started:
        consortium.listens(started)
        north, south, west = await consortium.reporting("north", "south", "west")
        first = await ship(north, south, bytes(30_000))
        with pytest.raises(LimitExceededError, match="of site 'south' that wait"):
            await ship(north, south, bytes(30_000))
        await ship(north, west, bytes(30_000))
        ending = pb.Ending(transfer_id=first.identifier, state="CANCELLED", reason="enough")
        await north.submit(north.sign_as_steward(ending))
        await ship(north, south, bytes(30_000))
        await consortium.close()


async def test_a_site_has_only_so_many_transfers_under_way(tmp_path: Path) -> None:
    clock = Clock()
    consortium = Consortium(new_folder(tmp_path / CONSORTIUM), clock)
    limits = Limits(statements_per_site=1)
    async with running(consortium.folder, clock=clock, limits=limits) as started:
        consortium.listens(started)
        north, _, _ = await consortium.reporting("north", "south", "west")
        await north.submit(north.sign_as_steward(request_of(north, "south")))
        with pytest.raises(LimitExceededError, match="has 1 transfers under way"):
            await north.submit(north.sign_as_steward(request_of(north, "west")))
        await consortium.close()
