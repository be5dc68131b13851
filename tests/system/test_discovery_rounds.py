"""Rounds of discovery: one suite over both engines, on real sites and a real coordinator in one process."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from memory_consortium import MemoryConsortium, copied, new_consortium
from sites import patients, queued, steward
from synthedge_client import flower_runner, outbound
from synthedge_client import store as site_store
from synthedge_client.dictionaries import accept
from synthedge_client.divergence import FROZEN_FACT
from synthedge_client.flower_app import make_client_app
from synthedge_client.flower_node import announce_node, approve_app
from synthedge_client.flower_runner import reply_to
from synthedge_client.leaving import change_standing
from synthedge_client.releases import FROZEN, publish
from synthedge_core.errors import RefusedError, UsageError
from synthedge_deploy.local_grid import LocalGrid
from synthedge_protocols.discovery import Engine, Refusal
from synthedge_protocols.errors import MalformedError
from synthedge_protocols.flower_app import MESSAGE_TYPE, app, pack, unpack
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import dictionaries, operations, store
from synthedge_server.flower_nodes import announced_keys
from synthedge_server.flower_round import ask_nodes
from synthedge_server.rounds import close_round, open_round
from synthedge_server.taking_in import taking_in

pytestmark = pytest.mark.slow
NAMES = ("north", "south", "west")
TIMEOUT_S = 60.0
Outcomes = dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites whose stewards published anew; their agents have not been running since."""
    folder = tmp_path_factory.mktemp("consortium") / "template"
    folder.mkdir()
    consortium = new_consortium(
        folder, north=patients("north"), south=patients("south"), west=patients("west")
    )
    for name in NAMES:
        change_table(consortium, name, 20)
        publish(consortium.sites[name], steward())
    consortium.close()
    return folder


@pytest.fixture
def consortium(template: Path, tmp_path: Path) -> Iterator[MemoryConsortium]:
    opened = copied(template, tmp_path / "consortium")
    yield opened
    opened.close()


@pytest.fixture(params=["channel", "flower"])
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


def change_table(consortium: MemoryConsortium, name: str, n: int) -> None:
    rows = patients(name, positives=np.full((2, 4), n))
    rows.to_csv(consortium.folder / f"{name}.csv", index=False)


def client_app(consortium: MemoryConsortium) -> ClientApp:
    def open_site(context: Context) -> Any:
        return nullcontext(consortium.sites[str(context.node_config["site"])])

    return make_client_app(open_site)


def run_round(
    consortium: MemoryConsortium,
    engine: Engine,
    sites: Sequence[str] = NAMES,
    awake: Sequence[str] = NAMES,
) -> Outcomes:
    """One round; `awake` are the sites whose agent, or SuperNode, runs."""
    folder = consortium.coordinator_folder
    asked = operations.change(folder, lambda t: open_round(t, engine, sites, TIMEOUT_S))
    unreached = {}
    if engine == "channel":
        for name in awake:
            consortium.exchange(name)
    else:
        nodes = {name: i for i, name in enumerate(NAMES, start=1) if name in sites}
        grid = LocalGrid(
            client_app(consortium),
            {i: {"site": name} for name, i in nodes.items()},
            offline=[i for name, i in nodes.items() if name not in awake],
        )
        with taking_in(folder) as take:
            unreached = ask_nodes(grid, asked, nodes, take, TIMEOUT_S)
    closed = operations.change(folder, lambda t: close_round(t, asked.round_id, unreached))
    return {row["site"]: (row["outcome"], row["reason"]) for row in closed}


def stored(consortium: MemoryConsortium) -> dict[str, bytes]:
    """The report the coordinator counts with, of every site."""
    table = store.reports
    with consortium.database.connect() as connection:
        rows = connection.execute(
            sa.select(table.c.site, table.c.payload).where(table.c.is_current)
        )
        return {row.site: row.payload for row in rows}


def published(consortium: MemoryConsortium, name: str) -> bytes:
    """The report a site's steward published last."""
    table = site_store.releases
    with consortium.sites[name].store.read() as connection:
        report: bytes = connection.execute(
            sa.select(table.c.report).order_by(table.c.published_at_ms.desc()).limit(1)
        ).scalar_one()
    return report


def spent(consortium: MemoryConsortium, name: str) -> float:
    table = site_store.releases
    with consortium.sites[name].store.read() as connection:
        return float(
            connection.execute(
                sa.select(sa.func.sum(table.c.epsilon)).where(table.c.spent_at_ms.is_not(None))
            ).scalar_one()
        )


def set_discovery(consortium: MemoryConsortium, name: str, text: str) -> None:
    with (consortium.folder / name / "site.toml").open("a") as file:
        file.write(f"\n[discovery]\n{text}\n")
    consortium.open(name)


