"""The memory promise: planned, refused, and kept under a hard cap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from dask.utils import parse_bytes

from daskdml import NMF, PCA, Engine, LogisticRegression, SGDClassifier
from daskdml.engine.memory import MemoryPlan, Needs, fit_plan
from daskdml.engine.run import Threads
from daskdml.io import write_dataset
from tests.conftest import workers
from tests.engine.sources import Made

MB = 2**20
PLAN = MemoryPlan(400 * MB, 150 * MB, 40 * MB, 10 * MB, 1, 1, Needs())


def test_a_smaller_prefetch_before_a_refusal():
    """Where reading ahead does not fit but one block does, nothing is read ahead."""
    assert fit_plan(PLAN).prefetch == 1
    tight = replace(PLAN, limit=replace(PLAN, prefetch=0).streaming)
    assert fit_plan(tight).prefetch == 0


def test_the_smallest_limit_is_stated_and_is_enough():
    """A refusal names the smallest limit that would do; with it the plan passes, below it fails."""
    with pytest.raises(MemoryError, match=r"raise memory_limit to (\d+)MB") as refused:
        fit_plan(replace(PLAN, limit=160 * MB))
    stated = int(str(refused.value).partition("raise memory_limit to ")[2].partition("MB")[0])
    assert fit_plan(replace(PLAN, limit=stated * 1_000_000)).prefetch == 0
    with pytest.raises(MemoryError):
        fit_plan(replace(PLAN, limit=(stated - 2) * 1_000_000))


def test_plans_and_refusals_speak_in_the_units_of_memory_limit():
    """What is told of a limit is what Dask reads as that limit: decimal units, everywhere."""
    plan = replace(PLAN, limit=int(parse_bytes("400MB")))
    assert "400 MB promised" in str(plan) and "iB" not in str(plan)
    with pytest.raises(MemoryError, match=r"memory_limit=160 MB per worker") as refused:
        fit_plan(replace(plan, limit=int(parse_bytes("160MB"))))
    assert "iB" not in str(refused.value)


def test_more_of_anything_needs_more():
    """Blocks, threads, prefetch and what the solver holds all count."""
    for more in (
        {"block": 80 * MB}, {"encoded": 20 * MB}, {"threads": 2}, {"prefetch": 2},
        {"baseline": 200 * MB}, {"needs": Needs(work=MB)}, {"needs": Needs(part=MB)},
    ):  # fmt: skip
        assert replace(PLAN, **more).streaming > PLAN.streaming


def test_pinned_blocks_take_what_is_left():
    """Pinned and streamed blocks together stay within the promise."""
    assert PLAN.streaming + PLAN.pinned <= PLAN.limit
    assert replace(PLAN, limit=PLAN.streaming).pinned == 0


def test_a_fit_is_refused_before_it_reads(tmp_path):
    """A promise that is too small is refused with the limit to give, and with it the fit runs."""
    X = np.random.default_rng(0).standard_normal((50_000, 20))
    ds = write_dataset(tmp_path / "a.zarr", X, (X[:, 0] > 0).astype(int), chunks=25_000)
    events = []
    with (
        Engine(Threads(1), memory_limit="20MB", callbacks=[events.append]),
        pytest.raises(MemoryError, match=r"raise memory_limit to \d+MB") as refused,
    ):
        LogisticRegression().fit(ds)
    assert events == []
    needed = int(str(refused.value).partition("raise memory_limit to ")[2].partition("MB")[0])
    with Engine(Threads(1), memory_limit=f"{needed + 20}MB"):  # this process grows between the two
        assert LogisticRegression().fit(ds).certificate_.relative <= 1e-4


def test_the_plan_counts_the_slots():
    """A plan is for the process with most threads."""
    one, four = (Engine(Threads(n)).open(Made(1000, 10), Needs()).plan for n in (1, 4))
    assert (one.threads, four.threads) == (1, 4)


@pytest.mark.cluster
def test_workers_never_load_scikit_learn(tmp_path):
    """A fit, scores and predictions leave workers without scikit-learn, for which no plan has room.

    Both kinds of predictions: streamed, and as a lazy Dask array.
    """
    X = np.random.default_rng(0).standard_normal((1000, 5))
    labels = np.where(X[:, 0] > 0, "yes", "no")
    ds = write_dataset(tmp_path / "a.zarr", X, labels, chunks=100)
    with workers(1) as client, Engine(client):
        for model in (LogisticRegression(), SGDClassifier(loss="log_loss", max_iter=1, tol=None)):
            model.fit(ds)
            assert model.score(ds) > 0.9
            model.predict(ds, out=str(tmp_path / f"{type(model).__name__}.zarr"))
            client.compute(model.predict_proba(ds)).result()
        for model in (PCA(1, svd_solver="randomized"), NMF(2, tol=0.1)):
            rows = write_dataset(tmp_path / f"{type(model).__name__}.zarr", X**2, chunks=100)
            client.compute(model.fit_transform(rows)).result()
        loaded = client.run(lambda: {name.partition(".")[0] for name in sys.modules})
    assert not set.union(*loaded.values()) & {"sklearn", "pandas", "matplotlib"}


def fit_within(smallest, fit):
    """Fit within the smallest limit that refusals lead to, raised from `smallest` MB; in MB."""
    while True:
        try:
            fit(smallest)
        except MemoryError as refused:
            smallest = int(str(refused).partition("raise memory_limit to ")[2].partition("MB")[0])
        else:
            return smallest


@pytest.mark.cluster
def test_what_was_fitted_once_can_be_used_and_fitted_again(tmp_path):
    """In the same workers and within the same promise, which scores and predictions keep, too."""
    X = np.random.default_rng(0).standard_normal((200_000, 50), dtype=np.float32)
    ds = write_dataset(tmp_path / "a.zarr", X, (X[:, 0] > 0).astype(int), chunks=40_000)
    with workers(2) as client:

        def fit(limit):
            with Engine(client, memory_limit=f"{limit}MB"):
                return LogisticRegression(tol=1e-6).fit(ds)

        limit = fit_within(100, fit) + 8
        for i in range(4):
            model = fit(limit)
            with Engine(client, memory_limit=f"{limit}MB"):
                assert model.score(ds) > 0.9
                model.predict(ds, out=str(tmp_path / f"{i}.zarr"))
        assert max(fit(limit).peak_memory_.values()) <= limit * 1_000_000


@pytest.mark.cluster
def test_two_fits_at_once_keep_one_promise(tmp_path):
    """Blocks that one has pinned make room for the other; the data of both would not fit."""
    rng, limit = np.random.default_rng(0), 400_000_000
    X = rng.standard_normal((600_000, 100), dtype=np.float32)
    urls = []
    for k in range(2):
        name = tmp_path / f"{k}.zarr"
        urls.append(str(write_dataset(name, X, (X[:, k] > 0).astype(int), chunks=10_000).url))
    with workers(2) as client:

        def fit(url):
            with Engine(client, memory_limit=limit):
                return LogisticRegression(tol=1e-6).fit(url)

        alone = [fit(url) for url in urls]
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(fit, urls))
    for model, same in zip(both, alone, strict=True):
        assert model.coef_.tobytes() == same.coef_.tobytes()
        assert max(model.peak_memory_.values()) <= limit


KILLED = """
import os, signal, sys
from dask.distributed import Client
from daskdml import Engine, LogisticRegression
from daskdml.events import PassEnd

