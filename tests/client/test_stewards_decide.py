"""What stewards decide: two of them, in advance by a policy, and about what the gate let pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server_fixtures import DICTIONARY_TOML
from sites import (
    MALE_HIGH,
    arrives,
    asked,
    delivered,
    events,
    patients,
    prepared,
    queued,
    sealed,
    selected,
    sites,
    steward,
    transfer_at,
    with_hole,
)
from synthedge_client import policies, store
from synthedge_client.accepting import accept, refuse
from synthedge_client.asking import request
from synthedge_client.audit import collect
from synthedge_client.cancelling import cancel
from synthedge_client.donating import approve, prepare
from synthedge_client.received import load_samples
from synthedge_client.site import Site, open_site
from synthedge_client.standing_work import StandingWork
from synthedge_client.status import describe_request, describe_transfers
from synthedge_client.stewards import Steward
from synthedge_core.errors import RefusedError, TableError, UsageError
from synthedge_protocols.errors import LifecycleError, MalformedError, PolicyError
from synthedge_protocols.lifecycle import State
from synthedge_protocols.standing_policies import region_name, require_covered
from synthedge_protocols.v1 import statements_pb2 as pb

DAY_MS = 86_400_000
Pair = list[Site]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """North has no positives at male, 100 and above; south has eight."""
    with sites(
        tmp_path, DICTIONARY_TOML, north=patients("n", with_hole()), south=patients("s")
    ) as opened:
        yield opened


def two_stewards(site: Site) -> Site:
    """The same site, with the two-person rule."""
    with (site.settings.folder / "site.toml").open("a") as file:
        file.write("\n[stewards]\napprovals = 2\n")
    return site.refreshed()


# ---- two persons


def test_two_different_stewards_approve_and_the_recipient_verifies_both(pair: Pair) -> None:
    north, south = pair
    south = two_stewards(south)
    transfer, ada, bob = prepared(north, south), steward("ada"), steward("bob")

    assert approve(south, transfer, ada) is False
    assert transfer_at(south, transfer.id).state is State.PREPARED
    assert queued(south) == []
    with pytest.raises(RefusedError, match="two different stewards must sign"):
        approve(south, transfer_at(south, transfer.id), Steward("eve", ada.key))
    assert approve(south, transfer_at(south, transfer.id), bob) is True

    assert arrives(north, statement=queued(south)[-1]) is None
    assert transfer_at(north, transfer.id).state is State.APPROVED
    decided = collect(north).open[0]["decided_by"]
    assert any(ada.key.fingerprint in by and bob.key.fingerprint in by for by in decided)


def test_an_approval_of_one_steward_twice_is_refused_by_the_recipient(pair: Pair) -> None:
    north, south = pair
    transfer, ada = prepared(north, south), steward("ada")
    approve(south, transfer, ada)
    once = pb.Approval.FromString(pb.Statement.FromString(queued(south)[0].statement).payload)
    twice = pb.Approval()
    twice.CopyFrom(once)
    twice.first.CopyFrom(queued(south)[0])
    other_words = pb.Approval()
    other_words.CopyFrom(twice)
    other_words.rows = 4

    assert "signed twice with one key" in (arrives(north, statement=ada.sign(south, twice)) or "")
    second = steward("bob").sign(south, other_words)
    assert "not over the same words" in (arrives(north, statement=second) or "")
    assert transfer_at(north, transfer.id).state is State.REQUESTED


def test_a_first_signature_does_not_outlive_what_it_was_for(pair: Pair) -> None:
    north, south = pair
    south = two_stewards(south)
    transfer, ada = prepared(north, south), steward("ada")
    approve(south, transfer, ada)

    prepare(south, transfer_at(south, transfer.id), "ada")

    assert approve(south, transfer_at(south, transfer.id), ada) is False


# ---- the recipient's last word


def test_what_passed_the_gate_waits_for_the_recipients_steward(pair: Pair) -> None:
    north, south = pair
    waiting, ada = delivered(north, south, accept_if_gate_passes=False), steward("ada")
    assert describe_transfers(north)[0]["waits_for"] == "our steward: requests accept or refuse"
    assert "duplicates checked" in describe_request(north, waiting.short_id)["gate"]
    assert len(load_samples(north)) == 0

    accept(north, waiting, ada)

    assert len(load_samples(north)) == 5
    assert arrives(south, statement=queued(north)[-1]) is None
    assert transfer_at(south, waiting.id).state is State.ACTIVE
    decided = collect(south).sent[0]["decided_by"]
    assert any(f"active by north: ada (key {ada.key.fingerprint})" in by for by in decided)


def test_a_refusal_deletes_the_rows_and_its_reason_reaches_the_donor(pair: Pair) -> None:
    north, south = pair
    waiting = delivered(north, south, accept_if_gate_passes=False)

    with pytest.raises(UsageError, match="a reason of 0 bytes"):
        refuse(north, waiting, steward(), "")
    refuse(north, waiting, steward(), "collected another way than ours")

    assert arrives(south, statement=queued(north)[-1]) is None
    told = transfer_at(south, waiting.id)
    assert (told.state, told.reason) == (State.REFUSED, "collected another way than ours")
    with north.store.read() as connection:
        assert connection.execute(store.received.select()).all() == []
    with pytest.raises(LifecycleError, match="only a delivery that passed"):
        accept(north, transfer_at(north, waiting.id), steward())


def test_a_sites_key_alone_neither_accepts_nor_approves_nor_asks(pair: Pair) -> None:
    north, south = pair
    waiting = delivered(north, south, accept_if_gate_passes=False)
    receipt = pb.Receipt(transfer_id=waiting.id, rows=5, accepted=True)

    refused = arrives(south, statement=north.sign(receipt))
    assert "a steward of site 'north' must sign this receipt" in (refused or "")
    with pytest.raises(MalformedError, match="must be signed by a steward"):
        south.sign(pb.Approval(transfer_id=waiting.id))
    with pytest.raises(MalformedError, match="must be signed by a steward"):
        north.sign(waiting.request)


# ---- calling it off


def test_a_recipient_cancels_and_the_donor_reads_why(pair: Pair) -> None:
    north, south = pair
    transfer, ada = prepared(north, south), steward("ada")

    cancel(north, transfer_at(north, transfer.id), ada, "the study was stopped")

    assert arrives(south, statement=queued(north)[-1]) is None
    told = transfer_at(south, transfer.id)
    assert (told.state, told.reason) == (State.CANCELLED, "the study was stopped")
    assert selected(south) == set()
    assert ada.key.fingerprint in str(collect(south).open[0]["decided_by"])


def test_a_donor_that_cancels_too_late_hears_that_its_rows_are_active(pair: Pair) -> None:
    north, south = pair
    with pytest.raises(LifecycleError, match="cannot take 'cancel'"):
        cancel(south, asked(north, south, voxel=0), steward(), "too early: decline it")
    waiting = delivered(north, south, accept_if_gate_passes=False)
    told = selected(south)

    cancel(south, transfer_at(south, waiting.id), steward(), "the wrong table was used")
    assert transfer_at(south, waiting.id).state is State.CANCELLED
    assert selected(south) == told  # the recipient may hold the bytes
    accept(north, waiting, steward())
    assert arrives(south, statement=queued(north)[-1]) is None

    assert transfer_at(south, waiting.id).state is State.ACTIVE


def test_a_donors_cancellation_reaches_the_recipient(pair: Pair) -> None:
    north, south = pair
    transfer = sealed(north, south)

    cancel(south, transfer, steward(), "the wrong table was used")

    assert arrives(north, statement=queued(south)[-1]) is None
    assert transfer_at(north, transfer.id).reason == "the wrong table was used"


# ---- standing policies


def policy(site: Site, **changes: Any) -> pb.StandingPolicy:
    fields: dict[str, Any] = {
        "acts": ["approve", "accept", "request"],
        "peers": ["south" if site.settings.id == "north" else "north"],
        "purposes": ["DUO:0000006"],
        "features": ["bp", "sex"],
        "rows": 20,
        "period_days": 30,
        "valid_until_ms": store.now_ms() + DAY_MS,
    }
    return pb.StandingPolicy(**{**fields, **changes})


def carried_out(site: Site) -> bool:
    return StandingWork().carry_out(site)


def test_a_request_that_a_policy_covers_is_approved_by_the_agent(pair: Pair) -> None:
    north, south = pair
    transfer, ada = asked(north, south), steward("ada")
    assert carried_out(south) is False
    policies.add_policy(south, ada, policy(south))

    assert carried_out(south) is True

    assert arrives(north, statement=queued(south)[-1]) is None
    assert transfer_at(north, transfer.id).state is State.APPROVED
    assert any("standing policy" in by and ada.key.fingerprint in by
               for by in collect(north).open[0]["decided_by"])  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"acts": ["accept"]}, "to approve"),
        ({"peers": ["west"]}, "site 'north'"),
        ({"purposes": ["DUO:0000011"]}, "purpose DUO:0000007"),
        ({"features": ["bp"]}, "every feature"),
        ({"rows": 4}, "5 rows"),
        ({"regions": ["bp"]}, "the region"),
        ({"regions": [region_name("sex x bp", (0, 3))]}, "the region"),
        ({"valid_until_ms": 1}, "its time has passed"),
    ],
)
def test_what_a_policy_does_not_cover_waits_for_a_steward(
    pair: Pair, changes: dict[str, Any], why: str
) -> None:
    north, south = pair
    transfer = asked(north, south)
    body = policy(south, policy_id=bytes(16), **changes)
    with south.store.write() as connection:
        connection.execute(
            store.policies.insert().values(
                policy_id=body.policy_id, statement=steward().sign(south, body).SerializeToString()
            )
        )

    assert carried_out(south) is False
    assert transfer_at(south, transfer.id).state is State.REQUESTED
    with pytest.raises(PolicyError, match=why):
        require_covered(body, "approve", peer="north", request=transfer.request, now_ms=2)
    # Nor does the other side believe an approval that says otherwise.
    forged = pb.Approval(
        transfer_id=transfer.id,
        request_digest=b"",
        policy=steward().sign(south, body),
        rows=1,
    )
    assert arrives(north, statement=south.sign(forged)) is not None
    assert transfer_at(north, transfer.id).state is State.REQUESTED


def test_a_policys_rows_are_used_up_and_a_removed_one_is_none(pair: Pair) -> None:
    north, south = pair
    ada = steward()
    identifier, _ = policies.add_policy(south, ada, policy(south, rows=8))
    first, second = asked(north, south, rows=5), asked(north, south, rows=5, voxel=0)

    assert carried_out(south)
    assert not carried_out(south)
    assert [transfer_at(south, t.id).state for t in (first, second)] == [
        State.APPROVED,
        State.REQUESTED,
    ]
    policies.remove_policy(south, ada, identifier.hex()[:8])
    assert policies.list_policies(south) == []
    assert len(events(south, "policy removed")) == 1


def test_a_policy_accepts_what_passed_the_gate(pair: Pair) -> None:
    north, south = pair
    waiting = delivered(north, south, accept_if_gate_passes=False)
    policies.add_policy(north, steward(), policy(north, acts=["accept"]))

    assert carried_out(north)

    assert arrives(south, statement=queued(north)[-1]) is None
    assert transfer_at(south, waiting.id).state is State.ACTIVE
    with north.store.read() as connection:
        body = policies.policies_for(north, connection, "accept")[0].policy
        assert policies.rows_left(connection, body, "accept", "south") == 15


def test_a_request_under_a_policy_is_believed_by_the_donor(pair: Pair) -> None:
    north, south = pair
    policies.add_policy(north, steward(), policy(north, acts=["request"]))
    with north.store.read() as connection:
        decider = policies.policies_for(north, connection, "request")[0]
    identifier = request(
        north, decider, donor="south", grid=north.grid("sex x bp"), voxel=MALE_HIGH, rows=5,
        purpose="DUO:0000006",
    )  # fmt: skip

    assert arrives(south, statement=queued(north)[-1]) is None
    assert transfer_at(south, identifier).state is State.REQUESTED


def test_where_two_approve_two_sign_the_policy(pair: Pair) -> None:
    north, south = pair
    south = two_stewards(south)
    ada, bob = steward("ada"), steward("bob")
    transfer = asked(north, south)
    identifier, is_in_force = policies.add_policy(south, ada, policy(south))

    assert not is_in_force
    assert not carried_out(south)
    with pytest.raises(RefusedError, match="two different stewards"):
        policies.countersign(south, ada, identifier.hex())
    policies.countersign(south, bob, identifier.hex())
    with pytest.raises(UsageError, match="needs no further signature"):
        policies.countersign(south, bob, identifier.hex())

    assert carried_out(south)
    assert arrives(north, statement=queued(south)[-1]) is None
    assert transfer_at(north, transfer.id).state is State.APPROVED


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"peers": ["nowhere"]}, "no site 'nowhere'"),
        ({"features": ["note"]}, "no shareable feature 'note'"),
        ({"regions": ["age/1"]}, "no grid 'age'"),
        ({"purposes": ["DUO:0000018"]}, "no permission of the Data Use Ontology"),
        ({"valid_until_ms": 1}, "last day has passed"),
    ],
)
def test_a_policy_about_nothing_known_is_refused(
    pair: Pair, changes: dict[str, Any], match: str
) -> None:
    north, _ = pair
    with pytest.raises(UsageError, match=match):
        policies.add_policy(north, steward(), policy(north, **{"peers": ["south"], **changes}))


def test_a_site_with_another_rule_for_stewards_is_told_so(pair: Pair) -> None:
    north, _ = pair
    with (north.settings.folder / "site.toml").open("a") as file:
        file.write("\n[stewards]\napprovals = 3\n")
    with (
        pytest.raises(TableError, match=r"approvals in .* must be 1 or 2"),
        open_site(north.settings.folder),
    ):
        pass
