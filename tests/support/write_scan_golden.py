"""Write tests/core/golden/scan.json: what the published synthedge 0.2.0 finds in `scan_cases`.

Run in a throw-away environment; the package is no dependency of this project and none of its code
is here, only the numbers it computes:

    python -m venv /tmp/published && /tmp/published/bin/pip install scikit-learn scipy pandas
    /tmp/published/bin/pip install --no-deps synthedge==0.2.0
    PYTHONPATH=tests/support /tmp/published/bin/python tests/support/write_scan_golden.py
"""

import importlib
import json
from pathlib import Path

from sklearn.preprocessing import StandardScaler

from scan_cases import scan_cases

GOLDEN = Path(__file__).parents[1] / "core" / "golden" / "scan.json"


def main() -> None:
    """Write the file."""
    published = importlib.import_module("synthedge.scanner")
    cases = {}
    for name, values, labels, settings in scan_cases():
        scaled = StandardScaler().fit_transform(values)
        top, _, voxels = published.scan(scaled, labels, **settings)
        cases[name] = {
            "n_bins": voxels[0]["n_bins"],
            "n_top": len(top),
            "voxels": [
                [v["label"], v["observed"], v["n_pos"], float(v["gap_score"])] for v in voxels
            ],
            "centroids_pca": [[round(float(x), 9) for x in v["centroid_pca"]] for v in top],
            "centroid_sums": [round(float(v["centroid_sc"].sum()), 9) for v in top],
        }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(cases, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
