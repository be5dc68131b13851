"""Two sites and a coordinator, driven at random over a bad network with crashes and jumps of time.

Whatever happens: no record leaves the lifecycle table; no row is delivered without the patient's consent and both
stewards' signatures; nothing is lost, nothing comes twice; at rest all three records agree.
"""

import itertools
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memory_consortium import COORDINATOR, MemoryConsortium, copied, new_consortium
from sites import MALE_HIGH, edit, patients, steward, transfer_at, with_hole
from synthedge_client import store
from synthedge_client.accepting import accept, refuse
from synthedge_client.asking import request
from synthedge_client.cancelling import cancel
from synthedge_client.donating import approve, decline, prepare
from synthedge_client.site import Site
from synthedge_client.withdrawals import withdraw_patient
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.errors import (
    DeadlineError,
    IdentityError,
    ProtocolError,
    UnavailableError,
)
from synthedge_protocols.lifecycle import TRANSITIONS, Party, State, is_final
from synthedge_protocols.withdrawal import NoticeState
from synthedge_server import operations
from synthedge_server import store as server_store

RECIPIENT, DONOR = "north", "south"
PARTY = {
    COORDINATOR: Party.COORDINATOR,
    RECIPIENT: Party.RECIPIENT,
    DONOR: Party.DONOR,
}
N_ROWS = 5
N_DONOR_ROWS = 30
FAULTS = ("", "", "", "lost", "unanswered", "twice", "late", "cut")

calls = st.lists(st.sampled_from(FAULTS), max_size=8)
crashes = st.none() | st.tuples(
    st.sampled_from(list(PARTY)), st.integers(0, 5), st.sampled_from(["before", "after"])
)


def reachable(party: Party) -> dict[State, set[State]]:
    """Where a record of a party can be later, by where it is."""
    steps = defaultdict(set)
    for row in TRANSITIONS:
        if party in row.where:
            steps[row.source].add(row.target)
    later: dict[State, set[State]] = {}
    for state in State:
        later[state], front = {state}, [state]
        while front:
            new = steps[front.pop()] - later[state]
            later[state] |= new
            front += new
    return later


LATER = {name: reachable(party) for name, party in PARTY.items()}


