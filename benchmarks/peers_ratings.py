"""W4: seconds, test errors and objectives of MatrixFactorization and of other recommenders.

python -m benchmarks.peers_ratings report --python PEERS/bin/python [--scale 1.0] [--only WORD ...]

PEERS is an environment of its own with numpy, scipy, pandas, pyarrow, libmf, cmfrec, implicit and
pyspark (which needs Java); daskdml needs none of them. Set LIBMF_OBJ to a fast build of LIBMF (see
`benchmarks.rating_peers`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rating_peers as peers
from benchmarks.ratings_data import W4, load_split

Result = dict[str, Any]
SHOWN = ("rmse", "sweeps", "objectives", "read", "grown")
IMPLICIT = {"reg": 10.0, "alpha": 1.0}  # of the objective in `rating_peers.implicit_objective`
# Rank 32 at W4 with the lowest test error among these: LIBMF, 20 sweeps, reg 0.02 ... 0.07 and eta
# 0.05, 0.1 (0.2 diverges); cmfrec, 5-15 sweeps, unscaled 15, 25, 40 and scaled 0.05, 0.08.
LIBMF = {"k": 32, "reg": 0.03, "eta": 0.1}
# The same for ours: penalties of 0.03 ... 0.05 by count, 0.3 ... 1.3 by root.
SGD = {"reg": 0.03, "reg_scaling": "count"}
ALS = {"reg": 0.05, "reg_scaling": "count"}
CMFREC = {"k": 32, "reg": [0.03, 0.05], "scale": True}


def libmf(path: Path, **settings: Any) -> Result:
    """LIBMF's seconds and test error."""
    train, test = load_split(path)
    model = peers.libmf(tuple(train), **settings)
    return {"seconds": model.seconds, "rmse": _test_error(model, test)}


def cmfrec(path: Path, **settings: Any) -> Result:
    """cmfrec's seconds and test error."""
    train, test = load_split(path)
    model = peers.cmfrec(tuple(train), **settings)
    return {"seconds": model.seconds, "rmse": _test_error(model, test)}


def spark(path: Path, **settings: Any) -> Result:
    """Spark MLlib's seconds and test error."""
    train, test = load_split(path)
    with tempfile.TemporaryDirectory() as folder:
        model = peers.spark(tuple(train), folder=Path(folder), **settings)
    return {"seconds": model.seconds, "rmse": _test_error(model, test)}


def biases(path: Path, user_reg: float, item_reg: float) -> Result:
    """The mean and damped biases alone."""
    train, test = load_split(path)
    model = peers.damped_biases(tuple(train), user_reg, item_reg)
    return {"seconds": model.seconds, "rmse": _test_error(model, test)}


def implicit(path: Path, k: int, reg: float, alpha: float, sweeps: int, threads: int) -> Result:
    """Seconds of implicit's sweeps (their median is `seconds`), and the objective after each."""
    train, _ = load_split(path)
    objectives: list[float] = []

    def after(P: np.ndarray, Q: np.ndarray) -> None:
        objectives.append(peers.implicit_objective(tuple(train), P, Q, reg, alpha))

    *_, seconds = peers.implicit(tuple(train), k, reg, alpha, sweeps, threads, after=after)
    return {
        "seconds": statistics.median(seconds), "sweeps": seconds, "objectives": objectives,
    }  # fmt: skip


def read_and_sort(path: Path) -> Result:
    """Seconds of pandas to read a CSV file and to sort it by user and item."""
    import pandas as pd

    began = time.perf_counter()
    frame = pd.read_csv(path)
    read = time.perf_counter() - began
    frame = frame.sort_values(["userId", "movieId"])
    return {"seconds": time.perf_counter() - began, "read": read, "rows": len(frame)}


def convert(path: Path, out: str, limit: str) -> Result:
    """Seconds of `convert_ratings` from a CSV file under a memory limit; how its peak grew."""
    import resource
    import shutil

    from daskdml.io import convert_ratings

    shutil.rmtree(out, ignore_errors=True)
    convert_ratings(([1, 2], [1, 2], [1.0, 2.0]), "memory://warm.zarr", overwrite=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    ratings = convert_ratings(path, out, timestamp="timestamp", memory_limit=limit)
    seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"seconds": seconds, "ratings": ratings.n_stored, "grown": grown}


def store(path: Path, out: str, grid: list[int] | None = None) -> Result:
    """Seconds of `convert_ratings` from the arrays of the training part."""
    import shutil

    from daskdml.io import convert_ratings

    shutil.rmtree(out, ignore_errors=True)
    train, _ = load_split(path)
    began = time.perf_counter()
    convert_ratings(tuple(train), out, grid=None if grid is None else (grid[0], grid[1]))
    return {"seconds": time.perf_counter() - began}


