import pytest

from postgres_server import postgres
from server_fixtures import coordinator

__all__ = ["coordinator", "postgres"]

# Modules whose tests run on both kinds of database; the second time in the slow suite.
ON_BOTH = ("test_transfers", "test_gap_reports", "test_enrolment", "test_standing", "test_rounds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the tests of some modules a coordinator on PostgreSQL too."""
    if "coordinator" in metafunc.fixturenames and metafunc.module.__name__.endswith(ON_BOTH):
        kinds = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
        metafunc.parametrize("coordinator", kinds, indirect=True)