def test_a_round_brings_what_the_stewards_published_byte_for_byte(
    consortium: MemoryConsortium, engine: Engine
) -> None:
    before = stored(consortium)
    assert run_round(consortium, engine) == dict.fromkeys(NAMES, ("ok", ""))
    assert stored(consortium) == {name: published(consortium, name) for name in NAMES}
    assert all(stored(consortium)[name] != before[name] for name in NAMES)


def test_repeated_rounds_store_the_same_bytes_and_cost_nothing(
    consortium: MemoryConsortium, engine: Engine
) -> None:
    run_round(consortium, engine)
    first = stored(consortium), [spent(consortium, name) for name in NAMES]
    other: Engine = "flower" if engine == "channel" else "channel"
    for again in (engine, other, engine):
        assert run_round(consortium, again) == dict.fromkeys(NAMES, ("ok", ""))
    assert (stored(consortium), [spent(consortium, name) for name in NAMES]) == first
    with consortium.database.connect() as connection:
        n_reports = connection.execute(
            sa.select(sa.func.count()).select_from(store.reports)
        ).scalar_one()
    assert n_reports == 2 * len(NAMES)  # the first ones, and those published anew


def test_only_named_sites_are_asked(consortium: MemoryConsortium, engine: Engine) -> None:
    before = stored(consortium)
    assert run_round(consortium, engine, ["south"]) == {"south": ("ok", "")}
    if engine == "flower":  # an agent that runs sends its report anyway
        assert stored(consortium)["north"] == before["north"]
    with pytest.raises(UsageError, match="no site 'elsewhere' is enrolled"):
        run_round(consortium, engine, ["elsewhere"])


def test_a_site_that_is_not_there_is_said_to_be_offline(
    consortium: MemoryConsortium, engine: Engine
) -> None:
    consortium.wait(0.03)  # longer than an agent that runs is not heard of
    outcomes = run_round(consortium, engine, awake=("north", "south"))
    assert outcomes.pop("west")[0] == "offline"
    assert outcomes == {"north": ("ok", ""), "south": ("ok", "")}
    assert run_round(consortium, engine)["west"] == ("ok", "")


def test_a_site_toml_can_forbid_rounds_of_one_engine_or_all(
    consortium: MemoryConsortium, engine: Engine
) -> None:
    other = "flower" if engine == "channel" else "channel"
    set_discovery(consortium, "north", "engines = []")
    set_discovery(consortium, "south", f'engines = ["{other}"]')
    outcomes = run_round(consortium, engine)
    refused = ("refused", Refusal.ENGINE.in_words)
    assert outcomes == {"north": refused, "south": refused, "west": ("ok", "")}


def test_a_round_publishes_nothing_that_no_steward_did(
    consortium: MemoryConsortium, engine: Engine
) -> None:
    change_table(consortium, "north", 30)
    before = published(consortium, "north"), spent(consortium, "north")
    assert run_round(consortium, engine)["north"] == ("ok", "")
    assert (published(consortium, "north"), spent(consortium, "north")) == before
    set_discovery(consortium, "north", "send_stale = false")
    assert run_round(consortium, engine)["north"] == ("refused", Refusal.STALE.in_words)
    (consortium.folder / "north.csv").write_text("no table")
    assert run_round(consortium, engine)["north"] == ("refused", Refusal.UNREADABLE.in_words)


@pytest.mark.parametrize("refusal", [Refusal.FROZEN, Refusal.PAUSED])
def test_a_site_that_may_not_report_says_why(
    consortium: MemoryConsortium, engine: Engine, refusal: Refusal
) -> None:
    north = consortium.sites["north"]
    if refusal is Refusal.PAUSED:
        change_standing(north, "suspend", steward(), "we move house")
    else:
        with north.store.write() as connection:
            site_store.set_fact(connection, FROZEN, "the ledger is behind")
    assert run_round(consortium, engine)["north"] == ("refused", refusal.in_words)


def test_under_a_new_dictionary_nothing_is_accepted_or_published_by_a_round(
    consortium: MemoryConsortium, engine: Engine
) -> None:
    toml = operations.current_dictionary(consortium.coordinator_folder)
    renamed = toml.replace('name = "', 'name = "new ', 1)
    operations.change(consortium.coordinator_folder, lambda t: dictionaries.add(t, renamed))
    consortium.exchange("north")
    outcomes = run_round(consortium, engine)
    assert set(outcomes.values()) == {("refused", Refusal.DICTIONARY.in_words)}
    accept(consortium.sites["north"], steward())
    consortium.open("north")
    outcomes = run_round(consortium, engine)
    assert outcomes["north"] == ("refused", Refusal.NOTHING.in_words)


