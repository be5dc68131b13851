"""What a gap report is made from, and what a release costs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from server_fixtures import DICTIONARY, DICTIONARY_TOML
from sites import accept_dictionary, edit, make_site, patients, queued, sites, steward
from synthedge_client import outbound
from synthedge_client.outbound import Disclosure, build_gap_report, effective_disclosure
from synthedge_client.protection import ProtectedCounts
from synthedge_client.releases import budget, preview, publish
from synthedge_client.settings import DisclosureSettings
from synthedge_client.site import Site, open_site
from synthedge_client.site_table import SiteTable, load_site_table
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import DisclosureRefusedError

DP_TOML = DICTIONARY_TOML.replace('disclosure = "threshold"', 'disclosure = "dp"')
DP = parse_dictionary(DP_TOML).policy
THRESHOLD = DICTIONARY.policy
PLAIN = Disclosure(mode="threshold", epsilon=0, epsilon_total=0, min_count=5)


def table_of(parent: Path, rows: pd.DataFrame) -> SiteTable:
    folder = make_site(parent, "north", rows)
    accept_dictionary(folder, DP_TOML)
    with open_site(folder) as site:
        return load_site_table(site.settings, site.dictionary)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """True counts that went into the protection, one pair a grid."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def spy(
        positives: list[np.ndarray], negatives: list[np.ndarray], k: int
    ) -> list[ProtectedCounts]:
        seen.extend(zip(positives, negatives, strict=True))
        return [ProtectedCounts(p * 1.0, p * 1.0 + 1, p < 0) for p in positives]

    monkeypatch.setattr(outbound, "protect_threshold", spy)
    return seen


def test_each_patient_is_counted_once_by_the_first_row(
    tmp_path: Path, counted: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    rows = patients("n")
    again = rows.assign(bp=101.0, progressed=1)

    build_gap_report(table_of(tmp_path, pd.concat([rows, again])), DICTIONARY, PLAIN, bytes(16))

    for positives, negatives in counted:
        assert positives.sum() == negatives.sum() == 64
    assert counted[1][0].tolist() == [8] * 8


def test_a_missing_value_is_missing_and_no_zero(
    tmp_path: Path, counted: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    rows = patients("n")
    rows.loc[rows.index[:10], "bp"] = np.nan

    build_gap_report(table_of(tmp_path, rows), DICTIONARY, PLAIN, bytes(16))

    assert all(p.sum() + n.sum() == len(rows) - 10 for p, n in counted)


def test_a_report_is_a_function_of_protected_counts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = [
        ProtectedCounts(np.arange(n, dtype=float), np.full(n, 3.0), np.arange(n) == 1)
        for n in (4, 8)
    ]
    monkeypatch.setattr(outbound, "protect_dp", lambda *_: fixed)
    dp = Disclosure(mode="dp", epsilon=1.0, epsilon_total=4.0, min_count=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small = table_of(tmp_path / "a", patients("a", np.full((2, 4), 1), np.full((2, 4), 2)))
    large = table_of(tmp_path / "b", patients("b", np.full((2, 4), 50), np.full((2, 4), 7)))

    reports = [build_gap_report(table, DICTIONARY, dp, bytes(16)) for table in (small, large)]

    assert reports[0] == reports[1]
    suppressed = reports[0].grids[0].voxels[1]
    assert suppressed.suppressed
    assert (suppressed.gap_score, suppressed.density, suppressed.positive_rate) == (0, 0, 0)


def test_a_grid_of_a_feature_the_site_lacks_is_left_out(tmp_path: Path) -> None:
    rows = patients("n").drop(columns="sex")
    folder = make_site(tmp_path, "north", rows, "\n[columns.sex]\nabsent = true\n")
    accept_dictionary(folder, DICTIONARY_TOML)
    with open_site(folder) as site:
        report, _ = preview(site)

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


def test_the_same_data_gives_the_same_bytes_at_no_cost(north: Site) -> None:
    first, again = publish(north, steward()), publish(north, steward("ben"))

    one, other = queued(north)
    assert one.statement == other.statement
    assert (first["new"], again["new"]) == (True, False)
    assert budget(north) == {"releases": 1, "spent": 1.0, "total": 4.0}
    assert preview(north)[1]


def test_a_preview_costs_nothing(north: Site) -> None:
    preview(north)

    assert budget(north)["spent"] == 0
    assert queued(north) == []


def test_new_data_costs_and_an_empty_budget_refuses(north: Site) -> None:
    for i in range(4):
        edit(north, note=i % 2, bp=np.full(128, 85.0 + i))
        publish(north, steward())
    edit(north, bp=np.full(128, 95.0))

    with pytest.raises(DisclosureRefusedError, match="4 of 4 is spent") as refused:
        publish(north, steward())

    assert refused.value.exit_code == 6
    assert budget(north) == {"releases": 4, "spent": 4.0, "total": 4.0}
    assert len(queued(north)) == 4


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
