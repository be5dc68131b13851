"""The published synthedge 0.2.0, fetched into a temporary folder to be measured beside ours.

Only its modules are loaded, from the unpacked wheel; it is no dependency and nothing of it stays.
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

PACKAGE = "synthedge"
VERSION = "0.2.0"


@contextmanager
def published_package() -> Iterator[ModuleType]:
    """Give the package as a module; leaves with a sentence if it cannot be fetched."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        wanted = f"{PACKAGE}=={VERSION}"
        done = subprocess.run([*command, "-d", folder, wanted], check=False, capture_output=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise SystemExit(f"{wanted} could not be downloaded; this comparison needs it")
        zipfile.ZipFile(wheels[0]).extractall(folder)
        spec = importlib.util.spec_from_file_location(
            PACKAGE,
            Path(folder) / PACKAGE / "__init__.py",
            submodule_search_locations=[str(Path(folder) / PACKAGE)],
        )
        if spec is None or spec.loader is None:
            raise SystemExit(f"{wanted} holds no package {PACKAGE}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        spec.loader.exec_module(module)
        yield module
