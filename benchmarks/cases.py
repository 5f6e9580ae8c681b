"""What is timed. Each case runs in a process of its own and prints one line of JSON."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import zarr

Result = dict[str, Any]


def _arrays(path: Path) -> tuple[Any, Any]:
    group = zarr.open_group(path, mode="r")
    return group["X"], group["y"]


def bare_read(path: Path, threads: int) -> Result:
    """Read every chunk with plain Zarr and drop it."""
    X, _ = _arrays(path)
    chunk = X.chunks[0]
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        rows = list(pool.map(lambda i: len(X[i : i + chunk]), range(0, X.shape[0], chunk)))
    return {"seconds": time.perf_counter() - began, "rows": sum(rows)}


def _load(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    began = time.perf_counter()
    X, y = _arrays(path)
    return X[:], y[:], time.perf_counter() - began


def sklearn_logistic(path: Path, solver: str, tol: float) -> Result:
    """scikit-learn's LogisticRegression in memory."""
    from sklearn.linear_model import LogisticRegression

    X, y, load = _load(path)
    began = time.perf_counter()
    clf = LogisticRegression(solver=solver, tol=tol, max_iter=1000).fit(X, y)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "load": load, **_solution(clf)}


def dask_ml_logistic(path: Path, solver: str, tol: float) -> Result:
    """dask-ml's LogisticRegression on two worker processes, its data persisted."""
    import dask.array as da
    from dask.distributed import Client, LocalCluster
    from dask_ml.linear_model import LogisticRegression

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as c, Client(c):
        X, y = (da.from_zarr(str(path / part)) for part in "Xy")
        began = time.perf_counter()
        X, y = X.persist(), y.persist()
        clf = LogisticRegression(solver=solver, tol=tol, max_iter=100).fit(X, y)
        return {"seconds": time.perf_counter() - began, **_solution(clf)}


def daskdml_logistic(
    path: Path, promise: str, tol: float, workers: int, share: float = 1.0
) -> Result:
    """daskdml's LogisticRegression from the store on a running cluster.

    `share` < 1 fits to the first rows alone.
    """
    import daskdml
    from daskdml.io import open_dataset

    rows = open_dataset(path)
    rows = rows[: int(share * len(rows))]
    with _cluster(workers) as (client, warm_up):
        warm_up(daskdml.LogisticRegression, path)
        with daskdml.Engine(client, promise):
            began = time.perf_counter()
            clf = daskdml.LogisticRegression(tol=tol, max_iter=50).fit(rows)
            seconds = time.perf_counter() - began
    history = clf.history_.to_frame()
    peaks = clf.peak_memory_.values()
    return {
        "seconds": seconds, "passes": clf.n_passes_, "gigabytes": clf.bytes_read_ / 1e9,
        "certified": clf.certificate_.relative, "rigorous": clf.certificate_.rigorous,
        "peak_workers": sum(peaks), "peak_worker": max(peaks), "promise": clf.plan_.limit,
        "read": float(history.read.sum()), "decode": float(history.decode.sum()),
        "compute": float(history.compute.sum()), "wait": float(history.wait.sum()),
        "transfer": float(history.transfer.sum()), **_solution(clf),
        # When each point that a pass gave f of was known: at the end of the record before.
        "visits": [
            (found, f)
            for found, f in zip([0.0, *history.seconds], history.objective, strict=False)
            if f == f
        ],
    }  # fmt: skip


def daskdml_sgd(path: Path, replicas: int) -> Result:
    """One epoch of daskdml's SGDClassifier from the store on a running cluster."""
    import daskdml

    with _cluster(replicas) as (client, warm_up):
        warm_up(lambda: daskdml.SGDClassifier(loss="log_loss", max_iter=1, tol=None), path)
        clf = daskdml.SGDClassifier(
            loss="log_loss", max_iter=1, tol=None, n_replicas=replicas, random_state=0
        )
        with daskdml.Engine(client):
            began = time.perf_counter()
            clf.fit(str(path))
            return {"seconds": time.perf_counter() - began, **_solution(clf)}


