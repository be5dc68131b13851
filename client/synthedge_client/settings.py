"""site.toml: how one hospital keeps its table, checked once and passed down whole."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthedge_core.errors import TableError
from synthedge_protocols.discovery import ENGINES

SITE_FILE = "site.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnSettings:
    """How the site keeps one feature of the dictionary.

    ``None`` means: as the dictionary has it (same name, unit and codes).
    """

    column: str | None = None
    unit: str | None = None
    levels: dict[str, str] | None = None
    missing: tuple[str, ...] = ()
    absent: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSettings:
    """How the site keeps the label; ``None`` means: as the dictionary has it."""

    column: str | None = None
    positive: tuple[str, ...] | None = None
    negative: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DisclosureSettings:
    """Where this site is stricter than the consortium; ``None`` means: not stricter."""

    mode: str | None = None
    epsilon: float | None = None
    epsilon_total: float | None = None
    min_count: int | None = None
    max_grids: int | None = None
    max_voxels: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscoverySettings:
    """Which rounds of discovery are answered with the published report; no engines: none."""

    engines: tuple[str, ...] = ENGINES
    # Whether a report goes out again although the data changed since.
    send_stale: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteSettings:
    """One site's folder and its site.toml.

    Patients' consents stand in one place: the column `consent` of the table, or, where that is empty,
    the file `consent_register`. `approvals` is how many stewards must sign before rows leave, 1 or 2.
    """

    folder: Path
    id: str
    data: Path
    patient_id: str
    consent: str
    consent_register: Path | None = None
    label: LabelSettings = field(default_factory=LabelSettings)
    columns: dict[str, ColumnSettings] = field(default_factory=dict)
    disclosure: DisclosureSettings = field(default_factory=DisclosureSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    approvals: int = 1
    # Features of every dictionary the site was told of: [columns] may describe them.
    known_features: frozenset[str] = frozenset()

    @property
    def database(self) -> Path:
        """The site's state."""
        return self.folder / "site.db"

    @property
    def keys(self) -> Path:
        """The folder of the site's keys."""
        return self.folder / "keys"


def load_settings(folder: Path) -> SiteSettings:
    """Read and check a site's site.toml.

    Raises
    ------
    TableError
        If there is none, it is no TOML, or a key is unknown, missing or of the wrong kind.
    """
    path = folder / SITE_FILE
    if not path.is_file():
        raise TableError(
            f"no {SITE_FILE} in {folder}; run 'synthedge site init' or name the site's folder with --dir"
        )
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not valid TOML ({error}); correct it") from None
    tables = {"site", "consent", "stewards", "label", "columns", "disclosure", "discovery"}
    _only(document, tables, str(path))
    site = _table(document, "site", path)
    _only(site, {"id", "data", "patient_id", "consent"}, f"[site] of {path}")
    for key in ("id", "data", "patient_id"):
        if not isinstance(site.get(key), str) or not site[key]:
            raise TableError(f"[site] of {path} has no text '{key}'; add it")
    consent, register = _consent(site, _table(document, "consent", path), path)
    columns = _table(document, "columns", path)
    return SiteSettings(
        folder=folder,
        id=site["id"],
        data=folder / site["data"],
        patient_id=site["patient_id"],
        consent=consent,
        consent_register=register,
        label=_label(_table(document, "label", path), path),
        columns={name: _column(name, table, path) for name, table in columns.items()},
        disclosure=_disclosure(_table(document, "disclosure", path), path),
        discovery=_discovery(_table(document, "discovery", path), path),
        approvals=_approvals(_table(document, "stewards", path), path),
    )


def _approvals(table: dict[str, Any], path: Path) -> int:
    where = f"[stewards] of {path}"
    _only(table, {"approvals"}, where)
    approvals = table.get("approvals", 1)
    if type(approvals) is not int or approvals not in (1, 2):
        raise TableError(
            f"approvals in {where} must be 1 or 2: how many stewards approve a transfer"
        )
    return approvals