def test_an_answer_counts_for_the_site_that_signed_it_and_for_the_node_it_came_from(
    consortium: MemoryConsortium,
) -> None:
    """South's SuperNode hands in what north signed: nobody is believed because of the channel."""
    folder = consortium.coordinator_folder
    asked = operations.change(folder, lambda t: open_round(t, "flower", NAMES, TIMEOUT_S))
    grid = LocalGrid(client_app(consortium), {2: {"site": "north"}})
    before = stored(consortium)
    with taking_in(folder) as take:
        unreached = ask_nodes(grid, asked, {"south": 2}, take, TIMEOUT_S)
    outcome, reason = unreached["south"]
    assert (outcome, reason) == (
        "rejected",
        "site 'south' handed in a statement of site 'north'",
    )
    assert stored(consortium) == before


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({"message": b""})}),
        RecordDict({"synthedge": ConfigRecord({"message": 5})}),
        RecordDict({"synthedge": ConfigRecord({"message": b"", "more": 1})}),
        pack(b"no protobuf"),
        pack(wire.DiscoveryRound(round_id=b"short").SerializeToString()),
    ],
)
def test_a_flower_message_that_is_no_round_is_answered_by_an_error(
    consortium: MemoryConsortium, content: RecordDict
) -> None:
    grid = LocalGrid(client_app(consortium), {1: {"site": "north"}})
    (reply,) = grid.send_and_receive([Message(content, 1, MESSAGE_TYPE)])
    assert reply.has_error()
    assert (reply.error.reason or "").startswith("MalformedError")


@pytest.mark.parametrize(
    "data", [b"no protobuf", b"", pb.SignedStatement(statement=b"x").SerializeToString()]
)
def test_a_reply_that_is_no_statement_is_said_to_be_none(
    consortium: MemoryConsortium, data: bytes
) -> None:
    folder = consortium.coordinator_folder
    asked = operations.change(folder, lambda t: open_round(t, "flower", ["north"], TIMEOUT_S))
    liar = ClientApp()

    @liar.query("gap_scan")
    def lie(message: Message, context: Context) -> Message:
        return Message(pack(data), reply_to=message)

    with taking_in(folder) as take:
        unreached = ask_nodes(LocalGrid(liar, {1: {}}), asked, {"north": 1}, take, TIMEOUT_S)
    assert unreached["north"][0] == "rejected"


@pytest.mark.parametrize(
    ("kind", "approved", "said"),
    [
        (MESSAGE_TYPE, True, "report"),
        (MESSAGE_TYPE, False, Refusal.APP.value),
        ("query.default", True, "error"),
        ("train", True, "error"),
        ("train", False, Refusal.APP.value),
    ],
)
def test_a_message_of_another_kind_or_app_runs_nothing(
    consortium: MemoryConsortium, kind: str, approved: bool, said: str
) -> None:
    north = consortium.sites["north"]
    digest = app().digest
    approve_app(north, digest if approved else "0" * 64)
    folder = consortium.coordinator_folder
    asked = operations.change(folder, lambda t: open_round(t, "flower", ["north"], TIMEOUT_S))
    LocalGrid(client_app(consortium), {})  # says who this process is, to Flower
    message = Message(pack(asked.SerializeToString()), 1, kind)
    context = Context(0, 1, {}, RecordDict(), {})
    reply = reply_to(north, message, context, digest)
    if reply.has_error():
        assert said == "error"
        assert "query.gap_scan and nothing else" in (reply.error.reason or "")
    else:
        signed = pb.SignedStatement.FromString(unpack(reply.content, 2**20))
        statement = pb.Statement.FromString(signed.statement)
        answer = pb.DiscoveryAnswer.FromString(statement.payload)
        assert (answer.refusal or "report") == said
    with north.store.read() as connection:
        noted = set(connection.execute(sa.select(site_store.events.c.what)).scalars())
    assert ("flower message refused" in noted) == (said != "report")


def test_a_supernode_key_of_another_site_or_of_no_curve_is_refused(
    consortium: MemoryConsortium,
) -> None:
    north, south = consortium.sites["north"], consortium.sites["south"]
    for _ in range(2):  # announced once
        announce_node(north)
    consortium.exchange("north")
    with consortium.database.connect() as connection:
        (row,) = connection.execute(sa.select(store.flower_nodes)).all()
        assert list(announced_keys(connection)) == ["north"] == [row.site]
    key_file = north.keys.folder / "flower-node.key"
    key_file.write_bytes(b"no key")
    with pytest.raises(MalformedError, match="or delete it"):
        announce_node(north)
    key_file.unlink()
    announce_node(north)
    consortium.exchange("north")
    with consortium.database.connect() as connection:
        (other,) = connection.execute(sa.select(store.flower_nodes)).all()
    assert (other.site, other.public_key != row.public_key) == ("north", True)
    row = other
    weak = ec.generate_private_key(ec.SECP256R1()).public_key()
    for public_key in (
        row.public_key,
        b"no key",
        weak.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ):
        with south.store.write() as connection:
            signed = south.sign(pb.FlowerNode(public_key=public_key))
            outbound.enqueue(connection, "flower-node", signed, "agent")
    consortium.exchange("south")
    with south.store.read() as connection:
        table = site_store.outbox
        refusals = list(
            connection.execute(
                sa.select(table.c.refusal).where(table.c.kind == "flower-node")
            ).scalars()
        )
    assert "is another site's" in refusals[0]
    assert all("none of the curve P-384" in refusal for refusal in refusals[1:])
    assert len(refusals) == 3
    operations.set_site_state(consortium.coordinator_folder, "north", "revoked")
    with consortium.database.connect() as connection:
        assert announced_keys(connection) == {}