EVERY = 3.0  # seconds between two checkpoints, twenty times as often as by default


def daskdml_checkpointed(path: Path, work: str, where: str) -> Result:
    """A fit that keeps checkpoints: seconds of the steps in which one was written, and of others.

    Each of the former is paired with the mean of those near it in which none was, for a machine
    that others use as well is faster at one time than at another.
    """
    import daskdml
    from daskdml.engine.checkpoint import Checkpoints
    from daskdml.io import open_dataset, open_ratings
    from tests.servers.s3 import s3

    if work == "sgd":
        data: Any = open_dataset(path)
        model: Any = daskdml.SGDClassifier(
            loss="log_loss", tol=None, n_replicas=2, random_state=0, max_iter=150
        )
    else:
        data = open_ratings(path)
        model = daskdml.MatrixFactorization(32, tol=0.0, random_state=0, max_iter=100)
    ends: list[float] = []
    written: list[tuple[float, float]] = []
    write = Checkpoints._write

    def timed(self: Checkpoints, *given: Any) -> None:
        began = time.perf_counter()
        write(self, *given)
        written.append((began, time.perf_counter()))

    def heard(event: Any) -> None:
        if isinstance(event, daskdml.events.PassEnd):
            ends.append(time.perf_counter())

    with (
        _cluster(2) as (client, _), s3() as server, tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Checkpoints, "_write", timed),
    ):  # fmt: skip
        place, options = folder, None
        if where == "s3":
            place, options = server.url("fit"), server.storage_options
        with daskdml.Engine(
            client, callbacks=[heard], checkpoint=place, every=EVERY, storage_options=options
        ):
            model.fit(data)
            n = len(ends)
            began = time.perf_counter()
            model.fit(data)
            again = time.perf_counter() - began
    return {**_steps(np.array(ends[3:n]), written), "again": again}


def _steps(ends: np.ndarray, written: list[tuple[float, float]]) -> Result:
    """What steps cost, and how much more those cost in which something was written."""
    seconds = np.diff(ends)
    struck = np.array([
        any(a < stop and start < b for a, b in written)
        for start, stop in itertools.pairwise(ends)
    ])  # fmt: skip
    more = []
    for k in np.flatnonzero(struck):
        near = [seconds[j] for j in (k - 2, k - 1, k + 1, k + 2)
                if 0 <= j < len(seconds) and not struck[j]]  # fmt: skip
        if near:
            more.append(float(seconds[k] - np.mean(near)))
    return {
        "seconds": seconds.tolist(), "checkpoints": len(written),
        "writing": float(np.mean([b - a for a, b in written])),
        "more": float(np.mean(more)), "error": float(np.std(more) / len(more) ** 0.5),
    }  # fmt: skip


def daskdml_neighbours(path: Path, runs: int) -> Result:
    """Seconds of a fit alone, of two at once, of their blocks, and of a neighbour's small tasks."""
    from dask.distributed import Client

    import daskdml
    from daskdml.events import BlockEnd
    from daskdml.io import open_dataset

    data, found = open_dataset(path), {"alone": [], "first": [], "second": [], "blocks": []}
    waits: Result = {"idle": [], "one fit": [], "two fits": []}

    def seen(event: Any) -> None:
        if isinstance(event, BlockEnd):
            found["blocks"].append(event.read + event.decode + event.compute)

    def fit(client: Any) -> float:
        model = daskdml.SGDClassifier(loss="log_loss", max_iter=6, tol=None, random_state=0)
        with daskdml.Engine(client, callbacks=[seen]):
            began = time.perf_counter()
            model.fit(data)
            return time.perf_counter() - began

    with _cluster(2) as (client, warm_up), Client(client.scheduler.address) as other:
        warm_up(lambda: daskdml.SGDClassifier(loss="log_loss", max_iter=1, tol=None), path)
        fit(client)
        found["blocks"].clear()
        with ThreadPoolExecutor(3) as pool:
            for beside, n in (("idle", 0), ("one fit", 1), ("two fits", 2)) * runs:
                tasks = [pool.submit(fit, c) for c in (client, other)[:n]]
                end = time.perf_counter() + (0 if n else 3)
                while time.perf_counter() < end or not all(task.done() for task in tasks):
                    began = time.perf_counter()
                    other.submit(abs, -1, pure=False).result()
                    waits[beside].append(time.perf_counter() - began)
                    time.sleep(0.05)
                names = ("alone",) if n == 1 else ("first", "second")
                for name, task in zip(names, tasks, strict=False):
                    found[name].append(task.result())
    return {**found, "waits": waits}


