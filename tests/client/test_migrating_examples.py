import re
import shlex
import warnings
from pathlib import Path

import pytest

from synthedge_client.cli import app
from synthedge_client.console import run_app
from synthedge_core.rebalance import OverAugmentationWarning

_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"


def test_every_example_of_ours_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = _PAGE.read_text(encoding="utf-8")
    names: dict[str, object] = {}
    blocks = list(_BLOCK.finditer(page))
    assert len(blocks) > 12
    for block in blocks:
        kind, text = block.groups()
        line = page[: block.start()].count("\n") + 2
        if kind == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OverAugmentationWarning)
                # Blank lines in front: an error names the page's own line.
                exec(compile("\n" * (line - 1) + text, str(_PAGE), "exec"), names)  # noqa: S102
            continue
        for command in re.findall(r"^\$ synthedge (.+)$", text, re.MULTILINE):
            assert run_app(app, shlex.split(command), program="synthedge") == 0, command
    assert (tmp_path / "balanced.html").stat().st_size > 10_000
