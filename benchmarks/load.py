"""A coordinator under 2,000 connected sites: memory of an idle one, and calls against a bare echo server.

The coordinator is the real program in a process of its own; sites have real certificates and a connection each, in two
processes of clients. The rival is a `grpc.aio` server that answers as many bytes over the same TLS to the same clients.
Coordinator and rival are called in turns, so that a busy machine slows both.
"""

import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil

# The tests' hospitals, which sign whatever they are told to.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from bench import Bar, run_benchmark
from load_clients import Call, Clients, Timing
from load_echo import Echo, path_of
from load_sites import enrolled, identity_of
from relay import _free_port

from server_fixtures import Consortium, Hospital, counts_of_site, gap_report, request_of
from synthedge_protocols.certificates import pem
from synthedge_protocols.statements import transfer_id
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server.authority import certify_server, load_tls_key

N_SITES: Final = 2_000
QUICK_SITES: Final = 200
N_CALLING: Final = 100
"""Sites that call in the measurements; all others only listen."""
N_DONORS: Final = 10
"""Sites that published and are asked for rows; away at first, since passing a request on is another call's work."""
MAX_SITE_KB: Final = 100.0
MIN_READS: Final = 0.5
MIN_WRITES: Final = 0.25
AT_ONCE: Final = 32
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 3
_SERVICE: Final = "/synthedge_protocols.v1.Coordinator/"
_SIZES_OF: Final = 20


