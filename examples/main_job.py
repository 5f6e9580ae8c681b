"""Train a logistic regression on data several times larger than the memory it is allowed.

Writes a data set of ``--size`` bytes, gives a local Dask cluster a quarter of that as its memory
promise, trains with a live progress bar and prints what was certified and measured. Saves a picture
of the convergence.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster
from dask.utils import parse_bytes

import daskdml
from daskdml.io import open_dataset, train_test_split, write_dataset
from daskdml.units import bytes_text

N_FEATURES = 100
LEAST_PER_WORKER = 300_000_000  # an interpreter with NumPy, Numba, Zarr and Dask takes 200 MB


def make_rows(seeds: np.ndarray, rows: int) -> np.ndarray:
    """Correlated features of very different scales; the last column is the label."""
    rng = np.random.default_rng(int(seeds[0]))
    X = np.empty((rows, N_FEATURES + 1), np.float32)
    noise = rng.standard_normal((rows, N_FEATURES), dtype=np.float32)
    X[:, 0] = noise[:, 0]
    for j in range(1, N_FEATURES):  # correlation 0.5 ** |i - j|
        X[:, j] = 0.5 * X[:, j - 1] + np.sqrt(0.75, dtype=np.float32) * noise[:, j]
    w = np.random.default_rng(0).standard_normal(N_FEATURES).astype(np.float32) / 5
    p = 1 / (1 + np.exp(-(X[:, :-1] @ w)))
    X[:, :-1] *= np.geomspace(0.1, 10, N_FEATURES, dtype=np.float32)
    X[:, -1] = rng.random(rows, dtype=np.float32) < p
    return X


def write(url: str, size: int) -> None:
    """Write `size` bytes of rows on threads of this process: no worker holds any of them."""
    chunk = min(20_000, max(1, size // (4 * N_FEATURES)))
    n_chunks = max(1, round(size / (4 * N_FEATURES * chunk)))
    seeds = da.arange(1, n_chunks + 1, chunks=1)
    rows = seeds.map_blocks(
        make_rows, chunk, dtype=np.float32, new_axis=1, chunks=((chunk,) * n_chunks, (101,))
    )
    write_dataset(url, rows[:, :-1], rows[:, -1].astype("i1"), chunks=chunk, overwrite=True)


def compile_kernels() -> None:
    """Fit a few rows here: Numba keeps what it compiled on disk, so that no worker compiles."""
    rows = make_rows(np.zeros(1, np.int64), 1_000)
    daskdml.LogisticRegression().fit(rows[:, :-1], rows[:, -1].astype("i1"))


def check_disk(folder: Path, size: int) -> None:
    """Stop before the work where the disk is too small; these rows hardly compress."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise SystemExit(
            f"{folder} has {bytes_text(free)} free and the data needs {bytes_text(size)}; "
            "name a smaller --size, or another --out"
        )


def report(clf: daskdml.LogisticRegression, seconds: float, accuracy: float, rows: int) -> None:
    """Print what was reached, and what it took against what was promised."""
    promise = clf.plan_.limit
    read = f"{clf.n_passes_:.2f} over the training rows, {bytes_text(clf.bytes_read_)} read"
    share = f"{rows / (promise * len(clf.peak_memory_)):.1f} times the memory promised in all"
    print(f"\nTest accuracy:  {accuracy:.4f}")
    print(f"Certificate:    {clf.certificate_}")
    print(f"Passes:         {read}")
    print(f"Fit:            {seconds:.1f} s")
    print(f"Rows:           {bytes_text(rows)}, {share}")
    for worker, peak in sorted(clf.peak_memory_.items()):
        kept = "kept" if peak <= promise else "BROKEN"
        print(f"Peak memory:    {bytes_text(peak)} of {bytes_text(promise)} ({kept}), {worker}")


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", default="2.4GB", help="bytes of rows to write (default 2.4GB)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--tol", type=float, default=1e-6, help="certified relative gap to reach")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for data and picture")
    parser.add_argument("--keep", action="store_true", help="keep the data set")
    args = parser.parse_args()

    size = int(parse_bytes(args.size))
    promise = max(size // 4 // args.workers, LEAST_PER_WORKER)
    args.out.mkdir(parents=True, exist_ok=True)
    check_disk(args.out, size)
    url = str(args.out / "main_job.zarr")
    compile_kernels()
    began = time.perf_counter()
    write(url, size)
    train, test = train_test_split(open_dataset(url), test_size=0.1, shuffle=False)
    print(f"Wrote {train} and a test set in {time.perf_counter() - began:.0f} s", flush=True)
    cluster = LocalCluster(n_workers=args.workers, threads_per_worker=1, memory_limit=0)
    with cluster, Client(cluster) as client:
        print(f"Dashboard:      {client.dashboard_link}", flush=True)
        print(f"Memory promise: {bytes_text(promise)} for each of {args.workers} workers")

        began = time.perf_counter()
        bar = daskdml.ProgressBar(sys.stdout)
        with daskdml.Engine(client, memory_limit=promise, callbacks=[bar]):
            clf = daskdml.LogisticRegression(tol=args.tol).fit(train)
        seconds = time.perf_counter() - began
        report(clf, seconds, clf.score(test), open_dataset(url).nbytes)
    picture = args.out / "convergence.png"
    clf.history_.plot().savefig(picture, dpi=120)
    print(f"Picture:        {picture}")
    if not args.keep:
        shutil.rmtree(url)


if __name__ == "__main__":
    main()
