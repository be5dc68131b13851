"""`synthedge-coordinator simulate`: what a consortium of so many hospitals would find, move and cost.

Every hospital is generated, with a hole at some of them, and runs the product's own site: mapping, counting,
protection, signature. A Flower round carries the reports to the product's own intake; registry, profiles and
proposals follow as in a running coordinator. Then every hospital compares as its agent would, and donors choose,
protect and seal rows. What is left out: the network between, the statements of a transfer, and people.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from synthedge_client.discovery import answer_round
from synthedge_client.flower_app import make_client_app
from synthedge_client.hints import check_profile, check_proposals, profile_of_grid
from synthedge_core.errors import SynthEdgeError, UsageError
from synthedge_core.grids import count
from synthedge_core.holes import Hole, find_holes, rank_holes
from synthedge_core.public_dictionaries import public_dictionary
from synthedge_deploy.engines import ENGINES, PARTITION, Engine, require, run_round
from synthedge_deploy.generated import GeneratedHospital, Plan, hospitals
from synthedge_deploy.planning_figures import Figures
from synthedge_deploy.uci import DICTIONARY
from synthedge_deploy.virtual_coordinator import TIMEOUT_S, VirtualCoordinator
from synthedge_deploy.virtual_site import open_published
from synthedge_deploy.virtual_transfer import ask_and_give
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server.flower_round import ask_nodes

MAX_GRID_SITES: Final = 200
_LIMITS: Final = Limits()


def steps(n_sites: int) -> list[int]:
    """Numbers of sites to simulate on the way to one: 10, 100, ..., and itself."""
    return [n for n in (10, 100, 1000) if n < n_sites] + [n_sites]


def engine_for(asked: str | None, n_sites: int) -> Engine:
    """The engine that was asked for; without one the grid in this process, where it is enough.

    Raises
    ------
    UsageError
        If there is no such engine, it is asked for too much, or is not installed.
    """
    if asked is None:
        asked = "grid" if n_sites <= MAX_GRID_SITES else "ray"
    engine = next((known for known in ENGINES if known == asked), None)
    if engine is None:
        raise UsageError(f"there is no engine '{asked}'; take {' or '.join(ENGINES)}")
    if engine == "grid" and n_sites > MAX_GRID_SITES:
        raise UsageError(
            f"{n_sites} sites are too many for the grid in this process, which takes up to {MAX_GRID_SITES}; "
            "take '--engine ray'"
        )
    require(engine)
    return engine


def simulate(
    dictionary_text: str | None,
    sizes: list[int],
    *,
    engine: Engine,
    shift: float,
    patients: int,
    holes: float,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Simulate a consortium at several numbers of sites; parameters as `Plan`.

    Parameters
    ----------
    dictionary_text : str or None
        None takes the public heart dictionary.
    sizes : list of int
        Numbers of sites, one simulation each.
    engine : {"grid", "ray"}
    say : callable
        Told what goes on.

    Returns
    -------
    list of dict
        `Figures.as_dict` of each.

    Raises
    ------
    UsageError
        If a number is out of range, or the engine is not installed.
    DictionaryError
        If the dictionary is not valid.
    """
    plans = [
        Plan(
            dictionary_text=dictionary_text or public_dictionary(DICTIONARY),
            n_sites=n_sites,
            shift=shift,
            patients=patients,
            holes=holes,
            seed=seed,
        )
        for n_sites in sizes
    ]
    found = []
    for plan in plans:
        say(f"{plan.n_sites} sites on {engine}")
        found.append(run(plan, engine).as_dict())
    return found