def _consent(site: dict[str, Any], table: dict[str, Any], path: Path) -> tuple[str, Path | None]:
    """Where patients' consents stand: a column of the table or a register, exactly one of the two."""
    where = f"[consent] of {path}"
    _only(table, {"register"}, where)
    register = _text(table, "register", where)
    column = _text(site, "consent", f"[site] of {path}")
    if bool(column) == bool(register):
        found = "both" if column else "neither"
        raise TableError(
            f"{path} names {found} of a consent column ('consent' in [site]) and a register ('register' in "
            "[consent]); name one of them"
        )
    return column or "", path.parent / register if register else None


def _label(table: dict[str, Any], path: Path) -> LabelSettings:
    where = f"[label] of {path}"
    _only(table, {"column", "positive", "negative"}, where)
    positive, negative = _codes(table, "positive", where), _codes(table, "negative", where)
    if positive == ():
        raise TableError(f"positive in {where} lists no code; list one, or leave it out")
    both = sorted(set(positive or ()) & set(negative or ()))
    if both:
        raise TableError(f"code '{both[0]}' in {where} is listed as positive and as negative")
    return LabelSettings(column=_text(table, "column", where), positive=positive, negative=negative)


def _column(name: str, table: Any, path: Path) -> ColumnSettings:
    where = f"[columns.{name}] of {path}"
    if not isinstance(table, dict):
        raise TableError(f"{where} is no table; write [columns.{name}]")
    _only(table, {"column", "unit", "levels", "missing", "absent"}, where)
    levels = table.get("levels")
    if levels is not None and not (
        isinstance(levels, dict) and all(isinstance(v, str) for v in levels.values())
    ):
        raise TableError(
            f'levels in {where} must map own codes to the dictionary\'s, {{ "F" = "1" }}'
        )
    absent = table.get("absent", False)
    if not isinstance(absent, bool):
        raise TableError(f"absent in {where} must be true or false")
    return ColumnSettings(
        column=_text(table, "column", where),
        unit=_text(table, "unit", where),
        levels=levels,
        missing=_codes(table, "missing", where) or (),
        absent=absent,
    )


def _disclosure(table: dict[str, Any], path: Path) -> DisclosureSettings:
    where = f"[disclosure] of {path}"
    _only(
        table,
        {"mode", "epsilon", "epsilon_total", "min_count", "max_grids", "max_voxels"},
        where,
    )
    mode = _text(table, "mode", where)
    if mode not in (None, "dp", "threshold"):
        raise TableError(f"mode in {where} is '{mode}', expected 'dp' or 'threshold'")
    for key, kind, said in (
        ("epsilon", int | float, "a number"),
        ("epsilon_total", int | float, "a number"),
        ("min_count", int, "a whole number"),
        ("max_grids", int, "a whole number"),
        ("max_voxels", int, "a whole number"),
    ):
        value = table.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise TableError(f"{key} in {where} must be {said}")
    return DisclosureSettings(**table)


def _discovery(table: dict[str, Any], path: Path) -> DiscoverySettings:
    where = f"[discovery] of {path}"
    _only(table, {"engines", "send_stale"}, where)
    engines, send_stale = table.get("engines", list(ENGINES)), table.get("send_stale", True)
    if not isinstance(engines, list) or not set(map(str, engines)) <= set(ENGINES):
        raise TableError(
            f"engines in {where} must be a list of {' and '.join(ENGINES)}; [] answers no round"
        )
    if not isinstance(send_stale, bool):
        raise TableError(f"send_stale in {where} must be true or false")
    return DiscoverySettings(engines=tuple(engines), send_stale=send_stale)


def _table(document: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    table = document.get(key, {})
    if not isinstance(table, dict):
        raise TableError(f"{key} in {path} must be a table, [{key}]")
    return table


def _text(table: dict[str, Any], key: str, where: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise TableError(f"{key} in {where} must be text")
    return value


def _codes(table: dict[str, Any], key: str, where: str) -> tuple[str, ...] | None:
    value = table.get(key)
    if value is None:
        return None
    # A code such as 1.0 or true would be matched by nobody: the file's cells are read as text and numbers.
    if not isinstance(value, list) or not all(type(code) in (str, int) for code in value):
        raise TableError(f'{key} in {where} must be a list of codes, ["0", "?"]')
    return tuple(str(code) for code in value)


def _only(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise TableError(
            f"unknown key '{unknown[0]}' in {where}; known are {', '.join(sorted(known))}"
        )
