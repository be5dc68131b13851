"""What a dishonest coordinator may tell a site: refused, recorded, and never shown to a steward."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server_fixtures import DICTIONARY, DICTIONARY_TOML, counts_of_site, gap_report
from sites import arrives, events, patients, sites, with_hole
from synthedge_client.gaps import choose_region, list_gaps
from synthedge_client.hints import check_profile, check_proposals, profile_of_grid
from synthedge_client.site import Site
from synthedge_core.errors import RefusedError, SynthEdgeError
from synthedge_core.grids import NamedGrid
from synthedge_protocols.errors import LimitExceededError, MalformedError, ProtocolError
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server.registry import hole_profiles
from synthedge_server.report_checks import check_report

GRIDS = {spec.name: NamedGrid(DICTIONARY, spec) for spec in DICTIONARY.grids}
DIGEST = bytes.fromhex(DICTIONARY.digest)


def honest_profile() -> wire.HoleProfile:
    """What a coordinator tells the first of three sites."""
    reports = {
        f"s{i}": check_report(gap_report(*counts_of_site(i)), DICTIONARY, GRIDS) for i in range(3)
    }
    return hole_profiles(DICTIONARY, reports)["s0"]


def proposal(**changes: Any) -> wire.Proposals:
    fields: dict[str, Any] = {
        "grid": "sex x bp",
        "voxel": [1, 3],
        "donor": "south",
        "donor_voxel": [1, 3],
        "similarity": 1.0,
        "rank": 1,
        "reason": "rich there",
    }
    message = wire.Proposals(dictionary_digest=DIGEST)
    message.proposals.add(**{**fields, **changes})
    return message


def unknown_grid(profile: wire.HoleProfile) -> None:
    profile.grids[0].grid = "age"


def told_twice(profile: wire.HoleProfile) -> None:
    profile.grids.append(profile.grids[0])


def a_voxel_less(profile: wire.HoleProfile) -> None:
    del profile.grids[0].voxels[-1]


def of_one_site(profile: wire.HoleProfile) -> None:
    profile.grids[0].n_sites = 1


def number(name: str, value: float) -> Callable[[wire.HoleProfile], None]:
    return lambda profile: setattr(profile.grids[1].voxels[2], name, value)


@pytest.mark.parametrize(
    "lie",
    [unknown_grid, told_twice, a_voxel_less, of_one_site]
    + [
        number(field.name, value)
        for field in wire.VoxelProfile.DESCRIPTOR.fields
        if field.type == field.TYPE_DOUBLE
        for value in (math.nan, math.inf, -0.1)
    ]
    + [number("positive_share", 1.1), number("patient_share", 1.1)],
)
def test_a_profile_no_reports_could_give_is_refused(
    lie: Callable[[wire.HoleProfile], None],
) -> None:
    profile = honest_profile()
    check_profile(profile, DICTIONARY)
    lie(profile)
    with pytest.raises(MalformedError):
        check_profile(profile, DICTIONARY)


def test_an_honest_profile_arrives_number_by_number() -> None:
    told = honest_profile().grids[1]
    profile = profile_of_grid(told)
    assert profile.n_sites == 2
    assert profile.known.all()
    assert profile.share.sum() == pytest.approx(1)
    assert profile.f[7] == told.voxels[7].positive_share


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grid": "age"}, MalformedError),
        ({"voxel": [1, 9]}, SynthEdgeError),
        ({"voxel": []}, SynthEdgeError),
        ({"donor_voxel": [0, 3]}, MalformedError),
        ({"donor_voxel": [1, 1]}, MalformedError),
        ({"donor": "north"}, MalformedError),
        ({"donor": "../south"}, MalformedError),
        ({"donor": ""}, MalformedError),
        ({"similarity": math.nan}, MalformedError),
        ({"similarity": 0.5}, MalformedError),
        ({"similarity": 1.1}, MalformedError),
        ({"rank": 0}, MalformedError),
        ({"reason": "x" * 2001}, LimitExceededError),
    ],
)
def test_a_proposal_that_cannot_help_is_refused(
    changes: dict[str, Any], error: type[ProtocolError | SynthEdgeError]
) -> None:
    check_proposals(proposal(), DICTIONARY, "north", Limits())
    with pytest.raises(error):
        check_proposals(proposal(**changes), DICTIONARY, "north", Limits())


def test_a_donor_proposed_twice_for_a_voxel_is_refused() -> None:
    twice = proposal()
    twice.proposals.append(twice.proposals[0])
    with pytest.raises(MalformedError, match="proposed twice"):
        check_proposals(twice, DICTIONARY, "north", Limits())


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Site]]:
    """North has no positives at male, 100 and above; south has eight."""
    with sites(
        tmp_path, DICTIONARY_TOML, north=patients("n", with_hole()), south=patients("s")
    ) as opened:
        yield opened


def test_what_is_refused_is_recorded_and_replaces_nothing(pair: list[Site]) -> None:
    north, _ = pair
    assert arrives(north, profile=honest_profile()) is None
    before = list_gaps(north)
    lie = honest_profile()
    lie.grids[0].voxels[0].positive_share = math.nan

    assert "not finite or out of range" in (arrives(north, profile=lie) or "")
    assert "own donor" in (arrives(north, proposals=proposal(donor="north")) or "")
    assert len(events(north, "message refused")) == 2
    assert list_gaps(north) == before


def test_a_donor_nobody_knows_is_not_shown_and_not_asked(pair: list[Site]) -> None:
    north, _ = pair
    assert arrives(north, profile=honest_profile()) is None
    assert arrives(north, proposals=proposal(donor="nobody")) is None

    gap = next(gap for gap in list_gaps(north) if gap.id == "sex x bp/7")
    assert gap.proposals == []
    with pytest.raises(RefusedError, match="or none was"):
        choose_region(north, gap.id, None)

    assert arrives(north, proposals=proposal()) is None
    gap = next(gap for gap in list_gaps(north) if gap.id == "sex x bp/7")
    assert [p.donor for p in gap.proposals] == ["south"]


def test_holes_are_listed_with_their_kind_and_the_reason_in_words(tmp_path: Path) -> None:
    positives, negatives = np.full((2, 4), 12), np.full((2, 4), 12)
    positives[1, 3] = 0
    positives[0, 0] = negatives[0, 0] = 0
    with sites(
        tmp_path,
        DICTIONARY_TOML,
        north=patients("n", positives, negatives),
        south=patients("s"),
    ) as (north, _):
        assert arrives(north, profile=honest_profile()) is None
        assert arrives(north, proposals=proposal()) is None
        gaps = list_gaps(north)

    kinds = {(gap.kind, gap.id) for gap in gaps}
    assert ("positives", "sex x bp/7") in kinds
    assert ("population", "sex x bp/0") in kinds
    assert [gap.kind for gap in gaps] == sorted((gap.kind for gap in gaps), reverse=True)
    population = next(gap for gap in gaps if gap.kind == "population")
    assert "% of their patients here" in population.why
    assert population.as_dict()["kind"] == "population"
    assert "and it has none" in population.why
