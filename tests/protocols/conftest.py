import pytest

from identities import Identities, fixed_identities


@pytest.fixture(scope="session")
def ids() -> Identities:
    return fixed_identities()
