"""Twenty rows from match to active: three sites' agents and a coordinator as real processes, standing policies at each.

The clock starts when the coordinator writes the match into the recipient's inbox and stops when the recipient has
recorded the received rows as active. In between lie a request, an approval, the sealed bytes, the key and a receipt:
four signed statements through five processes, every one on disk before the next.
"""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import sqlalchemy as sa
from bench import Bar, run_benchmark

# The tests' hospitals and their made-up patients.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from enrolled import coordinating, exchange, token_for, write_token
from server_fixtures import new_folder
from sites import make_site, patients, steward, with_hole
from synthedge_client import store
from synthedge_client.dictionaries import accept
from synthedge_client.enrolment import enrol_site
from synthedge_client.policies import add_policy
from synthedge_client.releases import publish
from synthedge_client.site import Site, open_site
from synthedge_deploy.consortium import free_port
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store as server_store
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.operations import reading

MAX_S = 1.0
NAMES = ("north", "south", "west")
PROGRAM = [sys.executable, "-c"]


async def _prepare(parent: Path) -> CoordinatorFolder:
    """Enrol three sites that compared keys; all but west have published, and all have policies."""
    folder = new_folder(parent / "coordinator", sites_port=free_port(), enrolment_port=free_port())
    tables = {
        "north": patients("n", with_hole(30), np.full((2, 4), 30)),
        "south": patients("s", np.full((2, 4), 30), np.full((2, 4), 30)),
        "west": patients("w", np.full((2, 4), 25), np.full((2, 4), 30)),
    }
    with ExitStack() as stack:
        async with coordinating(folder) as consortium:
            sites = []
            for name, rows in tables.items():
                site_folder = make_site(parent, name, rows)
                token = write_token(site_folder, token_for(consortium, name))
                await asyncio.to_thread(enrol_site, site_folder, token)
                sites.append(stack.enter_context(open_site(site_folder)))
                accept(sites[-1], steward())
                if name != "west":
                    publish(sites[-1], steward())
            await exchange(*sites)
            await exchange(*sites)
            for site in sites:
                for other in sites:
                    if other is not site:
                        site.verify_peer(other.settings.id, other.fingerprint)
        for site in sites:
            add_policy(site, steward(), _policy(site))
    return folder


def _policy(site: Site) -> pb.StandingPolicy:
    return pb.StandingPolicy(
        acts=["request", "accept"] if site.settings.id == "north" else ["approve"],
        peers=[name for name in NAMES if name != site.settings.id],
        purposes=["DUO:0000042"],
        features=[f.name for f in site.dictionary.features if f.is_shareable],
        rows=1000,
        period_days=30,
        valid_until_ms=store.now_ms() + 86_400_000,
    )


def _start(module: str, arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(
            [*PROGRAM, f"from {module} import main; main()", *arguments],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _wait_for(what: str, moment: object, timeout_s: float = 60.0) -> int:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = moment()  # type: ignore[operator]
        if found is not None:
            return int(found)
        time.sleep(0.02)
    raise RuntimeError(f"it took too long: {what}")


def _active_at(north: Site) -> int | None:
    with north.store.read() as connection:
        row = connection.execute(
            sa.select(store.events.c.at_ms).where(store.events.c.what == "transfer active")
        ).first()
    return None if row is None else int(row.at_ms)


def _matched_at(folder: CoordinatorFolder) -> int:
    table = server_store.inbox
    with reading(folder) as engine, engine.connect() as connection:
        return int(
            connection.execute(
                sa.select(sa.func.max(table.c.posted_at_ms)).where(
                    table.c.site == "north", table.c.kind == "proposals"
                )
            ).scalar_one()
        )


def _cpu_s(processes: list["subprocess.Popen[bytes]"]) -> float:
    times = [psutil.Process(process.pid).cpu_times() for process in processes]
    return float(sum(t.user + t.system for t in times))


def one_transfer() -> tuple[float, float, int]:
    """Measure one transfer in a consortium of its own; seconds, CPU seconds of all, and rows that arrived."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        parent = Path(name)
        folder = asyncio.run(_prepare(parent))
        processes = [
            _start(
                "synthedge_server.cli",
                ["serve", f"--dir={folder.path}"],
                log := parent / "coordinator.log",
            )
        ]
        _wait_for("the coordinator", lambda: 1 if b"ready" in log.read_bytes() else None)
        try:
            for site_name in NAMES:
                arguments = ["site", "run", f"--dir={parent / site_name}"]
                processes.append(
                    _start("synthedge_client.cli", arguments, parent / f"{site_name}.log")
                )
            north, west = (
                stack.enter_context(open_site(parent / name)) for name in ("north", "west")
            )
            time.sleep(5.0)  # every agent has connected
            before_s = _cpu_s(processes)
            publish(west, steward())
            active_at = _wait_for("an active transfer", lambda: _active_at(north))
            with north.store.read() as connection:
                n_rows = connection.execute(
                    sa.select(sa.func.count()).select_from(store.received)
                ).scalar_one()
            cpu_s = _cpu_s(processes) - before_s
            return (active_at - _matched_at(folder)) / 1000, cpu_s, n_rows
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def measure(*, quick: bool) -> list[Bar]:
    """Measure; in under a minute if `quick`."""
    measured = [one_transfer() for _ in range(1 if quick else 5)]
    seconds = [s for s, _, _ in measured]
    return [
        Bar("from match to active, s", statistics.median(seconds), MAX_S),
        Bar("CPU of all four processes meanwhile, s", statistics.median(s for _, s, _ in measured)),
        Bar("rows that arrived", float(min(n for _, _, n in measured))),
    ]


if __name__ == "__main__":
    run_benchmark("small transfer", measure)