def daskdml_pca(path: Path, n_components: int) -> Result:
    """daskdml's PCA from the store on a running cluster of two workers."""
    import daskdml

    with _cluster(2) as (client, warm_up):
        warm_up(lambda: daskdml.PCA(1), path)
        with daskdml.Engine(client, "500MB"):
            began = time.perf_counter()
            pca = daskdml.PCA(n_components).fit(str(path))
            seconds = time.perf_counter() - began
    return {"seconds": seconds, "passes": pca.n_passes_, "components": pca.components_.tolist()}


def sklearn_pca(path: Path, n_components: int, incremental: bool) -> Result:
    """scikit-learn's PCA in memory, or its IncrementalPCA over the same chunks."""
    from sklearn.decomposition import PCA, IncrementalPCA

    if not incremental:
        X, _, load = _load(path)
        began = time.perf_counter()
        pca = PCA(n_components).fit(X)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "load": load, "components": pca.components_.tolist()}
    X, _ = _arrays(path)
    began, pca = time.perf_counter(), IncrementalPCA(n_components)
    for start in range(0, X.shape[0], X.chunks[0]):
        pca.partial_fit(X[start : start + X.chunks[0]])
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "components": pca.components_.tolist()}


def _by_seed(seeds: int, fit: Any) -> Result:
    """Seconds and inertia of a fit for each seed."""
    times, inertias = [], []
    for seed in range(seeds):
        began = time.perf_counter()
        inertias.append(float(fit(seed)))
        times.append(time.perf_counter() - began)
    spread = (min(times), max(times))
    return {"seconds": float(np.median(times)), "spread": spread, "inertias": inertias}


def daskdml_kmeans(path: Path, n_clusters: int, seeds: int, mini: bool) -> Result:
    """daskdml's KMeans or MiniBatchKMeans from the store on a running cluster of two workers."""
    import daskdml

    kind = daskdml.MiniBatchKMeans if mini else daskdml.KMeans
    passes = []

    def fit(seed: int) -> float:
        model = kind(n_clusters, random_state=seed).fit(str(path))
        passes.append(model.n_passes_)
        return model.inertia_

    with _cluster(2) as (client, warm_up):
        warm_up(lambda: kind(2), path)
        with daskdml.Engine(client, "500MB"):
            return {**_by_seed(seeds, fit), "passes": float(np.median(passes))}


def sklearn_kmeans(path: Path, n_clusters: int, seeds: int) -> Result:
    """scikit-learn's KMeans in memory."""
    from sklearn.cluster import KMeans

    X, _, load = _load(path)
    found = _by_seed(seeds, lambda seed: KMeans(n_clusters, random_state=seed).fit(X).inertia_)
    return {**found, "load": load}


def sklearn_minibatch(path: Path, n_clusters: int, seeds: int) -> Result:
    """One epoch of partial_fit with scikit-learn's MiniBatchKMeans, and scores, chunk by chunk."""
    from sklearn.cluster import MiniBatchKMeans

    X, _ = _arrays(path)
    starts = range(0, X.shape[0], X.chunks[0])

    def fit(seed: int) -> float:
        model = MiniBatchKMeans(n_clusters, random_state=seed)
        for i in starts:
            model.partial_fit(X[i : i + X.chunks[0]])
        return -sum(model.score(X[i : i + X.chunks[0]]) for i in starts)

    return _by_seed(seeds, fit)


