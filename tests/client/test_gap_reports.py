"""What a gap report is made from, and what a release costs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from server_fixtures import DICTIONARY, DICTIONARY_TOML
from sites import (
    MALE_HIGH,
    accept_dictionary,
    edit,
    make_site,
    patients,
    queued,
    sites,
    steward,
    with_hole,
)
from synthedge_client import outbound, store
from synthedge_client.counting import (
    Disclosure,
    PatientCounts,
    count_patients,
    effective_disclosure,
)
from synthedge_client.outbound import build_gap_report
from synthedge_client.protection import ProtectedCounts
from synthedge_client.releases import budget, preview, publish, report_state
from synthedge_client.settings import DisclosureSettings
from synthedge_client.site import Site, open_site
from synthedge_client.site_table import load_site_table
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import DisclosureRefusedError
from synthedge_protocols.v1 import statements_pb2 as pb

DP_TOML = DICTIONARY_TOML.replace('disclosure = "threshold"', 'disclosure = "dp"')
DP = parse_dictionary(DP_TOML).policy
THRESHOLD = DICTIONARY.policy
PLAIN = Disclosure(mode="threshold", epsilon=0, epsilon_total=0, min_count=5)


def counts_of(parent: Path, rows: pd.DataFrame, disclosure: Disclosure = PLAIN) -> PatientCounts:
    folder = make_site(parent, "north", rows)
    accept_dictionary(folder, DP_TOML)
    with open_site(folder) as site:
        table = load_site_table(site.settings, site.dictionary)
        return count_patients(table, site.dictionary, disclosure)


def test_each_patient_is_counted_once_by_the_first_row(tmp_path: Path) -> None:
    rows = patients("n")
    again = rows.assign(bp=101.0, progressed=1)

    counts = counts_of(tmp_path, pd.concat([rows, again, again]))

    for positives, negatives in zip(counts.positives, counts.negatives, strict=True):
        assert positives.sum() == negatives.sum() == 64
    assert counts.positives[1].tolist() == [8] * 8


def test_a_missing_value_is_missing_and_no_zero(tmp_path: Path) -> None:
    rows = patients("n")
    rows.loc[rows.index[:10], "bp"] = np.nan

    counts = counts_of(tmp_path, rows)

    assert len(counts.positive) == len(rows)
    for positives, negatives in zip(counts.positives, counts.negatives, strict=True):
        assert positives.sum() + negatives.sum() == len(rows) - 10


def test_a_report_is_a_function_of_protected_counts_alone(tmp_path: Path) -> None:
    fixed = [
        ProtectedCounts(np.arange(n, dtype=float), np.full(n, 3.0), np.arange(n) == 1, ("",) * n)
        for n in (4, 8)
    ]
    dp = Disclosure(mode="dp", epsilon=1.0, epsilon_total=4.0, min_count=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small = counts_of(tmp_path / "a", patients("a", np.full((2, 4), 1), np.full((2, 4), 2)))
    large = counts_of(tmp_path / "b", patients("b", np.full((2, 4), 50), np.full((2, 4), 7)))

    reports = [build_gap_report(counts, fixed, dp, bytes(16)) for counts in (small, large)]

    assert reports[0] == reports[1]
    suppressed = reports[0].grids[0].voxels[1]
    assert suppressed.suppressed
    assert (suppressed.gap_score, suppressed.density, suppressed.positive_rate) == (0, 0, 0)


def test_a_grid_of_a_feature_the_site_lacks_is_left_out(tmp_path: Path) -> None:
    rows = patients("n").drop(columns="sex")
    folder = make_site(tmp_path, "north", rows, "\n[columns.sex]\nabsent = true\n")
    accept_dictionary(folder, DICTIONARY_TOML)
    with open_site(folder) as site:
        report = preview(site).release.message

    assert [grid.grid for grid in report.grids] == ["bp"]
    assert list(report.features) == ["bp", "note"]


@pytest.mark.parametrize(
    ("policy", "own", "match"),
    [
        (DP, {"mode": "threshold"}, "demands 'dp'"),
        (DP, {"epsilon": 1.5}, "epsilon 1.5 .* only lower"),
        (DP, {"epsilon": math.nan}, "epsilon nan"),
        (DP, {"epsilon_total": 5.0}, "epsilon_total 5.0"),
        (DP, {"epsilon_total": math.nan}, "epsilon_total nan"),
        (THRESHOLD, {"min_count": 3}, "min_count 3 .* only raise"),
        (DP, {"max_grids": 4}, "max_grids 4"),
        (DP, {"max_voxels": 13}, "max_voxels 13"),
    ],
)
def test_a_site_may_not_protect_less_than_agreed(
    policy: Any, own: dict[str, Any], match: str
) -> None:
    with pytest.raises(DisclosureRefusedError, match=match):
        effective_disclosure(policy, DisclosureSettings(**own))


def test_a_site_may_protect_more_than_agreed() -> None:
    tightened = DisclosureSettings(epsilon=0.25, epsilon_total=1.0, min_count=10)

    assert effective_disclosure(DP, tightened) == Disclosure(
        mode="dp", epsilon=0.25, epsilon_total=1.0, min_count=0
    )
    assert effective_disclosure(THRESHOLD, tightened).min_count == 10
    assert effective_disclosure(THRESHOLD, DisclosureSettings(mode="dp")).epsilon == 1.0


def test_a_site_that_writes_epsilon_zero_releases_nothing(tmp_path: Path) -> None:
    folder = make_site(tmp_path, "north", patients("n"), "\n[disclosure]\nepsilon = 0\n")
    accept_dictionary(folder, DP_TOML)

    with open_site(folder) as site, pytest.raises(DisclosureRefusedError, match="epsilon is 0"):
        publish(site, steward())


@pytest.fixture
def north(tmp_path: Path) -> Any:
    with sites(tmp_path, DP_TOML, north=patients("n")) as (opened,):
        yield opened


@pytest.fixture
def north_by_threshold(tmp_path: Path) -> Any:
    with sites(tmp_path, DICTIONARY_TOML, north=patients("n")) as (opened,):
        yield opened


def shift(site: Site, n: int) -> None:
    """Move the first n patients of the table to the highest blood pressure."""
    table = pd.read_csv(site.settings.data)
    table.loc[table.index[:n], "bp"] = 140.0
    table.to_csv(site.settings.data, index=False)


def payload(signed: pb.SignedStatement) -> bytes:
    return pb.Statement.FromString(signed.statement).payload


def test_what_is_published_is_what_was_previewed_byte_for_byte(north: Site) -> None:
    seen, again = preview(north).release.report, preview(north).release.report
    publish(north, steward())

    assert seen == again == payload(queued(north)[0]) == preview(north).release.report


def test_a_preview_by_threshold_is_kept_as_well(north_by_threshold: Site) -> None:
    seen = preview(north_by_threshold)
    publish(north_by_threshold, steward())

    assert seen.release.report == payload(queued(north_by_threshold)[0])
    assert (seen.cost, seen.guarantees) == (0.0, {})


def test_a_preview_says_why_each_voxel_is_told_as_it_is(tmp_path: Path) -> None:
    negatives = np.full((2, 4), 8)
    negatives[1, 3] = 2
    rows = patients("n", with_hole(), negatives)
    with sites(tmp_path, DICTIONARY_TOML, north=rows) as (site,):
        seen = preview(site)
        reasons = seen.release.reasons["sex x bp"]
        voxel = seen.release.message.grids[1].voxels[MALE_HIGH]

    assert voxel.suppressed
    assert reasons[MALE_HIGH] == "fewer than 5 patients"


def test_a_preview_tells_both_kinds_of_epsilon(north: Site) -> None:
    seen = preview(north)

    assert seen.cost == 1.0
    assert seen.guarantees == pytest.approx({"add_or_remove": 1.0, "replace": 2.0}, rel=1e-9)


def test_the_same_data_gives_the_same_bytes_at_no_cost(north: Site) -> None:
    first, again = publish(north, steward()), publish(north, steward("ben"))

    one, other = queued(north)
    assert one.statement == other.statement
    assert (first["new"], again["new"]) == (True, False)
    assert [budget(north)[name] for name in ("spent", "left", "total")] == [1.0, 3.0, 4.0]
    assert len(budget(north)["releases"]) == 1
    assert preview(north).cost == 0


def test_a_preview_costs_nothing(north: Site) -> None:
    preview(north)

    assert budget(north)["spent"] == 0
    assert queued(north) == []


def test_new_data_costs_and_an_empty_budget_refuses(north: Site) -> None:
    for i in range(4):
        shift(north, i + 1)
        publish(north, steward())
    shift(north, 6)

    assert report_state(north) == {"state": "stale", "refresh_cost": 1.0, "refreshes_left": 0}
    with pytest.raises(DisclosureRefusedError, match="4 of 4 is spent") as refused:
        publish(north, steward())

    assert refused.value.exit_code == 6
    assert [r["epsilon"] for r in budget(north)["releases"]] == [1.0] * 4
    assert len(queued(north)) == 4


def test_new_data_make_a_report_stale(north: Site) -> None:
    assert report_state(north) == {"state": "none", "refresh_cost": 1.0, "refreshes_left": 4}
    publish(north, steward())
    assert report_state(north) == {"state": "current", "refresh_cost": 0.0, "refreshes_left": 3}
    shift(north, 1)
    assert report_state(north) == {"state": "stale", "refresh_cost": 1.0, "refreshes_left": 3}


def test_data_that_came_back_are_published_again_at_no_cost(north: Site) -> None:
    original = north.settings.data.read_bytes()
    publish(north, steward())
    shift(north, 3)
    publish(north, steward())
    north.settings.data.write_bytes(original)

    assert report_state(north)["state"] == "stale"
    publish(north, steward())

    first, second, third = queued(north)
    assert payload(first) == payload(third) != payload(second)
    # Signed anew: the coordinator acts on a statement once.
    assert first.statement != third.statement
    assert budget(north)["spent"] == 2.0
    assert report_state(north)["state"] == "current"


def test_the_order_of_rows_is_no_new_data(north: Site) -> None:
    publish(north, steward())
    table = pd.read_csv(north.settings.data)
    table.iloc[::-1].to_csv(north.settings.data, index=False)

    assert not publish(north, steward())["new"]


def test_a_second_release_by_threshold_is_held_against_the_first(north_by_threshold: Site) -> None:
    site = north_by_threshold
    publish(site, steward())
    shift(site, 4)
    assert publish(site, steward())["new"]

    first, second = (pb.GapReport.FromString(payload(signed)) for signed in queued(site))
    assert first.release_id != second.release_id
    assert list(first.grids) == list(second.grids)


def test_a_draw_that_another_release_overtook_is_drawn_anew(north_by_threshold: Site) -> None:
    site = north_by_threshold
    original = site.settings.data.read_bytes()
    drawn = preview(site).release
    shift(site, 4)
    publish(site, steward())
    site.settings.data.write_bytes(original)

    again = preview(site).release

    assert again.release_id != drawn.release_id
    assert "as before: fewer than 5 patients changed" in again.reasons["bp"]


def test_k_cannot_change_between_releases_under_one_dictionary(north_by_threshold: Site) -> None:
    site = north_by_threshold
    publish(site, steward())
    toml = site.settings.folder / "site.toml"
    toml.write_text(toml.read_text() + "\n[disclosure]\nmin_count = 10\n")

    with (
        open_site(site.settings.folder) as reopened,
        pytest.raises(DisclosureRefusedError, match=r"min_count was 5 .* is 10 now"),
    ):
        publish(reopened, steward())


@pytest.mark.parametrize(
    ("own", "match"),
    [
        ("max_grids = 1", "asks for 2 grids, this site allows 1"),
        ("max_voxels = 6", "grid 'sex x bp' of the dictionary has 8 voxels, this site allows 6"),
    ],
)
def test_a_site_refuses_finer_grids_than_it_allows(tmp_path: Path, own: str, match: str) -> None:
    folder = make_site(tmp_path, "north", patients("n"), f"\n[disclosure]\n{own}\n")
    accept_dictionary(folder, DP_TOML)

    with open_site(folder) as site:
        for act in (lambda: preview(site), lambda: publish(site, steward())):
            with pytest.raises(DisclosureRefusedError, match=match):
                act()
        assert queued(site) == []


def test_the_spend_is_on_record_in_the_transaction_that_queues_the_bytes(
    north: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outbound, "enqueue", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(north, steward())

    assert queued(north) == []
    assert budget(north)["spent"] == 0


def test_a_change_of_consent_or_of_own_columns_is_no_new_release(north: Site) -> None:
    publish(north, steward())
    edit(north, consent="withdrawn", ward="3")

    assert not publish(north, steward())["new"]


def test_true_counts_lie_encrypted_in_the_ledger(north_by_threshold: Site) -> None:
    publish(north_by_threshold, steward())
    with north_by_threshold.store.read() as connection:
        (working,) = connection.execute(sa.select(store.releases.c.working)).scalars()

    assert b"figures" not in working
    assert b"suppressed" not in working
