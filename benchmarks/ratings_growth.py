"""Seconds of a sweep over W4 for each rating: on more ratings, finer grids, higher ranks.

python -m benchmarks.ratings_growth [--folder out/benchmarks] [--runs 1] [--only WORD ...]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.measure import median_run
from benchmarks.peers_ratings import ALS, SGD
from benchmarks.ratings_data import W4

SWEEPS = 4
MODULE = "benchmarks.peers_ratings"


def growth(folder: Path, runs: int, only: list[str]) -> list[dict[str, Any]]:
    """A row for each case: nanoseconds of a sweep's median, and the share before and after it."""
    rows: list[dict[str, Any]] = []

    def add(title: str, share: float, grid: tuple[int, int] | None, k: int) -> None:
        if only and not any(word in title for word in only):
            return
        work = W4.scaled(share)
        path = work.write_split(folder)
        stored = str(folder / "growth.zarr")
        median_run(1, "store", module=MODULE, path=path, out=stored, grid=grid)
        row: dict[str, Any] = {"case": title}
        for solver, settings in (("sgd", SGD), ("als", ALS)):
            found = median_run(
                runs, "factorize", module=MODULE, path=path, stored=stored, solver=solver,
                n_components=k, max_iter=SWEEPS, **settings,
            )  # fmt: skip
            sweep = sorted(found["sweeps"][1:])[(SWEEPS - 1) // 2]
            row[solver] = sweep / (0.9 * work.ratings) * 1e9
            row[f"{solver} scheduling"] = found["scheduling"]
        shutil.rmtree(stored)
        rows.append(row)
        print(
            f"| {title} | {row['sgd']:.0f} | {row['sgd scheduling']:.1%} | {row['als']:.0f} | "
            f"{row['als scheduling']:.1%} |", flush=True,
        )  # fmt: skip

    print("| case | sgd ns | scheduling | als ns | scheduling |\n|---|---|---|---|---|")
    for share in (1 / 8, 1 / 4, 1 / 2, 1):
        add(f"{W4.ratings * share / 1e6:.1f} million ratings", share, None, 32)
    for n in (2, 4, 16, 64):
        add(f"grid {n} x {n}", 1, (n, n), 32)
    for k in (8, 16, 64, 128, 256):
        add(f"rank {k}", 1, None, k)
    return rows


def main() -> None:
    """Parse the command line, run, keep the raw results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ratings_growth")
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="words of the cases' titles")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = growth(args.folder, args.runs, args.only)
    (args.folder / "ratings-growth.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
