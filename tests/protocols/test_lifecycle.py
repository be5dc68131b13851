from collections import deque
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthedge_protocols.errors import LifecycleError
from synthedge_protocols.lifecycle import (
    TIME_LIMITS,
    TRANSITIONS,
    Event,
    Party,
    State,
    advance,
    ending_event,
    is_final,
    lifecycle_markdown,
)
from synthedge_protocols.withdrawal import withdrawal_markdown

LOCAL = {Event.PREPARE, Event.LAPSE, Event.SEAL, Event.LOSE_CONSENT}
WAY_TO_SUCCESS = [
    (Event.REQUEST, Party.RECIPIENT),
    (Event.PREPARE, Party.DONOR),
    (Event.APPROVE, Party.DONOR),
    (Event.SEAL, Party.DONOR),
    (Event.RELAY, Party.DONOR),
    (Event.DELIVER, Party.RECIPIENT),
    (Event.ACCEPT, Party.RECIPIENT),
    (Event.PURGE, Party.RECIPIENT),
]


def reachable(party: Party) -> set[State]:
    seen, front = {State.PROPOSED}, deque([State.PROPOSED])
    while front:
        state = front.popleft()
        for row in TRANSITIONS:
            if row.source is state and party in row.where and row.target not in seen:
                seen.add(row.target)
                front.append(row.target)
    return seen


def test_the_document_is_what_the_table_writes() -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "lifecycle.md"
    assert document.read_text() == lifecycle_markdown() + withdrawal_markdown()


def test_every_row_can_be_reached_and_no_row_is_there_twice() -> None:
    for row, party in product(TRANSITIONS, Party):
        if party in row.where:
            assert row.source in reachable(party), f"{row} is dead in the {party}'s record"
    keys = [(r.source, r.event, r.actor, p) for r in TRANSITIONS for p in r.where]
    assert len(keys) == len(set(keys))
    assert {row.target for row in TRANSITIONS} | {State.PROPOSED} == set(State)
    assert {row.event for row in TRANSITIONS} == set(Event)


def test_every_state_that_is_not_final_can_be_ended_by_the_coordinator() -> None:
    for party in Party:
        for state in reachable(party):
            if (
                not is_final(state) and state is not State.PROPOSED
            ):  # a hint: there is no record yet
                advance(state, Event.REVOKE, Party.COORDINATOR, at=party)
                assert TIME_LIMITS[state]


def test_every_time_limit_has_a_row_that_happens_by_itself() -> None:
    timed = {row.source: row.limit for row in TRANSITIONS if row.limit}
    # SEALED is the donor's alone: the coordinator's clock for APPROVED and RELAYED ends it.
    # A proposal has no record.
    others = (State.SEALED, State.PROPOSED)
    assert timed == {s: limit for s, limit in TIME_LIMITS.items() if s not in others}


def test_nothing_follows_a_final_state_in_the_coordinators_record() -> None:
    for state, event, actor in product(State, Event, Party):
        if is_final(state):
            with pytest.raises(LifecycleError, match="possible: nothing"):
                advance(state, event, actor, at=Party.COORDINATOR)


def test_a_sites_own_word_is_replaced_only_by_what_others_put_on_record() -> None:
    at_coordinator = {(r.event, r.target) for r in TRANSITIONS if Party.COORDINATOR in r.where}
    for row in TRANSITIONS:
        if is_final(row.source):
            (party,) = row.where
            assert party is not row.actor
            assert (row.event, row.target) in at_coordinator


def test_all_three_records_walk_the_way_to_success() -> None:
    for party in Party:
        state = State.PROPOSED
        for event, actor in WAY_TO_SUCCESS:
            if any(r.event is event and party in r.where for r in TRANSITIONS):
                state = advance(state, event, actor, at=party)
        assert state is State.PURGED


def test_an_illegal_step_is_refused_in_words() -> None:
    with pytest.raises(LifecycleError, match=r"REQUESTED in the donor's record.*'approve'"):
        advance(State.REQUESTED, Event.APPROVE, Party.DONOR, at=Party.DONOR)
    with pytest.raises(LifecycleError, match="'approve' by the recipient"):
        advance(State.REQUESTED, Event.APPROVE, Party.RECIPIENT, at=Party.COORDINATOR)


def test_rows_of_people_are_signed_by_people() -> None:
    signed = {row.event: row.signed_by for row in TRANSITIONS if row.actor is not Party.COORDINATOR}
    assert {e for e, who in signed.items() if who == "steward"} == {Event.DECLINE, Event.CANCEL}
    assert {e for e, who in signed.items() if who == "steward or policy"} == {
        Event.REQUEST,
        Event.APPROVE,
        Event.ACCEPT,
    }
    assert {e for e, who in signed.items() if who == "nobody"} == LOCAL


@pytest.mark.parametrize("text", ["", "ACTIVE", "declined", "nonsense" * 20])
def test_a_message_cannot_end_a_transfer_in_another_state(text: str) -> None:
    with pytest.raises(LifecycleError, match="cannot be ended as"):
        ending_event(text)
    assert ending_event("CANCELLED") is Event.CANCEL


class Consortium:
    """Three records that learn of each other's steps only through the coordinator, and late.

    The actor submits first and moves its own record once the coordinator has accepted.
    """

    def __init__(self) -> None:
        self.records = dict.fromkeys(Party, State.PROPOSED)
        self.inbox: dict[Party, deque[tuple[Event, Party]]] = {
            Party.RECIPIENT: deque(),
            Party.DONOR: deque(),
        }

    def act(self, event: Event, actor: Party) -> None:
        own = advance(self.records[actor], event, actor, at=actor)
        if event not in LOCAL and actor is not Party.COORDINATOR:
            self.records[Party.COORDINATOR] = advance(
                self.records[Party.COORDINATOR], event, actor, at=Party.COORDINATOR
            )
        self.records[actor] = own
        if event not in LOCAL:
            for party in set(self.inbox) - {actor}:
                self.inbox[party].append((event, actor))

    def receive(self, party: Party) -> None:
        event, actor = self.inbox[party].popleft()
        # On its way when the recipient called the transfer off: noted, and no more.
        if self.records[party] is State.CANCELLED and event in (Event.APPROVE, Event.RELAY):
            return
        concerns = any(
            r.event is event and r.actor is actor and party in r.where for r in TRANSITIONS
        )
        if not concerns:
            return
        try:
            self.records[party] = advance(self.records[party], event, actor, at=party)
        except LifecycleError:
            # The party's own end, which the coordinator took, overtook what was on its way: refused and passed over.
            assert is_final(self.records[party])


@given(st.data())
def test_records_that_hear_of_each_other_late_never_contradict(data: st.DataObject) -> None:
    consortium = Consortium()
    for _ in range(data.draw(st.integers(0, 25))):
        possible = [
            (row.event, row.actor)
            for row in TRANSITIONS
            if consortium.records[row.actor] is row.source and row.actor in row.where
        ]
        waiting = [party for party, queue in consortium.inbox.items() if queue]
        choice = data.draw(st.sampled_from([*possible, *waiting, None]))
        if isinstance(choice, Party):
            consortium.receive(choice)
        elif choice is not None:
            try:
                consortium.act(*choice)
            except LifecycleError:
                # The coordinator knew better: the news must already be on its way to the actor.
                assert consortium.inbox[choice[1]]
    for party, queue in consortium.inbox.items():
        while queue:
            consortium.receive(party)
    ended = {consortium.records[party] for party in Party if is_final(consortium.records[party])}
    assert len(ended) <= 1
    if ended:
        assert set(consortium.records.values()) == ended
