"""What the operator reads, and what never stands in it."""

import json
import logging

import pytest

from synthedge_server.log import LOGGER, JsonLines, log


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.handler.setFormatter(JsonLines())
    caplog.set_level(logging.INFO, LOGGER.name)
    return caplog


def test_a_line_is_one_json_object_whatever_a_peer_wrote(
    lines: pytest.LogCaptureFixture,
) -> None:
    log("refused", site="north", reason="%s {0}\nforged line")
    (line,) = lines.text.splitlines()
    assert json.loads(line)["reason"] == "%s {0}\nforged line"


def test_an_unexpected_error_shows_its_type_and_places_but_not_its_text(
    lines: pytest.LogCaptureFixture,
) -> None:
    try:
        raise KeyError("what a peer sent")
    except KeyError:
        log("failed", failed=True)
    line = json.loads(lines.text)
    assert line["error"] == "KeyError"
    assert "test_log.py" in line["at_lines"][0]
    assert "what a peer sent" not in lines.text