def dask_ml_kmeans(path: Path, n_clusters: int, seeds: int) -> Result:
    """dask-ml's KMeans on two worker processes, its data persisted."""
    import dask.array as da
    from dask.distributed import Client, LocalCluster, wait
    from dask_ml.cluster import KMeans

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as c, Client(c):
        X = da.from_zarr(str(path / "X")).persist()
        wait(X)
        return _by_seed(seeds, lambda seed: KMeans(n_clusters, random_state=seed).fit(X).inertia_)


def overlap(path: Path, rows: int) -> Result:
    """On one worker of one thread: a pass that reads, one that computes, one that does both."""
    import daskdml
    from daskdml.engine.memory import Needs
    from daskdml.io.sources import as_source
    from daskdml.kernels.linear import Coordinates, LinearPass
    from daskdml.kernels.losses import Logistic
    from daskdml.kernels.targets import Targets
    from daskdml.solvers.base import StatsOf

    source = as_source(str(path))
    d = source.n_features
    at = LinearPass(Logistic(), Coordinates.identity(d), np.zeros((1, d + 1)), None, (), np.float32)
    stats = StatsOf(Targets(np.array([0, 1])), at)
    with _cluster(1) as (client, warm_up):
        warm_up(daskdml.LogisticRegression, path)
        found: Result = {}
        for name, promise, fn in (
            ("streaming", "550MB", stats), ("reading", "550MB", _count), ("pinned", "8GB", stats),
        ):  # fmt: skip
            with daskdml.Engine(client, promise).open(source, Needs()) as data:
                groups = data.groups[: rows // data.groups[0].rows]
                for _ in range(2):  # the second finds pages, files and pinned blocks warm
                    _, totals = data.map_reduce(fn, f"bench-{name}", groups)
                found[name] = totals.seconds
    return {**found, "seconds": found["streaming"]}


def _count(block: Any) -> int:
    return int(block.n_rows)


def sklearn_partial_fit(path: Path) -> Result:
    """One epoch of a partial_fit loop with scikit-learn's SGDClassifier over the same chunks."""
    from sklearn.linear_model import SGDClassifier

    X, y = _arrays(path)
    chunk = X.chunks[0]
    clf = SGDClassifier(loss="log_loss", random_state=0)
    began = time.perf_counter()
    classes = np.unique(y[:])
    for i in range(0, X.shape[0], chunk):
        clf.partial_fit(X[i : i + chunk], y[i : i + chunk], classes=classes)
    return {"seconds": time.perf_counter() - began, **_solution(clf)}


class _cluster:
    """Two or more worker processes, imports and compiled kernels warm."""

    def __init__(self, workers: int) -> None:
        from dask.distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=":0"
        )
        self.client = Client(self.cluster)

    def __enter__(self) -> tuple[Any, Any]:
        return self.client, self.warm_up

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self.cluster.close()

    def warm_up(self, make: Any, path: Path) -> None:
        """Fit a little in every worker, so that compiling is not timed."""
        import daskdml
        import daskdml.engine.run as engine
        from daskdml.io import write_dataset

        X, y = _arrays(path)
        rows, kept = 40_000, engine.GROUP_BYTES
        with tempfile.TemporaryDirectory() as folder:
            few = write_dataset(f"{folder}/few.zarr", X[:rows], y[:rows], chunks=rows // 8)
            engine.GROUP_BYTES = 1  # a group for each chunk
            try:
                with daskdml.Engine(self.client):
                    make().fit(few)
            finally:
                engine.GROUP_BYTES = kept


def _solution(clf: Any) -> Result:
    return {"coef": np.asarray(clf.coef_).tolist(), "intercept": np.ravel(clf.intercept_).tolist()}


def main() -> None:
    """Run the case named on the command line with JSON keyword arguments."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    arguments["path"] = Path(arguments["path"])
    print("RESULT " + json.dumps(globals()[name](**arguments)))


if __name__ == "__main__":
    main()