passes = []

def heard(event):
    if isinstance(event, PassEnd) and event.label.endswith("-newton"):  # over all rows
        passes.append(event)
    if len(passes) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

with Engine(Client(sys.argv[1]), memory_limit=int(sys.argv[3]), callbacks=[heard]):
    LogisticRegression(tol=1e-12).fit(sys.argv[2])
"""


@pytest.mark.cluster
def test_blocks_of_a_killed_client_make_room(tmp_path):
    """Its process told nobody that the fit was over: the next one finds memory free."""

    def kept():
        from daskdml.engine.cache import PINNED

        return sum(shelf.used for shelf in PINNED._shelves.values())

    X = np.random.default_rng(0).standard_normal((600_000, 100), dtype=np.float32)
    name, limit = tmp_path / "a.zarr", 500_000_000
    url = str(write_dataset(name, X, (X[:, 0] > 0).astype(int), chunks=10_000).url)
    with workers(2) as client:
        command = [sys.executable, "-c", KILLED, client.scheduler.address, url, str(limit)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert sum(client.run(kept).values()) > 80_000_000
        with Engine(client, memory_limit=limit):
            model = LogisticRegression(tol=1e-6).fit(url)
        assert max(client.run(kept).values()) == 0
        assert max(model.peak_memory_.values()) <= limit
        assert model.plan_.pinned > 80_000_000


@pytest.mark.cluster
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_neighbours_memory_is_its_own(when, tmp_path):
    """What it holds before the plan counts as in use; what it takes later comes on top, alone."""
    X = np.random.default_rng(0).standard_normal((600_000, 100), dtype=np.float32)
    name, limit, theirs = tmp_path / "a.zarr", 560_000_000, 160_000_000
    url = str(write_dataset(name, X, (X[:, 0] > 0).astype(int), chunks=10_000).url)

    def fit(client, callbacks=()):
        with Engine(client, memory_limit=limit, callbacks=callbacks):
            return LogisticRegression(tol=1e-6).fit(url)

    with workers(1) as client:
        alone, held = fit(client), []

        def hold(_=None):
            if not held:
                held.append(client.submit(np.ones, theirs // 8, pure=False))

        if when == "before":
            hold()
            held[0].result(timeout=60)
        model = fit(client, [hold])
        assert held[0].status == "finished"
    assert model.coef_.tobytes() == alone.coef_.tobytes()
    more = model.plan_.baseline - alone.plan_.baseline
    if when == "before":
        assert more > 0.7 * theirs
        assert max(model.peak_memory_.values()) <= limit
    else:
        assert max(model.peak_memory_.values()) <= limit + theirs


COLD = """
import sys
from daskdml import Engine, LogisticRegression, SGDClassifier
from tests.conftest import workers
from tests.engine.test_memory import fit_within