class Scene:
    """A coordinator in its own process, the rival beside it, and all sites connected.

    Parameters
    ----------
    folder : Path
    consortium : Consortium
    hospitals : sequence of Hospital
        The first `N_DONORS` have published, the next `N_CALLING` call.
    """

    def __init__(self, folder: Path, consortium: Consortium, hospitals: Sequence[Hospital]) -> None:
        self.port = consortium.sites_port
        n_members = N_DONORS + N_CALLING
        self.donor_sites, self.callers = hospitals[:N_DONORS], hospitals[N_DONORS:n_members]
        self._log = (folder / "coordinator.log").open("wb")
        command = [sys.executable, "-c", "from synthedge_server.cli import main; main()", "serve"]
        self.process = psutil.Popen(
            [*command, f"--dir={consortium.folder.path}"], stdout=subprocess.PIPE, stderr=self._log
        )
        if not self.process.stdout.readline().startswith(b"ready"):
            raise RuntimeError((folder / "coordinator.log").read_text("utf-8"))
        self.echo_port = _free_port()
        self.echo = Echo(
            self.echo_port,
            consortium.ca_pem,
            pem(certify_server(consortium.folder)),
            load_tls_key(consortium.folder).pem(),
        )
        identities = [identity_of(hospital, consortium) for hospital in hospitals]
        self.donors = Clients(identities[:N_DONORS])
        self.calling = Clients(identities[N_DONORS:n_members])
        self.listening = Clients(identities[n_members:])
        self._n_listening = len(identities) - n_members

    def site_kb(self) -> float:
        """Connect every site that only listens; return what one costs the coordinator, in kB (PSS)."""
        # What the first connections load, and what the callers hold, is not the idle sites'.
        self.calling.follow(self.port)
        before = self._pss()
        n_open = self.listening.follow(self.port)
        if n_open != self._n_listening:
            raise RuntimeError(f"only {n_open} inboxes are open")
        return (self._pss() - before) / n_open / 1000

    def _pss(self) -> int:
        return int(self.process.memory_full_info().pss)

    def share(
        self, name: str, plan: Callable[[], list[Call]], rounds: int, bar: float | None
    ) -> list[Bar]:
        """Throughput of some calls as a share of the rival's: the median of rounds, in turns."""
        shares, rates, timings, cpu = [], [], [], []
        paths: dict[str, str] = {}
        for _ in range(rounds):
            calls = plan()
            paths = paths or self._paths(calls)
            mine, mine_cpu = self._run(self.port, calls, self.process)
            echoed = [Call(c.site, paths[c.path], c.request, c.is_stream) for c in calls]
            theirs, their_cpu = self._run(self.echo_port, echoed, psutil.Process(self.echo.pid))
            shares.append(theirs.seconds / mine.seconds)
            rates.append((len(calls) / mine.seconds, len(calls) / theirs.seconds))
            cpu.append((mine_cpu / len(calls), their_cpu / len(calls)))
            timings.append(mine)
        (ours, echo), (our_cpu, echo_cpu) = (
            [statistics.median(column) for column in zip(*pairs, strict=True)]
            for pairs in (rates, cpu)
        )
        p99_ms = 1000 * _quantile([s for t in timings for s in t.latencies], 0.99)
        return [
            Bar(
                f"{name}: share of a bare echo server's throughput",
                statistics.median(shares),
                at_least=bar,
            ),
            Bar(f"{name}: calls a second, {AT_ONCE} at once", ours),
            Bar(f"{name}: echo's calls a second", echo),
            Bar(f"{name}: p99 of a call in ms, {AT_ONCE} at once", p99_ms),
            Bar(f"{name}: coordinator's CPU over echo's", our_cpu / echo_cpu),
        ]

    def _run(self, port: int, calls: list[Call], server: psutil.Process) -> tuple[Timing, float]:
        before = server.cpu_times()
        self.calling.start(port, calls, AT_ONCE)
        timing: Timing = self.calling.result()
        after = server.cpu_times()
        if timing.refused:
            raise RuntimeError(f"calls were refused: {timing.refused}")
        return timing, after.user + after.system - before.user - before.system

    def _paths(self, calls: list[Call]) -> dict[str, str]:
        """Methods of the rival that answer as many bytes as the coordinator's methods do on average."""
        paths = {}
        for path, some in itertools.groupby(sorted(calls, key=lambda c: c.path), lambda c: c.path):
            sample = list(some)[:_SIZES_OF]
            timing, _ = self._run(self.port, sample, self.process)
            n_bytes = round(statistics.mean(timing.answer_bytes))
            paths[path] = path_of(n_bytes, is_stream=sample[0].is_stream)
        return paths

    def all_at_once(self, rate: float, seconds: float) -> list[Bar]:
        """p99 of a call while every site polls and some publish."""
        n = int(rate * seconds)
        reads, writes = (
            iter(_reads(self, n)),
            iter([*_reports(self, n // 100), *_writes(self, n // 10)]),
        )
        calls = [next(writes if i % 10 == 9 else reads, None) for i in range(n)]
        self.calling.start(self.port, [c for c in calls if c is not None], AT_ONCE, rate)
        timing: Timing = self.calling.result()
        if timing.refused:
            raise RuntimeError(f"calls were refused: {timing.refused}")
        name = f"publishing and polling, {rate:g} calls a second"
        return [
            Bar(f"{name}: p50 in ms", 1000 * _quantile(timing.latencies, 0.5)),
            Bar(f"{name}: p99 in ms", 1000 * _quantile(timing.latencies, 0.99)),
        ]

    def close(self) -> None:
        """End every process."""
        for part in (self.donors, self.calling, self.listening, self.echo):
            part.close()
        self.process.kill()
        self.process.wait()
        self._log.close()


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _reads(scene: Scene, n: int) -> list[Call]:
    """What agents poll: the dictionary, an inbox that was read before, the releases of the site itself."""
    dictionary = wire.DictionaryRequest().SerializeToString()
    inbox = wire.InboxRequest(after=2**62).SerializeToString()
    releases = wire.ReleasesRequest().SerializeToString()
    kinds = [
        ("GetDictionary", dictionary, False),
        ("Inbox", inbox, True),
        ("GetReleases", releases, False),
    ]
    return [
        Call(i % N_CALLING, _SERVICE + name, request, is_stream)
        for i, (name, request, is_stream) in zip(range(n), itertools.cycle(kinds), strict=False)
    ]


def _writes(scene: Scene, n: int) -> list[Call]:
    """Signed requests of sites to donors, and then the endings of all of them."""
    requests, endings = [], []
    for i in range(n // 2):
        asking = scene.callers[i % N_CALLING]
        request = request_of(asking, scene.donor_sites[i % N_DONORS].name)
        identifier = transfer_id(request.SerializeToString(deterministic=True))
        ending = pb.Ending(transfer_id=identifier, state="CANCELLED", reason="measured")
        requests.append(_submission(i % N_CALLING, asking.sign_as_steward(request)))
        endings.append(_submission(i % N_CALLING, asking.sign_as_steward(ending)))
    return requests + endings


def _reports(scene: Scene, n: int) -> list[Call]:
    """New releases of gap reports."""
    calls = []
    for i in range(n):
        hospital = scene.callers[i % N_CALLING]
        signed = hospital.sign_as_steward(gap_report(*counts_of_site(i % N_CALLING)))
        calls.append(_submission(i % N_CALLING, signed))
    return calls


def _submission(site: int, signed: pb.SignedStatement) -> Call:
    return Call(site, _SERVICE + "Submit", signed.SerializeToString())


async def _prepared(folder: Path, n_sites: int) -> tuple[Consortium, list[Hospital]]:
    ports = [_free_port(), _free_port()]
    return await enrolled(
        folder / "coordinator",
        ports,
        n_sites=n_sites,
        n_members=N_DONORS + N_CALLING,
        n_reporting=N_DONORS,
    )


def measure(*, quick: bool) -> list[Bar]:
    """Measure; in under a minute if `quick`.

    Parameters
    ----------
    quick : bool
        Fewer sites, calls and rounds.
    """
    n_sites, rounds = (QUICK_SITES, QUICK_ROUNDS) if quick else (N_SITES, ROUNDS)
    n_reads, n_writes = (1_500, 600) if quick else (6_000, 2_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        consortium, hospitals = asyncio.run(_prepared(folder, n_sites))
        scene = Scene(folder, consortium, hospitals)
        try:
            bars = [
                Bar(
                    f"kB of the coordinator's memory an idle site, {n_sites} sites",
                    scene.site_kb(),
                    MAX_SITE_KB,
                ),
                *scene.share("reads", lambda: _reads(scene, n_reads), rounds, MIN_READS),
                *scene.share(
                    "durable writes", lambda: _writes(scene, n_writes), rounds, MIN_WRITES
                ),
            ]
            scene.donors.follow(scene.port)
            passed_on = "durable writes, each passed on to an open stream"
            return [
                *bars,
                *scene.share(passed_on, lambda: _writes(scene, n_writes), rounds, None),
                *scene.all_at_once(rate=n_sites * 0.15, seconds=5 if quick else 20),
            ]
        finally:
            scene.close()


if __name__ == "__main__":
    run_benchmark("load", measure)
