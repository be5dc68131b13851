"""Scanning a Parquet file by row groups: time per pass against decoding alone, and memory.

Writes a file of 10 million rows and 20 columns (2 GB) into a temporary folder, or uses one given.
"Decode" is reading the same row groups and columns and dropping them. A scan makes three passes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

N_FEATURES = 20
ROW_GROUP = 65_536
MAX_RATIO = 1.35
MAX_RATIO_QUICK = 1.8
MAX_RESIDENT_MB = 256


def write(path: Path, n_rows: int) -> None:
    """Write correlated normal columns and a label."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(N_FEATURES, N_FEATURES))
    writer = None
    for start in range(0, n_rows, ROW_GROUP):
        n = min(ROW_GROUP, n_rows - start)
        values = rng.normal(size=(n, N_FEATURES)) @ mixing
        columns: dict[str, Any] = {f"x{i}": values[:, i] for i in range(N_FEATURES)}
        table = pa.table({**columns, "y": (rng.random(n) < 0.2).astype(np.int64)})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=ROW_GROUP)
    if writer is not None:
        writer.close()


def decode(path: Path) -> float:
    """Time one pass that only decodes."""
    started = time.perf_counter()
    file = pq.ParquetFile(path)
    for i in range(file.num_row_groups):
        file.read_row_group(i, use_threads=False)
    return time.perf_counter() - started


def scan_here(path: Path) -> None:
    """Scan in this process and print time and peak memory: run in a process of its own."""
    from synthedge_client.parquet_scan import scan_parquet

    started = time.perf_counter()
    found = scan_parquet(path, "y")
    seconds = time.perf_counter() - started
    # VmHWM, not ru_maxrss: the latter starts at what the parent held when it forked.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    result = {"seconds": seconds, "peak_mb": int(peak.split()[1]) / 1024}
    print(json.dumps({**result, "rows": found.scan.n_rows, "voxels": len(found.scan.voxels)}))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 million rows, under a minute")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--file", type=Path, help="a file written before")
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scan:
        scan_here(options.scan)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "large.parquet"
        if not path.exists():
            write(path, 1_000_000 if options.quick else 10_000_000)
        decode(path)  # warms the page cache for both
        before = decode(path)
        command = [sys.executable, __file__, "--scan", str(path)]
        scanned = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        # The machine is shared: decoding is timed on both sides of the scan.
        limit = (before + decode(path)) / 2
    ratio = scanned["seconds"] / 3 / limit
    bars: list[dict[str, Any]] = [
        {
            "what": "time of a pass over decoding alone",
            "value": ratio,
            # In a small file the extra pass over the labels weighs more.
            "bar": MAX_RATIO_QUICK if options.quick else MAX_RATIO,
        },
        {"what": "peak resident MB", "value": scanned["peak_mb"], "bar": MAX_RESIDENT_MB},
    ]
    for bar in bars:
        bar["ok"] = bar["value"] <= bar["bar"]
    if options.json:
        print(json.dumps({"bars": bars, "decode_s": limit, **scanned}))
        return
    print(f"{scanned['rows']} rows: decode {limit:.2f} s a pass, scan {scanned['seconds']:.2f} s")
    for bar in bars:
        print(f"{'ok ' if bar['ok'] else 'NO '} {bar['what']}: {bar['value']:.2f} ({bar['bar']})")


if __name__ == "__main__":
    main()