def run(plan: Plan, engine: Engine) -> Figures:
    """Simulate one consortium.

    Raises
    ------
    SynthEdgeError
        If a site could not report; see `simulate` for the rest.
    """
    figures = Figures(sites=plan.n_sites)
    with TemporaryDirectory(prefix="synthedge-simulated-") as scratch:
        with VirtualCoordinator(Path(scratch) / "coordinator", plan) as coordinator:
            asked = coordinator.open_round()
            with figures.timed("round"):
                answers = collect(plan, engine, asked, figures, scratch)
            with figures.timed("intake"):
                for data in answers:
                    coordinator.take(data)
                figures.reports = len(answers)
            with figures.timed("telling"):
                coordinator.tell()
            told = coordinator.told(figures)
        figures.cpu_ms["report"] = _report_ms(plan, asked, scratch)
        made = {one.site: one for one in hospitals(plan)}
        with figures.timed("comparing"):
            ranked = {
                site: _compare(plan, made[site], profile, proposals, figures)
                for site, (profile, proposals) in told.items()
            }
        with figures.timed("transfers"):
            for site, holes in ranked.items():
                ask_and_give(plan, made, site, holes, told[site][1], figures)
    return figures


def collect(
    plan: Plan, engine: Engine, asked: wire.DiscoveryRound, figures: Figures, scratch: str
) -> list[bytes]:
    """Run one round over all virtual sites, which work in the folder `scratch`; the answers as they came.

    Raises
    ------
    SynthEdgeError
        If a site did not answer.
    """
    answers: list[bytes] = []
    unreached: dict[str, Any] = {}

    def serve(grid: Any, nodes: Any) -> None:
        named = {f"node {node}": node for node in nodes}
        take = lambda _, data: answers.append(data)  # noqa: E731
        unreached.update(ask_nodes(grid, asked, named, take, TIMEOUT_S))

    app = make_client_app(
        lambda context: open_published(plan, int(context.node_config[PARTITION]), scratch)
    )
    traffic = run_round(engine, app, plan.n_sites, serve)
    if unreached or len(answers) != plan.n_sites:
        why = next(iter(unreached.values()), ("", "no reply"))[1]
        raise SynthEdgeError(
            f"{plan.n_sites - len(answers)} of {plan.n_sites} virtual sites did not answer: {why}"
        )
    figures.wire_bytes["rounds"] = traffic.asked_bytes
    figures.wire_bytes["reports"] = traffic.answered_bytes
    return answers


def _report_ms(plan: Plan, asked: wire.DiscoveryRound, scratch: str) -> float:
    """Processor time of one site's report, milliseconds: the mean of the first few sites, the libraries loaded.

    The shortest of three passes: even processor time tells of what else the machine does.
    """
    n = min(5, plan.n_sites)
    passes = []
    for _ in range(3):
        started = time.process_time()
        for i in range(n):
            with open_published(plan, i, scratch) as site:
                answer_round(site, asked, "flower")
        passes.append((time.process_time() - started) * 1000 / n)
    return min(passes)


def _compare(
    plan: Plan,
    made: GeneratedHospital,
    profile: wire.HoleProfile,
    proposals: wire.Proposals,
    figures: Figures,
) -> list[tuple[str, Hole]]:
    """Find a site's holes in what it was told, as its agent and `gaps list` do; count what was found."""
    check_profile(profile, plan.dictionary)
    check_proposals(proposals, plan.dictionary, made.site, _LIMITS)
    holes = {}
    for told in profile.grids:
        own = count(plan.grids[told.grid], made.samples.values, made.samples.positive)
        holes[told.grid] = find_holes(profile_of_grid(told), own.positives, own.negatives)
    ranked = rank_holes(holes)
    confirmed = [(grid, hole.voxel) for grid, hole in ranked if hole.status == "confirmed"]
    figures.holes_confirmed += len(confirmed)
    if made.hole is not None:
        right = [place for place in confirmed if made.hole.is_at(*place)]
        figures.holes_made += 1
        figures.confirmed_right += len(right)
        figures.made_confirmed += bool(right)
        figures.made_first += bool(ranked) and made.hole.is_at(ranked[0][0], ranked[0][1].voxel)
    return ranked
