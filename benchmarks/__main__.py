"""One command for all figures of docs/benchmarks.md.

python -m benchmarks w1 [--scale 1.0] [--runs 3] [--folder out/benchmarks]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import reports
from benchmarks.data import BLOBS, W1, W2, W2_SCALED


def main() -> None:
    """Parse the command line, run, print a table and keep the raw results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=[*reports.REPORTS, "all"])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows (default 1)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each case (default 3)")
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    of = {"w2": W2, "w2-sgd": W2, "w2-scaled": W2_SCALED, "kmeans": BLOBS}
    names = list(reports.REPORTS) if args.what == "all" else [args.what]
    packages = ["daskdml", "numpy", "zarr", "dask", "scikit-learn", "numba"]
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    print(f"Python {platform.python_version()}, {versions}")
    print("Command: python -m benchmarks " + " ".join(sys.argv[1:]))
    for name in names:
        work = of.get(name, W1)
        work = replace(work, rows=int(work.rows * args.scale))
        rows = reports.REPORTS[name](work, args.folder, args.runs)
        (args.folder / f"{name}.json").write_text(json.dumps(rows, indent=1))
        print(f"\n{name}\n" + reports.table(rows), flush=True)


if __name__ == "__main__":
    main()
