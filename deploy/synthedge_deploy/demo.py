"""`synthedge demo`: the whole mission on one machine, told as it happens.

Every step is a command that a person at a hospital or at the coordinator types; each is shown before it runs. The
consortium's processes know nothing of the carve; only the evaluation at the end does.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthedge_core.errors import UsageError
from synthedge_deploy.cohorts import PATIENTS_FILE, Cohort, Hospital, write_site_files
from synthedge_deploy.consortium import CommandRefusedError, Consortium, free_port, interruptible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from synthedge_client.site import Site

STEWARD = "steward"
PASSPHRASE = "only for this demonstration"  # noqa: S105 - the demonstration types it in public
PURPOSE = "DUO:0000007"  # disease-specific research
SEED = 0


@dataclass
class Story:
    """What the demonstration shows and remembers."""

    console: "Console"
    seconds: dict[str, float] = field(default_factory=dict)

    def print(self, text: str) -> None:
        """Show one line as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def chapter(self, title: str) -> "Iterator[None]":
        """Show a heading, and remember how long its steps took."""
        self.print(f"\n== {title}")
        start = time.monotonic()
        yield
        self.seconds[title] = round(time.monotonic() - start, 2)


def run(*, keep: Path | None, data: Path | None, seeds: int, as_json: bool) -> None:
    """Run the demonstration.

    Parameters
    ----------
    keep : Path or None
        Leave everything in this folder, which must be new or empty; without it nothing is left.
    data : Path or None
        A folder with the four UCI heart files, instead of scikit-learn's diabetes patients.
    seeds : int
        Also measure over this many splits, without processes, and show mean and spread.
    as_json : bool
        Print the summary as one JSON object on stdout; the story goes to stderr either way.

    Raises
    ------
    UsageError
        If the folder is not empty.
    ProcessError
        If a process or a command of the consortium fails.
    """
    from rich.console import Console

    from synthedge_client.console import emit, note
    from synthedge_deploy.summary import show_summary

    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise UsageError(f"{keep} is not empty; name a new folder with --keep")
    story = Story(Console(stderr=True))
    start = time.monotonic()
    folder_of = nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory(prefix="synthedge-")
    with interruptible(), folder_of as folder:
        summary = _tell(Path(folder), data, seeds, story)
        summary["seconds"] = round(time.monotonic() - start, 1)
        summary["stages"] = story.seconds
        (Path(folder) / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    emit(summary, as_json=as_json, render=lambda console: show_summary(summary, console))
    if keep:
        note(
            f"Everything is in {keep}; a site's audit report: "
            f"synthedge site audit report --dir {keep / summary['carved']['site']}"
        )


def make_cohort(data: Path | None, seed: int) -> Cohort:
    """The four hospitals: scikit-learn's diabetes patients, or the UCI heart files of a folder."""
    if data is None:
        from synthedge_deploy.diabetes import diabetes_cohort

        return diabetes_cohort(seed)
    from synthedge_deploy.uci import uci_cohort

    return uci_cohort(data, seed)


def _tell(folder: Path, data: Path | None, seeds: int, story: Story) -> dict[str, Any]:
    from synthedge_deploy.summary import measure, search_coordinator

    with story.chapter("Four hospitals"):
        cohort = make_cohort(data, SEED)
        story.print(cohort.source)
        story.print(
            f"Carved on purpose: {len(cohort.carved)} training positives with {cohort.subgroup.description} were "
            f"taken out of '{cohort.carved_site}'; nobody in the consortium is told."
        )
    story.print(f"\nAll commands are typed in {folder}.")
    with Consortium(folder, lambda line: story.print(f"$ {line}")) as consortium:
        people = _People(consortium, cohort, story)
        people.set_up()
        people.enrol()
        people.compare_fingerprints()
        people.analyze()
        people.publish()
        people.transfer()
        people.fill()
        people.audit()
        matches = consortium.command(
            "synthedge-coordinator", "matches", "--dir", str(people.coordinator)
        )
        transfers = people.transfers()
        memory = consortium.peak_memory_mb()
    with story.chapter("What the coordinator held"):
        leaks = search_coordinator(folder, cohort, transfers)
        story.print(
            f"{leaks['patterns']} traces of the donors' patients were searched for in the coordinator's "
            f"{leaks['files']} files: {leaks['coordinator']} found "
            f"(the same search finds {leaks['donors']} at the donors)."
        )
    with story.chapter("Measured on patients held out"):
        measured = measure(folder, cohort, SEED)
        repeated = _repeat(data, seeds, story) if seeds > 1 else None
    return {
        "sites": [hospital.site for hospital in cohort.hospitals],
        "source": cohort.source,
        "carved": {
            "site": cohort.carved_site,
            "subgroup": cohort.subgroup.description,
            "rows": len(cohort.carved),
        },
        "gaps": people.gaps,
        "gaps_published": people.n_published,
        "matches": len(matches),
        "transfers": transfers,
        "heldout": measured["heldout"],
        "comparison": measured["comparison"],
        "repeated": repeated,
        "coordinator_patient_values": leaks["coordinator"],
        "leak_search": leaks,
        "peak_memory_mb": memory,
    }


def _repeat(data: Path | None, seeds: int, story: Story) -> dict[str, Any]:
    from synthedge_deploy.summary import repeat

    story.print(f"The same over {seeds} splits, in one process each (no network):")
    return repeat(lambda seed: make_cohort(data, seed), range(seeds))


class _People:
    """The data managers and stewards of the hospitals and the operator, typing commands."""

    def __init__(self, consortium: Consortium, cohort: Cohort, story: Story) -> None:
        self.consortium = consortium
        self.cohort = cohort
        self.story = story
        self.folder = consortium.folder
        self.coordinator = self.folder / "coordinator"
        self.fingerprints: dict[str, str] = {}
        self.gaps: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.n_published = 0

    def _site(self, hospital: Hospital) -> Path:
        return self.folder / hospital.site

    def _everywhere(self, task: Callable[[Hospital], Any]) -> list[Any]:
        """Do something at all hospitals at once, as they would."""
        with ThreadPoolExecutor(max_workers=len(self.cohort.hospitals)) as pool:
            return list(pool.map(task, self.cohort.hospitals))

    def _at(self, site: str, *command: str) -> Any:
        return self.consortium.command(
            "synthedge", "site", *command, "--dir", str(self.folder / site)
        )

    def _sign(self) -> tuple[str, ...]:
        return ("--steward", STEWARD, "--passphrase-file", str(self.folder / "passphrase"))

    def set_up(self) -> None:
        """Make the coordinator's and the sites' folders and keys, and start the coordinator."""
        with self.story.chapter(
            "Each hospital makes its site; the operator starts the coordinator"
        ):
            dictionary = self.folder / "consortium.toml"
            dictionary.write_text(self.cohort.dictionary_text, encoding="utf-8")
            passphrase = self.folder / "passphrase"
            passphrase.write_text(PASSPHRASE)
            passphrase.chmod(0o600)
            self.consortium.command(
                "synthedge-coordinator", "init", str(self.coordinator),
                "--name", self.cohort.dictionary.name,
                "--dictionary", str(dictionary),
                "--listen", f"127.0.0.1:{free_port()}",
                "--enrolment-listen", f"127.0.0.1:{free_port()}",
            )  # fmt: skip
            self.consortium.start(
                "coordinator", "synthedge-coordinator", "serve", "--dir", str(self.coordinator)
            )
            self._everywhere(self._make_site)
            log = self.consortium.log("coordinator")
            self.consortium.wait_for("the coordinator", lambda: "ready" in log.read_text())

    def _make_site(self, hospital: Hospital) -> None:
        import tomli_w

        folder = self._site(hospital)
        mapping = write_site_files(hospital, folder)
        made = self.consortium.command(
            "synthedge", "site", "init", str(folder),
            "--id", hospital.site,
            "--data", str(folder / PATIENTS_FILE),
            "--patient-id", hospital.patient_id,
            "--consent", hospital.consent,
        )  # fmt: skip
        self.fingerprints[hospital.site] = made["fingerprint"]
        # What the data manager writes by hand: own columns, units and codes.
        with (folder / "site.toml").open("a", encoding="utf-8") as file:
            file.write("\n" + tomli_w.dumps(mapping))
        self._at(
            hospital.site, "steward", "add", STEWARD,
            "--passphrase-file", str(self.folder / "passphrase"),
        )  # fmt: skip

    def enrol(self) -> None:
        """Invite every site and let it enrol; then start its agent."""
        with self.story.chapter("The operator invites the sites; each enrols and starts its agent"):
            self._everywhere(self._enrol)
            for hospital in self.cohort.hospitals:
                self.consortium.start(
                    hospital.site, "synthedge", "site", "run", "--dir", str(self._site(hospital))
                )

    def _enrol(self, hospital: Hospital) -> None:
        token = self.consortium.command(
            "synthedge-coordinator", "invite", hospital.site, "--dir", str(self.coordinator)
        )["token"]
        token_file = self._site(hospital) / "token"
        token_file.write_text(token)
        token_file.chmod(0o600)
        self._at(hospital.site, "enrol", "--token-file", str(token_file))
        self._at(hospital.site, "dictionary", "accept", *self._sign())

    def compare_fingerprints(self) -> None:
        """Let every site verify every other's key: `init` showed each its own, and they telephone."""
        with self.story.chapter("The sites compare each other's key fingerprints"):
            names = [hospital.site for hospital in self.cohort.hospitals]
            self._wait_at_all("peers", lambda site: len(site.list_peers()) == len(names) - 1)

            def verify(hospital: Hospital) -> None:
                for name in names:
                    if name != hospital.site:
                        self._at(hospital.site, "peers", "verify", name, self.fingerprints[name])

            self._everywhere(verify)
            self._everywhere(lambda h: self._at(h.site, "doctor"))

    def analyze(self) -> None:
        """Look at each table alone: what a hospital sees before any consortium."""
        with self.story.chapter("Each hospital looks at its own table"):

            def analyze(hospital: Hospital) -> Any:
                label = hospital.label.get("column", self.cohort.dictionary.target.column)
                command = ["analyze", str(self._site(hospital) / PATIENTS_FILE), "--target", label]
                command += ["--ignore", hospital.consent]
                if "positive" in hospital.label:
                    command += ["--positive", hospital.label["positive"][0]]
                return self.consortium.command("synthedge", *command)

            for hospital, result in zip(
                self.cohort.hospitals, self._everywhere(analyze), strict=True
            ):
                self.story.print(
                    f"  {hospital.site}: {len(hospital.table)} patients, "
                    f"severity {result['severity']} on its own"
                )

    def publish(self) -> None:
        """Publish gap reports; the coordinator answers with profile and proposals."""
        with self.story.chapter("They publish gap reports; the coordinator matches"):
            results = self._everywhere(lambda h: self._at(h.site, "gaps", "publish", *self._sign()))
            self.n_published = sum(result["voxels"] for result in results)
            self._wait_at_all("profile and proposals of all four reports", _has_all_reports)
            gaps = self._everywhere(lambda h: self._at(h.site, "gaps", "list"))
            for hospital, found in zip(self.cohort.hospitals, gaps, strict=True):
                for gap in found:
                    self.gaps.append({"site": hospital.site, **gap})
                    self.story.print(
                        f"  {hospital.site}: {gap['label']}: {gap['status']}, z {gap['z']:.1f}, "
                        f"expected {gap['expected']:.0f} "
                        f"{'patients' if gap['kind'] == 'population' else 'positives'}, "
                        f"has {gap['observed']}"
                    )

    def transfer(self) -> None:
        """Let every site with an evident gap ask for rows."""
        with self.story.chapter("Stewards ask, prepare and approve; sealed rows travel"):
            gaps = self._gaps_to_ask_for()
            with ThreadPoolExecutor(max_workers=max(1, len(gaps))) as pool:
                list(pool.map(self._ask, gaps))

    def _gaps_to_ask_for(self) -> list[dict[str, Any]]:
        """The first gap of each site that 'gaps list' says to ask for; if there is none, the strongest suspicion."""
        chosen = []
        usable = [gap for gap in self.gaps if gap["proposals"] and gap["kind"] == "positives"]
        for hospital in self.cohort.hospitals:
            evident = [gap for gap in usable if gap["site"] == hospital.site and gap["rows"]]
            chosen += evident[:1]
            if not evident:
                self.story.print(
                    f"  {hospital.site}: no gap is evident; its steward asks for nothing."
                )
        if not chosen:
            chosen = sorted(usable, key=lambda gap: -float(gap["z"]))[:1]
            self.story.print("  The steward of the strongest suspicion decides to ask after all.")
        return chosen

    def _ask(self, gap: dict[str, Any]) -> None:
        wanted = gap["rows"] or self.cohort.dictionary.policy.rows_per_transfer
        for _ in gap["proposals"]:
            if wanted <= 0:
                return
            wanted -= self._one_transfer(gap, wanted)

    def _one_transfer(self, gap: dict[str, Any], wanted: int) -> int:
        recipient = gap["site"]
        try:
            asked = self._at(
                recipient, "requests", "new", gap["id"],
                "--rows", str(wanted), "--purpose", PURPOSE, "--accept-if-gate-passes",
                *self._sign(),
            )  # fmt: skip
        except CommandRefusedError as refused:
            self.story.print(f"  {refused}")
            return wanted
        donor, short = asked["donor"], asked["transfer_id"][:12]
        self.story.print(f"  why {donor}: {asked['reason']}")
        self._wait_state(donor, short, {"REQUESTED"})
        try:
            prepared = self._at(donor, "requests", "prepare", short)
        except CommandRefusedError:
            self._at(
                donor, "requests", "decline", short, "--reason", "not available", *self._sign()
            )
            self._wait_state(recipient, short, {"DECLINED"})
            return 0
        self._at(donor, "requests", "approve", short, *self._sign())
        state = self._wait_state(recipient, short, {"ACTIVE", "REFUSED"})
        n_rows = len(prepared["rows"])
        self.story.print(f"  {donor} sent {n_rows} rows, {recipient}'s gate: {state}")
        self._wait_state(donor, short, {state})
        return n_rows if state == "ACTIVE" else 0

    def fill(self) -> None:
        """Let every site write its filled table."""
        with self.story.chapter("Each site fills"):

            def fill(hospital: Hospital) -> dict[str, Any]:
                output = self._site(hospital) / "filled.csv"
                result: dict[str, Any] = self._at(hospital.site, "fill", "--output", str(output))
                return result

            for hospital, result in zip(self.cohort.hospitals, self._everywhere(fill), strict=True):
                self.story.print(
                    f"  {hospital.site}: {result['observed']} own, {result['received']} received, "
                    f"{result['synthetic']} synthetic rows"
                )

    def audit(self) -> None:
        """Show every site's audit report."""
        from synthedge_client.audit import AuditReport
        from synthedge_client.audit_sections import render

        with self.story.chapter("Each site's audit report"):
            self.reports = self._everywhere(lambda h: self._at(h.site, "audit", "report"))
            for report in self.reports:
                self.story.print("")
                render(AuditReport(**report), self.story.console)

    def transfers(self) -> list[dict[str, Any]]:
        """All transfers, as their recipients' audit reports have them."""
        return [
            {key: row[key] for key in ("donor", "recipient", "region", "state", "transfer_id")}
            | {"rows": row["rows"] if row["state"] == "ACTIVE" else 0}
            for report in self.reports
            for row in (*report["received"], *report["open"])
            if row["recipient"] == report["site"]
        ]

    # Waiting looks into the sites' own databases: a person would look at 'synthedge site status' again.

    def _wait_at_all(self, what: str, reached: "Callable[[Site], bool]") -> None:
        from synthedge_client.site import open_site

        for hospital in self.cohort.hospitals:
            with open_site(self._site(hospital)) as site:
                self.consortium.wait_for(f"{what} at '{hospital.site}'", lambda: reached(site))

    def _wait_state(self, name: str, short: str, states: Sequence[str] | set[str]) -> str:
        from synthedge_client.site import open_site
        from synthedge_client.transfers import list_transfers

        with open_site(self.folder / name) as site:

            def state() -> str | None:
                with site.store.read() as connection:
                    found = [t for t in list_transfers(connection) if t.id.hex().startswith(short)]
                return found[0].state.value if found else None

            self.consortium.wait_for(
                f"transfer {short} at '{name}' to become {' or '.join(sorted(states))}",
                lambda: state() in states,
            )
            return state() or ""


def _has_all_reports(site: "Site") -> bool:
    """Whether the profile of every other site's report is here."""
    import sqlalchemy as sa

    from synthedge_client import store
    from synthedge_protocols.v1 import coordinator_pb2 as wire

    with site.store.read() as connection:
        blob = connection.execute(
            sa.select(store.hints.c.message).where(store.hints.c.kind == "profile")
        ).scalar_one_or_none()
        proposals = connection.execute(
            sa.select(sa.func.count())
            .select_from(store.hints)
            .where(store.hints.c.kind == "proposals")
        ).scalar_one()
        n_peers = connection.execute(
            sa.select(sa.func.count()).select_from(store.peers)
        ).scalar_one()
    if blob is None or not proposals:
        return False
    # A site may lack the features of some grid, hardly those of all.
    return max(grid.n_sites for grid in wire.HoleProfile.FromString(blob).grids) == n_peers