class Machine(RuleBasedStateMachine):
    """See the module's text."""

    template: Path
    numbers: Iterator[int] = itertools.count()

    transfers = Bundle("transfers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.template.parent / f"run{next(self.numbers)}"
        self.consortium: MemoryConsortium = copied(self.template, self.folder)
        self.last: dict[tuple[str, bytes], State] = {}
        # By transfer: what the donor's steward signed for, newest last.
        self.approved: dict[bytes, list[frozenset[bytes]]] = defaultdict(list)
        self.requested: set[bytes] = set()
        self.without_consent: set[str] = set()
        self.is_late_call = False

    # ---- what people do ------------------------------------------------------------------------------------------

    @initialize(target=transfers)
    def begin(self) -> Any:
        return self.ask(at_once=True, crash=None)

    @precondition(lambda self: len(self.requested) < 3)
    @rule(target=transfers, at_once=st.booleans(), crash=crashes)
    def ask(self, at_once: bool, crash: Any) -> Any:
        def act(site: Site) -> bytes:
            return request(
                site,
                steward(),
                donor=DONOR,
                grid=site.grid("sex x bp"),
                voxel=MALE_HIGH,
                rows=N_ROWS,
                purpose="DUO:0000007",
                accept_if_gate_passes=at_once,
            )

        self._act(RECIPIENT, act, crash)
        # What counts is what is on disk, whether or not the steward saw the answer.
        new = set(self._states(RECIPIENT)) - self.requested
        self.requested |= new
        return multiple(*new)

    @rule(transfer=transfers, n_steps=st.integers(1, 6), faults=calls, crash=crashes)
    def go_on(self, transfer: bytes, n_steps: int, faults: list[str], crash: Any) -> None:
        """A few of the steps that bring a transfer on, so that many get far; the last one is disturbed."""
        for _ in range(n_steps - 1):
            self._take_the_next_step(transfer, [], None)
        self._take_the_next_step(transfer, faults, crash)

    go_on_too = go_on

    def _take_the_next_step(self, transfer: bytes, faults: list[str], crash: Any) -> None:
        at_donor, at_recipient = (self._state(name, transfer) for name in (DONOR, RECIPIENT))
        if at_donor is State.REQUESTED:
            self._act(DONOR, lambda site: prepare(site, transfer_at(site, transfer), "ada"), crash)
        elif at_donor is State.PREPARED:
            self._approve(transfer, crash)
        elif at_recipient is State.DELIVERED and not crash:
            self._act(RECIPIENT, lambda s: accept(s, transfer_at(s, transfer), steward()), crash)
        else:
            for site in (RECIPIENT, DONOR):
                self.exchange(site, faults, crash)

    @rule(transfer=transfers, crash=crashes)
    def prepare_anew(self, transfer: bytes, crash: Any) -> None:
        self._act(DONOR, lambda site: prepare(site, transfer_at(site, transfer), "ada"), crash)

    def _approve(self, transfer: bytes, crash: Any) -> None:
        tokens = frozenset(self._tokens(DONOR, store.disclosed, transfer))
        before = self._state(DONOR, transfer)
        self._act(DONOR, lambda site: approve(site, transfer_at(site, transfer), steward()), crash)
        if (before, self._state(DONOR, transfer)) == (State.PREPARED, State.APPROVED):
            self.approved[transfer].append(tokens)

    @rule(transfer=transfers, what=st.sampled_from([decline, cancel, refuse]), crash=crashes)
    def change_ones_mind(self, transfer: bytes, what: Any, crash: Any) -> None:
        def act(site: Site) -> None:
            what(site, transfer_at(site, transfer), steward(), "not now")

        self._act(RECIPIENT if what is refuse else DONOR, act, crash)

    @rule(transfer=transfers, crash=crashes)
    def cancel_a_request(self, transfer: bytes, crash: Any) -> None:
        def act(site: Site) -> None:
            cancel(site, transfer_at(site, transfer), steward(), "found others")

        self._act(RECIPIENT, act, crash)

    @rule(i_patient=st.integers(0, N_ROWS), crash=crashes)
    def withdraw(self, i_patient: int, crash: Any) -> None:
        """A patient takes back what was given, delivered or not."""
        chosen = self._selected_patients()
        if i_patient < len(chosen):
            self._act(DONOR, lambda site: withdraw_patient(site, chosen[i_patient]), crash)

    @rule(i_patient=st.integers(0, N_ROWS))
    def lose_consent(self, i_patient: int) -> None:
        """One of the patients who were selected, if there is any, withdraws for the future."""
        chosen = self._selected_patients()
        if i_patient < len(chosen):
            self.without_consent.add(chosen[i_patient])
            self._write_consents()

    @rule()
    def consent_again(self) -> None:
        self.without_consent.clear()
        self._write_consents()

    @rule(knows=st.booleans())
    def recipient_knows_the_rows(self, knows: bool) -> None:
        """Then its gate refuses a delivery: the rows are duplicates."""
        north, south = (self.consortium.sites[name] for name in (RECIPIENT, DONOR))
        own = pd.read_csv(self.template / f"{RECIPIENT}.csv")
        theirs = pd.read_csv(south.settings.data).assign(consent="active")
        (pd.concat([own, theirs]) if knows else own).to_csv(north.settings.data, index=False)

    @rule(site=st.sampled_from([RECIPIENT, DONOR]), suspended=st.booleans())
    def suspend_or_resume(self, site: str, suspended: bool) -> None:
        self._set_state(site, "suspended" if suspended else "active")

    # ---- what machines and time do -------------------------------------------------------------------------------

    @rule(site=st.sampled_from([RECIPIENT, DONOR]), faults=calls, crash=crashes)
    def exchange(self, site: str, faults: list[str], crash: Any) -> None:
        self.consortium.faults.extend(faults)
        self._act(site, lambda _: self.consortium.exchange(site), crash, is_agent=True)

    @rule()
    def all_exchange(self) -> None:
        for site in (RECIPIENT, DONOR, RECIPIENT):
            self.exchange(site, [], None)

    @precondition(lambda self: self.consortium.late)
    @rule(i_call=st.integers(0, 50), crash=crashes)
    def late_call_arrives(self, i_call: int, crash: Any) -> None:
        self.is_late_call = True
        self._plan(crash)
        self.consortium.arrive_late(i_call % len(self.consortium.late))
        self._forget()

    @rule(hours=st.sampled_from([1, 1, 1, 13, 25, 50]), crash=crashes)
    def time_passes(self, hours: int, crash: Any) -> None:
        self.consortium.wait(hours)
        self._plan(crash)
        self.consortium.keep_house()
        self._forget()

    # ---- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def records_move_along_the_table(self) -> None:
        for party in PARTY:
            for transfer, state in self._states(party).items():
                before = self.last.get((party, transfer), State.PROPOSED)
                assert state in LATER[party][before], (party, before, state)
                if party == COORDINATOR and (before, state) != (state, before):
                    self._check_upload(transfer, before, state)
                self.last[party, transfer] = state

    def _check_upload(self, transfer: bytes, before: State, state: State) -> None:
        """Bytes that left just now are of patients who consent now; a late call left earlier."""
        left = (State.RELAYED, State.DELIVERED, State.ACTIVE)
        if state in left and before not in left and not self.is_late_call:
            site = self.consortium.sites[DONOR]
            lost = {site.keys.tag(mrn) for mrn in self.without_consent}
            assert not lost & self._selected(transfer)

    @invariant()
    def delivered_rows_have_three_consents_and_come_once(self) -> None:
        self.is_late_call = False
        states = self._states(RECIPIENT)
        for transfer, tokens in self._received().items():
            assert transfer in self.requested
            assert states[transfer] in (State.DELIVERED, State.ACTIVE)
            whole = tokens | self._withdrawn()
            assert any(tokens <= approved <= whole for approved in self.approved[transfer])
            assert tokens <= frozenset(self._tokens(DONOR, store.disclosed, transfer))
        tags = self._disclosed_tags()
        assert len(tags) == len(set(tags)), "a patient was selected twice for one recipient"

    def teardown(self) -> None:
        try:
            self.at_rest()
        finally:
            self.consortium.close()
            shutil.rmtree(self.folder)

    def at_rest(self) -> None:
        """Everything that can arrive has arrived; then all agree."""
        for site in (RECIPIENT, DONOR):
            self._set_state(site, "active")
        while self.consortium.late:
            self.late_call_arrives(0, None)
        for _ in range(8):
            self.all_exchange()
            self.consortium.keep_house()
            if not any(self._unread(name) for name in self.consortium.sites):
                break
        self.records_move_along_the_table()
        self.delivered_rows_have_three_consents_and_come_once()
        at_coordinator = self._states(COORDINATOR)
        north, south = self._states(RECIPIENT), self._states(DONOR)
        assert set(south) == set(at_coordinator)
        for transfer, state in at_coordinator.items():
            agreed = {
                State.REQUESTED: {(State.REQUESTED, s) for s in (State.REQUESTED, State.PREPARED)},
                # A consent was lost after the approval: it waits for another one.
                State.APPROVED: {(State.APPROVED, s) for s in (State.REQUESTED, State.PREPARED)},
                # It waits for the recipient's steward.
                State.DELIVERED: {(State.DELIVERED, State.RELAYED)},
                State.ACTIVE: {(State.ACTIVE, State.ACTIVE)},
            }.get(state, {(state, state)} if is_final(state) else set())
            found = (north[transfer], south[transfer])
            assert found in agreed, f"coordinator {state}, recipient and donor {found}"
            if state is State.ACTIVE:
                kept = set(self._tokens(RECIPIENT, store.received, transfer))
                sent = set(self._tokens(DONOR, store.disclosed, transfer))
                assert kept == sent - self._withdrawn()
        for transfer in set(north) - set(at_coordinator):
            assert is_final(north[transfer])  # refused before it began
        self._check_nothing_waits()
        self._check_withdrawals()

    def _check_nothing_waits(self) -> None:
        for name, site in self.consortium.sites.items():
            with site.store.read() as connection:
                waiting = connection.execute(
                    sa.select(store.outbox.c.kind).where(
                        store.outbox.c.sent_at_ms.is_(None) & store.outbox.c.refusal.is_(None)
                    )
                ).scalars()
                assert list(waiting) == []
                unhandled = connection.execute(
                    sa.select(store.inbox.c.sequence).where(store.inbox.c.handled_at_ms.is_(None))
                ).scalars()
                assert list(unhandled) == []
            assert not self._unread(name)
            assert list((site.settings.folder / "incoming").glob("*")) == []
            # What waits for the recipient's steward can still be fetched once more.
            waiting_there = {t for t, state in self._states(name).items() if state is State.RELAYED}
            kept = {path.stem for path in (site.settings.folder / "outgoing").glob("*")}
            assert kept == {transfer.hex() for transfer in waiting_there}
        at_coordinator = list(self._states(COORDINATOR).values())
        spooled = list(self.consortium.coordinator_folder.spool.iterdir())
        assert len(spooled) == at_coordinator.count(State.DELIVERED)

    def _unread(self, name: str) -> set[tuple[int, str]]:
        """Messages that wait for a site at the coordinator."""
        with self.consortium.sites[name].store.read() as connection:
            taken = set(connection.execute(sa.select(store.inbox.c.sequence)).scalars())
        table = server_store.inbox
        with self.consortium.database.connect() as connection:
            rows = connection.execute(
                sa.select(table.c.sequence, table.c.kind).where(table.c.site == name)
            ).all()
        return {(row.sequence, row.kind) for row in rows if row.sequence not in taken}

    def _check_withdrawals(self) -> None:
        """Every notice was carried out, and no withdrawn row is left."""
        kept = {token for tokens in self._received().values() for token in tokens}
        assert not kept & self._withdrawn()
        for site in self.consortium.sites.values():
            with site.store.read() as connection:
                found = set(connection.execute(sa.select(store.withdrawals.c.state)).scalars())
            assert found <= {NoticeState.PURGED.value}

    # ---- helpers -------------------------------------------------------------------------------------------------

    def _act(self, name: str, action: Any, crash: Any, *, is_agent: bool = False) -> None:
        """Do something that a rule of the product, the network or a crash may end."""
        self._plan(crash)
        try:
            self.consortium.at(name, action)
        except (UnavailableError, DeadlineError, IdentityError):
            pass  # the network, or suspended
        except (ProtocolError, SynthEdgeError):
            if is_agent:
                raise
        self._forget()

    def _plan(self, crash: Any) -> None:
        if crash is not None:
            party, n_commits, when = crash
            self.consortium.commits[party].crash_at(n_commits, when)

    def _forget(self) -> None:
        self.consortium.faults.clear()
        for counter in self.consortium.commits.values():
            counter.forget()

    def _set_state(self, site: str, state: str) -> None:
        operations.set_site_state(self.consortium.coordinator_folder, site, state)

    def _selected_patients(self) -> list[str]:
        site, tags = self.consortium.sites[DONOR], self._selected()
        table = pd.read_csv(site.settings.data)
        return [mrn for mrn in table["mrn"] if site.keys.tag(mrn) in tags]

    def _withdrawn(self) -> frozenset[bytes]:
        with self.consortium.sites[DONOR].store.read() as connection:
            return frozenset(
                connection.execute(sa.select(store.withdrawn_tokens.c.token)).scalars()
            )

    def _write_consents(self) -> None:
        site = self.consortium.sites[DONOR]
        table = pd.read_csv(site.settings.data)
        lost = table["mrn"].isin(self.without_consent)
        edit(site, consent=np.where(lost, "withdrawn", "active"))

    def _states(self, party: str) -> dict[bytes, State]:
        if party == COORDINATOR:
            table, opened = server_store.transfers, self.consortium.database.connect()
        else:
            table = store.transfers
            opened = self.consortium.sites[party].store._engine.connect()
        with opened as connection:
            rows = connection.execute(sa.select(table.c.transfer_id, table.c.state)).all()
        return {row.transfer_id: State(row.state) for row in rows}

    def _state(self, party: str, transfer: bytes) -> State | None:
        return self._states(party).get(transfer)

    def _tokens(self, site: str, table: sa.Table, transfer: bytes) -> list[bytes]:
        with self.consortium.sites[site].store.read() as connection:
            return list(
                connection.execute(
                    sa.select(table.c.token).where(table.c.transfer_id == transfer)
                ).scalars()
            )

    def _received(self) -> dict[bytes, frozenset[bytes]]:
        found: dict[bytes, set[bytes]] = defaultdict(set)
        with self.consortium.sites[RECIPIENT].store.read() as connection:
            table = store.received
            for row in connection.execute(sa.select(table.c.transfer_id, table.c.token)):
                found[row.transfer_id].add(row.token)
        return {transfer: frozenset(tokens) for transfer, tokens in found.items()}

    def _disclosed_tags(self, transfer: bytes | None = None) -> list[bytes]:
        table = store.disclosed
        query = sa.select(table.c.patient_tag)
        if transfer is not None:
            query = query.where(table.c.transfer_id == transfer)
        with self.consortium.sites[DONOR].store.read() as connection:
            return list(connection.execute(query).scalars())

    def _selected(self, transfer: bytes | None = None) -> set[bytes]:
        return set(self._disclosed_tags(transfer))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium to copy: north has a hole at male, 100 and above; south has thirty of them."""
    folder = tmp_path_factory.mktemp("consortium") / "template"
    folder.mkdir()
    many = np.full((2, 4), 8)
    many[1, 3] = N_DONOR_ROWS
    new_consortium(folder, north=patients("n", with_hole()), south=patients("s", many)).close()
    return folder


def drive(template: Path, *, examples: int, steps: int) -> None:
    Machine.template = template
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_that_happens_brings_the_records_out_of_step(template: Path) -> None:
    drive(template, examples=8, steps=20)


@pytest.mark.slow
def test_nothing_that_happens_for_long_brings_the_records_out_of_step(template: Path) -> None:
    drive(template, examples=60, steps=30)
