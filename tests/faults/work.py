"""What faults strike: fits, a conversion and a prediction, each in a client process of its own.

``python -m tests.faults.work WORK PLACE OPTIONS SCHEDULER TIMES`` does one of them, with all that
it reads and writes at a place, which is a folder or any URL. Each line that it prints is JSON: that
it begins, that it is over, and then a digest of all that came out, the blocks that were done, and
how many checkpoints could not be written.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import warnings
from pathlib import Path

import fsspec
import numpy as np
from distributed import Client

import daskdml as dml
from daskdml.engine import pace, run
from daskdml.events import BlockEnd
from daskdml.io import convert_ratings, open_dataset, open_ratings, write_dataset

ROWS, FEATURES, CHUNK = 400_000, 20, 5_000
USERS, ITEMS, RATINGS = 4_000, 2_000, 400_000
FITS = {  # by how many times the usual number of epochs or sweeps they make
    "sgd": lambda n: dml.SGDClassifier(max_iter=6 * n, tol=None, random_state=0, n_replicas=2),
    "newton": lambda n: dml.LogisticRegression(solver="newton", tol=1e-10),
    "lbfgs": lambda n: dml.LogisticRegression(solver="lbfgs", tol=1e-9),
    "als": lambda n: dml.MatrixFactorization(8, max_iter=8 * n, tol=0.0, random_state=0),
    "dsgd": lambda n: dml.MatrixFactorization(
        8, solver="sgd", max_iter=8 * n, tol=0.0, learning_rate=0.01, random_state=0
    ),
    "kmeans": lambda n: dml.KMeans(8, max_iter=12 * n, tol=0.0, random_state=0),
}
ON_RATINGS = ("als", "dsgd")
WORK = (*FITS, "convert", "predict")


def prepare(folder: Path) -> None:
    """Rows, ratings, and a file of ratings to convert."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    y = X @ rng.standard_normal(FEATURES) + 2 * rng.standard_normal(ROWS) > 0
    write_dataset(folder / "rows.zarr", X, y.astype(np.int8), chunks=CHUNK)
    pairs = np.unique(rng.integers(0, [USERS, ITEMS], (RATINGS, 2)), axis=0)
    stars = rng.integers(1, 11, len(pairs)) / 2
    convert_ratings((pairs[:, 0], pairs[:, 1], stars), folder / "ratings.zarr", grid=(8, 8))
    np.savetxt(folder / "ratings.csv", np.column_stack([pairs, stars]), "%g", ",",
               header="userId,movieId,rating", comments="")  # fmt: skip


def learned(model: object) -> dict[str, object]:
    """All that a fitted estimator has learned, as bytes."""
    found: dict[str, object] = {"n_iter": getattr(model, "n_iter_", None)}
    for name, value in vars(model).items():
        if isinstance(value, np.ndarray) and value.dtype != object and name.endswith("_"):
            found[name] = value.tobytes()
    for side, table in zip("ui", getattr(model, "_tables", ()), strict=False):
        found[side] = [rows.tobytes() for _, rows in table.blocks()]
    return found


def digest(found: dict[str, object]) -> str:
    """Digits that tell results apart."""
    return hashlib.sha256(repr(sorted(found.items(), key=str)).encode()).hexdigest()[:16]


def stored(url: str, options: dict[str, str]) -> dict[str, object]:
    """All chunks that lie at a URL."""
    fs, root = fsspec.url_to_fs(url, **options)
    chunks = [name for name in fs.find(root) if "c" in name.split("/")]
    return {name.removeprefix(root): fs.cat_file(name) for name in chunks}


def do(work: str, place: str, options: dict[str, str], times: int) -> dict[str, object]:
    """Do the work; gives all that comes out."""
    out = f"{place}/out.zarr"
    if work == "convert":
        convert_ratings(
            f"{place}/ratings.csv", out, grid=(8, 8), storage_options=options,
            source_options=options,
        )  # fmt: skip
        return stored(out, options)
    name, opened = ("ratings", open_ratings) if work in ON_RATINGS else ("rows", open_dataset)
    data = opened(f"{place}/{name}.zarr", storage_options=options)
    if work == "predict":
        model = dml.LogisticRegression()
        model.classes_, model.n_features_in_ = np.array([0, 1], np.int8), FEATURES
        model.coef_, model.intercept_ = np.ones((1, FEATURES)), np.zeros(1)
        model.predict_proba(data, out=out, storage_options=options)
        return stored(out, options)
    return learned(FITS[work](times).fit(data))


def left_behind(client: Client) -> dict[str, object]:
    """What should not be there any more: tasks on the scheduler, threads of this library."""
    for _ in range(50):
        tasks = client.run_on_scheduler(lambda dask_scheduler: [*map(str, dask_scheduler.tasks)])
        threads = [t.name for t in threading.enumerate() if t.name.startswith("daskdml")]
        threads = [name for name in threads if not name.startswith("daskdml-blas")]
        if not (tasks or threads):
            return {}
        time.sleep(0.1)
    return {"tasks": tasks, "threads": threads}


def main(work: str, place: str, told: str, scheduler: str, times: int) -> None:
    """Do the work on a cluster, and tell of it."""
    options = json.loads(told)
    run.GROUP_BYTES = 1  # so that each chunk is a block
    pace.FIRST = pace.MOST = 16  # groups of a segment
    n = 0

    def heard(event: object) -> None:
        nonlocal n
        n += isinstance(event, BlockEnd)

    with (
        warnings.catch_warnings(record=True) as warned,
        Client(scheduler, set_as_default=False, timeout=30) as client,
        dml.Engine(
            client,
            callbacks=[heard],
            checkpoint=f"{place}/{work}.fit",
            every=0.2,
            storage_options=options,
        ),
    ):
        warnings.simplefilter("always")
        print(json.dumps({"begins": work}), flush=True)
        found = do(work, place, options, times)
        print(json.dumps({"over": time.monotonic()}), flush=True)
        left = left_behind(client)
    unwritten = sum("a checkpoint could not be written" in str(w.message) for w in warned)
    parts = {name: digest({name: part}) for name, part in found.items()}
    end = {"blocks": n, "digest": digest(found), "parts": parts, "left": left}
    print(json.dumps(end | {"unwritten": unwritten}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