def factorize(path: Path, stored: str, **parameters: Any) -> Result:
    """Seconds of a fit from a store, and its test error or the objective after each sweep.

    `scheduling` is the share of the sweeps after the first that passed before their first task
    began and after their last one ended.
    """
    import daskdml
    from daskdml.events import PassEnd

    passes: list[PassEnd] = []

    def heard(event: Any) -> None:
        if isinstance(event, PassEnd) and event.label.endswith("-sweep"):
            passes.append(event)

    model = daskdml.MatrixFactorization(random_state=0, tol=0, **parameters)
    began = time.perf_counter()
    with daskdml.Engine(callbacks=[heard]):
        model.fit(stored)
    seconds = time.perf_counter() - began
    ends = [record.seconds for record in model.history_]
    found: Result = {"seconds": seconds, "sweeps": np.diff([0.0, *ends]).tolist()}
    later = passes[1:] or passes
    found["scheduling"] = sum(p.transfer for p in later) / sum(p.seconds for p in later)
    if model.feedback == "implicit":
        found["objectives"] = [record.objective for record in model.history_]
        return found
    _, test = load_split(path)
    predicted = np.clip(model.predict((test[0], test[1])), peers.LOW, peers.HIGH)
    return {**found, "rmse": peers.rmse(predicted, test[2])}


def _test_error(model: peers.Factors, test: list[np.ndarray]) -> float:
    return peers.rmse(model.predict(test[0], test[1]), test[2])


PEERS = (libmf, cmfrec, spark, biases, implicit, read_and_sort)
OURS = (convert, store, factorize)
CASES = {f.__name__: f for f in (*PEERS, *OURS)}


def report(
    python: str, folder: Path, scale: float, runs: int, threads: int, only: list[str]
) -> list[Result]:
    """All peers, one after another; or those whose titles have one of some words."""
    from benchmarks.measure import median_run

    work = W4.scaled(scale)
    folder.mkdir(parents=True, exist_ok=True)
    path, rows = work.write_split(folder), []

    def add(title: str, case: str, path: Path = path, times: int = runs, **arguments: Any) -> None:
        if only and not any(word in title for word in only):
            return
        own = case in {f.__name__ for f in OURS}
        found = median_run(
            times, case, module="benchmarks.peers_ratings",
            python=sys.executable if own else python, path=path, **arguments,
        )  # fmt: skip
        rows.append({"case": title, **arguments, **found})
        values = [f"{k} {found[k]}" for k in SHOWN if k in found]
        seconds = f"{found['seconds']:.2f} s ({found['spread'][0]:.2f}-{found['spread'][1]:.2f})"
        print(f"{title}: {seconds}, {found['peak'] / 1e9:.2f} GB; " + "; ".join(values), flush=True)

    stored = str(folder / f"{work.name}-{work.ratings}-train.zarr")
    ours: dict[str, Any] = {"stored": stored}
    add("daskdml, arrays to a store", "store", out=stored, times=1)
    add("mean and damped biases", "biases", user_reg=5.0, item_reg=3.0, times=1)
    for sweeps in (5, 10, 20):
        add(f"LIBMF, {sweeps} sweeps", "libmf", sweeps=sweeps, threads=threads, **LIBMF)
    for sweeps in (4, 5):
        title = f"daskdml sgd, {sweeps} sweeps"
        add(title, "factorize", solver="sgd", max_iter=sweeps, **SGD, **ours)
    for sweeps in (5, 10):
        add(f"cmfrec, {sweeps} sweeps", "cmfrec", sweeps=sweeps, threads=threads, **CMFREC)
    for sweeps in (5, 6, 10):
        add(f"daskdml als, {sweeps} sweeps", "factorize", max_iter=sweeps, **ALS, **ours)
    settings = {"k": 32, "reg": ALS["reg"], "sweeps": 10, "threads": threads}
    add("Spark MLlib, 10 sweeps", "spark", times=1, **settings)
    for k in (32, 64, 128):
        settings = {"k": k, "sweeps": 4, "threads": threads, **IMPLICIT}
        add(f"implicit, rank {k}, a sweep", "implicit", times=1, **settings)
        settings = {"n_components": k, "max_iter": 4, "feedback": "implicit", **ours, **IMPLICIT}
        add(f"daskdml implicit, rank {k}", "factorize", times=1, reg_scaling="none", **settings)
    csv = work.write_csv(folder)
    add("pandas read + sort", "read_and_sort", path=csv)
    out = str(folder / f"{work.name}-{work.ratings}-all.zarr")
    add("daskdml, CSV to a store", "convert", path=csv, out=out, limit="500MB")
    return rows


def main() -> None:
    """Run the case named on the command line with JSON keyword arguments, or the report."""
    if len(sys.argv) > 1 and sys.argv[1] in CASES:
        arguments = json.loads(sys.argv[2])
        arguments["path"] = Path(arguments["path"])
        print("RESULT " + json.dumps(CASES[sys.argv[1]](**arguments)))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers_ratings", description=__doc__)
    parser.add_argument("what", choices=["report"])
    parser.add_argument("--python", default=sys.executable, help="an interpreter with the peers")
    parser.add_argument("--folder", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the ratings")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="words of the cases' titles")
    args = parser.parse_args()
    rows = report(args.python, args.folder, args.scale, args.runs, args.threads, args.only)
    (args.folder / "peers-ratings.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
