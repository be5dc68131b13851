"""What one more site costs the coordinator and a round, from ten sites to a thousand.

The consortia of `synthedge-coordinator simulate`: generated hospitals, each a whole site of the product; Flower's own
engine carries the round (Ray; the grid in this process if quick), the product's intake, registry and matching take it
from there. Beside every round Flower carries an empty one, over as many nodes on the same engine: what is left is ours.
Processor time, because a shared machine's wall time tells of its neighbours.
"""

import time
from typing import Any

from bench import Bar, run_benchmark

from synthedge_core.public_dictionaries import public_dictionary
from synthedge_deploy.engines import Engine, run_round
from synthedge_deploy.generated import Plan
from synthedge_deploy.planning import run
from synthedge_deploy.planning_figures import Figures
from synthedge_deploy.uci import DICTIONARY

# From a hundred sites to a thousand; quick: from 20 to 60.
GROWTH = 1.5
COORDINATOR = ("intake", "telling")
SITE = ("report", "comparing", "transfers")


def empty_round(engine: Engine, n_nodes: int) -> float:
    """Wall time of a round in which every node answers at once with nothing, seconds."""
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.query()
    def nothing(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    def serve(grid: Any, nodes: Any) -> None:
        asked = [Message(RecordDict(), node, "query", ttl=3600.0) for node in nodes]
        waiting = set(grid.push_messages(asked))
        while waiting:
            waiting -= {m.metadata.reply_to_message_id for m in grid.pull_messages(waiting)}
            time.sleep(0.25)  # as the product's round

    started = time.perf_counter()
    run_round(engine, app, n_nodes, serve)
    return time.perf_counter() - started


def coordinator_ms(figures: Figures) -> float:
    """Processor time of the coordinator, milliseconds a site."""
    return sum(figures.cpu_ms[stage] for stage in COORDINATOR)


def total_ms(figures: Figures) -> float:
    """Processor time of coordinator and site together, milliseconds a site; without what carries the round."""
    return coordinator_ms(figures) + sum(figures.cpu_ms[stage] for stage in SITE)


def measure(*, quick: bool) -> list[Bar]:
    """Measure three sizes."""
    engine: Engine = "grid" if quick else "ray"
    bars, found = [], {}
    for n_sites in (10, 20, 60) if quick else (10, 100, 1000):
        plan = Plan(dictionary_text=public_dictionary(DICTIONARY), n_sites=n_sites)
        found[n_sites] = figures = run(plan, engine)
        empty_s = empty_round(engine, n_sites)
        at = f"{n_sites} sites"
        for stage in (*COORDINATOR, *SITE):
            bars.append(Bar(f"{at}: {stage}, CPU ms a site", figures.cpu_ms[stage]))
        bars.append(Bar(f"{at}: round on {engine}, s", figures.wall_s["round"]))
        bars.append(Bar(f"{at}: Flower's empty round on {engine}, s", empty_s))
        ours_ms = (figures.wall_s["round"] - empty_s) * 1000 / n_sites
        bars.append(Bar(f"{at}: round beyond the empty one, ms a site", ours_ms))
        for kind, n_bytes in figures.wire_bytes.items():
            bars.append(Bar(f"{at}: {kind}, bytes a site", n_bytes / n_sites))
    _, fewer, more = found
    for name, cost in (("coordinator", coordinator_ms), ("coordinator and site", total_ms)):
        growth = cost(found[more]) / cost(found[fewer])
        what = f"CPU a site of {name}, {more} over {fewer} sites"
        bars.append(Bar(what, growth, at_most=GROWTH))
    return bars


if __name__ == "__main__":
    run_benchmark("scale", measure)