def test_who_is_shut_out_in_the_middle_of_a_round_gets_nothing_in_through_flower(
    consortium: MemoryConsortium,
) -> None:
    folder, before = consortium.coordinator_folder, stored(consortium)
    asked = operations.change(folder, lambda t: open_round(t, "flower", ["west"], TIMEOUT_S))
    operations.set_site_state(folder, "west", "suspended")
    grid = LocalGrid(client_app(consortium), {3: {"site": "west"}})
    with taking_in(folder) as take:
        unreached = ask_nodes(grid, asked, {"west": 3}, take, TIMEOUT_S)
    assert unreached == {"west": ("rejected", "site 'west' is suspended")}
    assert stored(consortium) == before


def test_a_frozen_site_sends_nothing_not_even_a_refusal(consortium: MemoryConsortium) -> None:
    folder, west = consortium.coordinator_folder, consortium.sites["west"]
    asked = operations.change(folder, lambda t: open_round(t, "flower", ["west"], TIMEOUT_S))
    with west.store.write() as connection:
        reason = json.dumps({"reason": "frozen, an old backup", "lost": []})
        site_store.set_fact(connection, FROZEN_FACT, reason)
    approve_app(west, app().digest)
    LocalGrid(client_app(consortium), {})  # says who this process is, to Flower
    message = Message(pack(asked.SerializeToString()), 1, MESSAGE_TYPE)
    reply = reply_to(west, message, Context(0, 1, {}, RecordDict(), {}), app().digest)
    assert reply.has_error()
    assert "this site is frozen" in (reply.error.reason or "")
    assert "discovery-answer" not in [
        pb.Statement.FromString(signed.statement).type for signed in queued(west)
    ]


def test_a_database_that_is_busy_costs_the_reply_and_not_the_runner(
    consortium: MemoryConsortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = sa.exc.OperationalError("SELECT", {}, Exception("database is locked"))
    monkeypatch.setattr(flower_runner, "approved_app", Mock(side_effect=busy))
    LocalGrid(client_app(consortium), {})  # says who this process is, to Flower
    message = Message(pack(b""), 1, MESSAGE_TYPE)
    context = Context(0, 1, {}, RecordDict(), {})
    reply = flower_runner.reply_to(consortium.sites["west"], message, context, app().digest)
    assert "database could not be written" in (reply.error.reason or "")


def test_an_answer_to_a_round_that_did_not_ask_is_refused(consortium: MemoryConsortium) -> None:
    folder = consortium.coordinator_folder
    asked = operations.change(folder, lambda t: open_round(t, "flower", ["south"], TIMEOUT_S))
    grid = LocalGrid(client_app(consortium), {1: {"site": "north"}})
    with taking_in(folder) as take:
        unreached = ask_nodes(grid, asked, {"north": 1}, take, TIMEOUT_S)
    assert "it was not asked in" in unreached["north"][1]


def test_a_round_that_is_over_is_answered_by_nobody(consortium: MemoryConsortium) -> None:
    folder = consortium.coordinator_folder
    operations.change(folder, lambda t: open_round(t, "channel", ["north"], TIMEOUT_S))
    consortium.wait(1.0)
    consortium.exchange("north")
    with consortium.sites["north"].store.read() as connection:
        said = set(connection.execute(sa.select(site_store.events.c.what)).scalars())
    assert "round was over" in said
    assert "round answered" not in said


def test_nobody_is_asked_who_was_suspended(consortium: MemoryConsortium, engine: Engine) -> None:
    folder = consortium.coordinator_folder
    operations.set_site_state(folder, "west", "suspended")
    with pytest.raises(RefusedError, match="site 'west' is suspended; it cannot be asked"):
        run_round(consortium, engine)
    asked = operations.change(folder, lambda t: open_round(t, engine, None, TIMEOUT_S))
    closed = operations.change(folder, lambda t: close_round(t, asked.round_id, {}))
    assert [row["site"] for row in closed] == ["north", "south"]
