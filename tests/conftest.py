"""How tests are dealt out to processes: one demonstration for all that look at it, else one file to one process."""

import pytest


# Before xdist's own, which reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test's group; `--dist loadgroup` keeps a group together."""
    for item in items:
        is_shared = "finished" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("demonstration" if is_shared else str(item.path)))
