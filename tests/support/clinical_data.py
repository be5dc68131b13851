"""Where the clinical files are that tests may use but the repository does not hold."""

import os
from pathlib import Path

import pytest


def clinical_data_dir() -> Path:
    """Return the folder of the files, or skip the test.

    ``SYNTHEDGE_DATA`` names it; else it is ``../shared/data`` beside the checkout.
    """
    named = os.environ.get("SYNTHEDGE_DATA")
    folder = Path(named) if named else Path(__file__).parents[3] / "shared" / "data"
    if not (folder / "uci_heart_cleveland.csv").is_file():
        pytest.skip(f"no clinical files in {folder}; set SYNTHEDGE_DATA to their folder")
    return folder
