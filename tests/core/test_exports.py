import subprocess
import sys

import pytest

import synthedge_core


def test_importing_the_package_loads_no_table_library() -> None:
    code = "import sys, synthedge_core; print([m for m in ('numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", synthedge_core.__all__)
def test_every_name_promised_can_be_had(name: str) -> None:
    assert getattr(synthedge_core, name).__class__.__name__ != "module"


def test_a_name_not_promised_is_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'augment'"):
        synthedge_core.augment  # noqa: B018
