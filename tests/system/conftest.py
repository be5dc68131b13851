"""One demonstration for all system tests: real processes, observed."""

import pytest

from system_consortium import Finished, run_demo


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The demonstration on the diabetes patients, run to its end; leave its folder as it is, or copy it."""
    return run_demo(tmp_path_factory.mktemp("demo") / "kept")