def main():
    kinds = {{"rows": SGDClassifier(max_iter=2, tol=None), "sgd": LogisticRegression(solver="sgd")}}
    model = kinds[{kind!r}]
    with workers(1) as client:
        def fit(limit):
            with Engine(client, memory_limit=f"{{limit}}MB"):
                model.fit({url!r})
        fit_within(100, fit)
    peak = max(model.peak_memory_.values())
    assert peak <= model.plan_.limit, (peak, model.plan_)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["rows", "sgd"])
def test_compiling_breaks_no_promise(kind, tmp_path):
    """Where Numba's cache is empty, kernels are compiled before the plan, not on top of it."""
    X = np.random.default_rng(0).standard_normal((100_000, 50), dtype=np.float32)
    url = str(write_dataset(tmp_path / "a.zarr", X, (X[:, 0] > 0).astype(int), chunks=20_000).url)
    script = tmp_path / "cold.py"
    script.write_text(COLD.format(kind=kind, url=url))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=800, check=False,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


CAP = 650_000_000  # of data mappings: beside resident memory, stacks and arenas not yet used
FIT = """
import json, resource, sys
import numpy as np
import daskdml as dml
from daskdml.io import open_dataset

CAP = {cap}

def cap(megabytes=CAP):
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes, megabytes))

def main():
    ds = open_dataset({url!r})
    where = {where!r}
    if where == "threads":
        cap()
        try:
            ds.read(0, len(ds))
            raise SystemExit("the whole array fits: the cap proves nothing")
        except MemoryError:
            pass
        clf = fit(None, ds)
    else:
        from distributed import Client, LocalCluster
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                          memory_limit="1GB") as cluster, Client(cluster) as client:
            client.run(cap)
            def whole(ds=ds):
                try:
                    ds.read(0, len(ds))
                except MemoryError:
                    return True
            assert all(client.run(whole).values()), "the whole array fits: the cap proves nothing"
            clf = fit(client, ds)
    print(json.dumps({{
        "relative": float(clf.certificate_.relative), "limit": clf.plan_.limit,
        "peaks": list(clf.peak_memory_.values()), "score": clf.score(ds),
    }}))

def fit(client, ds):
    with dml.Engine(client, memory_limit={limit!r}):
        return dml.LogisticRegression(tol=1e-6).fit(ds)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """2.6 GB of rows, written block by block: four times the cap."""
    url = tmp_path_factory.mktemp("large") / "large.zarr"
    rng = np.random.default_rng(0)
    base = np.round(rng.standard_normal((40_000, 100)), 1).astype("f4")

    def blocks():
        for i in range(163):
            X = np.roll(base, 397 * i, axis=0)
            X = X * np.float32(1 + i / 100)
            z = X[:, 0] - X[:, 1] + 0.5 * X[:, 2] + rng.logistic(size=len(X))
            yield X, (z > 0).astype("i1")

    return write_dataset(url, blocks(), chunks=20_000).url


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["threads", pytest.param("cluster", marks=pytest.mark.cluster)])
def test_a_fit_under_a_hard_cap(where, large, tmp_path):
    """Data four times the cap, which cannot be loaded whole, is fitted and scored within it."""
    script = tmp_path / "fit.py"
    script.write_text(FIT.format(cap=CAP, url=str(large), where=where, limit="450MB"))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=800, check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # it maps 32 MB for each of its threads
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["relative"] <= 1e-6 and found["score"] > 0.7
    assert max(found["peaks"]) <= found["limit"], found
