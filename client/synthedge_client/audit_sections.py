"""The audit report laid out once: what the terminal, the CSV file and the HTML page show is this, nothing else."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthedge_client.audit import AuditReport
from synthedge_client.console import printable

if TYPE_CHECKING:
    from rich.console import Console

_TRANSFER = (
    ("transfer_id", "transfer"),
    ("donor", "donor"),
    ("recipient", "recipient"),
    ("region", "region"),
    ("rows", "rows"),
    ("features", "features"),
    ("purpose", "purpose"),
    ("state", "state"),
    ("requested_at", "requested"),
    ("changed_at", "since"),
    ("retention_days", "retention, days"),
    ("decided_by", "decided by"),
    ("reason", "reason, or gate"),
    ("ciphertext_digest", "sealed bytes, SHA-256"),
)


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the report.

    Attributes
    ----------
    key, title : str
        For programs, and for people.
    columns : tuple of (str, str)
        Key and heading of each column.
    rows : list of tuple of str
        Cells as text, one for every column.
    empty : str
        What stands in place of no rows.
    """

    key: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: list[tuple[str, ...]]
    empty: str


def facts(report: AuditReport) -> list[tuple[str, str]]:
    """What is said once: name and text, for the head of the report."""
    period = f"{report.since or 'the beginning'} to {report.until or report.written_at}"
    return [
        ("site", report.site),
        ("consortium", report.consortium),
        ("period", period),
        ("written", report.written_at),
        ("key fingerprint", report.fingerprint),
        ("certificate until", report.certificate_expires),
        ("dictionary", f"{report.dictionary}, {report.dictionary_digest}"),
        ("frame", report.frame),
        ("outcome", report.outcome),
        ("software", report.software),
        ("audit log", f"{report.log_entries} entries, root {report.log_root}"),
        ("verify a copy", report.verify_command),
    ]


def sections(report: AuditReport) -> list[Section]:
    """Every table of the report, overdue matters first."""
    return [
        _section(
            "alarms",
            "Against the coordinator's audit log",
            (("what", "what was found"),),
            [{"what": what} for what in report.alarms],
            "nothing: every head it signed extends the one before, and other sites saw the same",
        ),
        _section(
            "withdrawals",
            "Withdrawals and purge receipts",
            (
                ("state", "state"),
                ("role", "this site is"),
                ("peer", "with"),
                ("transfer_id", "transfer"),
                ("since", "since"),
                ("settled", "settled"),
                ("rows", "rows"),
                ("files", "files named"),
                ("problem", "problem"),
                ("notice_id", "notice"),
            ),
            report.withdrawals,
            "none",
        ),
        _section(
            "gaps",
            "Gaps found",
            (
                ("region", "region"),
                ("kind", "lacks"),
                ("status", "severity"),
                ("expected", "expected"),
                ("observed", "here"),
                ("z", "z"),
                ("proposed", "donors proposed"),
                ("grid", "grid"),
            ),
            report.gaps,
            report.gaps_problem or "none: no voxel falls short of what the other sites let expect",
        ),
        _section(
            "published",
            "Published to the coordinator",
            (
                ("at", "when"),
                ("disclosure", "protection"),
                ("epsilon", "epsilon"),
                ("min_count", "k"),
                ("grids", "grids"),
                ("voxels", "voxels"),
                ("suppressed", "suppressed"),
                ("why", "because"),
                ("bytes", "bytes"),
                ("statement_digest", "SHA-256"),
            ),
            report.published,
            "nothing",
        ),
        _section("sent", "Sent: accounting of disclosures", _TRANSFER, report.sent, "nothing"),
        _section("received", "Received", _TRANSFER, report.received, "nothing"),
        _section("open", "Open, or ended without rows", _TRANSFER, report.open, "none"),
        _section(
            "decisions",
            "Decisions",
            (
                ("at", "when"),
                ("transfer_id", "transfer"),
                ("what", "what"),
                ("who", "by"),
                ("reason", "reason"),
            ),
            report.decisions,
            "none",
        ),
        _section(
            "exports",
            "Files written with received rows",
            (
                ("written_at", "when"),
                ("kind", "by"),
                ("file", "file"),
                ("state", "is"),
                ("holds", "should not hold"),
                ("sha256", "SHA-256"),
            ),
            report.exports,
            "none",
        ),
        _section(
            "peers",
            "Other sites",
            (
                ("site", "site"),
                ("compared", "key compared"),
                ("standing", "standing"),
                ("log_compared", "log compared"),
                ("fingerprint", "fingerprint"),
                ("problem", "problem"),
            ),
            report.peers,
            "none known",
        ),
        _section(
            "refused_messages",
            "Refused, or stuck",
            (("at", "when"), ("what", "what"), ("kind", "kind"), ("reason", "reason")),
            report.refused_messages,
            "none",
        ),
    ]


def render(report: AuditReport, console: "Console") -> None:
    """Print the report for people: a table where it fits 80 columns, else one record after the other."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(f"Audit report of site {report.site}", style="bold"))
    for name, text in facts(report)[1:]:
        console.print(Text(f"{name:<18}{text}"), soft_wrap=True)
    for section in sections(report):
        console.print()
        console.print(Text(section.title, style="bold"))
        if not section.rows:
            console.print(Text(f"  {section.empty}"), soft_wrap=True)
            continue
        widths = [max(map(len, column)) for column in zip(*section.rows, strict=True)]
        headings = [heading for _, heading in section.columns]
        if sum(max(w, len(h)) + 1 for w, h in zip(widths, headings, strict=True)) <= 80:
            table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
            for heading in headings:
                table.add_column(heading)
            for row in section.rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            console.print(table)
            continue
        for row in section.rows:
            console.print(Text(printable(f"- {headings[0]}: {row[0]}")), soft_wrap=True)
            for heading, cell in zip(headings[1:], row[1:], strict=True):
                if cell:
                    console.print(Text(printable(f"    {heading}: {cell}")), soft_wrap=True)


def to_csv(report: AuditReport) -> str:
    """The report as one CSV table: section, number of the row in it, column, text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("section", "row", "column", "text"))
    writer.writerows(("facts", 1, name, _harmless(text)) for name, text in facts(report))
    for section in sections(report):
        for number, row in enumerate(section.rows, start=1):
            for (_, heading), cell in zip(section.columns, row, strict=True):
                writer.writerow((section.key, number, heading, _harmless(cell)))
    return buffer.getvalue()


def _harmless(text: str) -> str:
    # A spreadsheet runs what begins like a formula, and a peer's reason is text of somebody else's.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _section(
    key: str,
    title: str,
    columns: tuple[tuple[str, str], ...],
    rows: Sequence[dict[str, Any]],
    empty: str,
) -> Section:
    cells = [tuple(_text(row[name]) for name, _ in columns) for row in rows]
    return Section(key, title, columns, cells, empty)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
