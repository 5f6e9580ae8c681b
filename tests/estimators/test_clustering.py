"""KMeans and MiniBatchKMeans: scikit-learn's conventions, on rows of any kind, with equal bits."""

from __future__ import annotations

import os
import pickle
import signal

import dask.array as da
import numpy as np
import pytest
import zarr
from sklearn import cluster
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import daskdml.engine.run
from daskdml import Engine, KMeans, MiniBatchKMeans
from daskdml.engine.run import Inline, Threads
from daskdml.events import BlockEnd
from daskdml.io import write_dataset
from tests.conftest import workers

RNG = np.random.default_rng(0)
MEANS = RNG.standard_normal((9, 6)) * 4
OF = RNG.integers(0, 9, 4000)
X = MEANS[OF] + RNG.standard_normal((4000, 6)) + 50
MODELS = {
    "kmeans": KMeans(9, random_state=0),
    "random": KMeans(9, init="random", n_init=3, random_state=1),
    "array": KMeans(9, init=X[:9], tol=0),
    "minibatch": MiniBatchKMeans(9, batch_size=64, random_state=0),
}


@parametrize_with_checks([KMeans(), MiniBatchKMeans()])
def test_sklearn_conventions(estimator, check):
    """Every check that scikit-learn makes of an estimator passes."""
    check(estimator)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_equals_scikit_learn_from_the_same_centers(dtype, tmp_path):
    """Centers, inertia, labels, distances and score, whatever the rows come from."""
    rows = X.astype(dtype)
    ds = write_dataset(tmp_path / "a.zarr", rows, chunks=700)
    array = zarr.create_array(str(tmp_path / "b.zarr"), data=rows, chunks=(900, 6))
    theirs = cluster.KMeans(9, init=X[:9], n_init=1, tol=0).fit(rows.astype("f8"))
    for given in (ds, ds.url, array, da.from_array(rows, chunks=(1000, 3)), rows):
        ours = KMeans(9, init=X[:9], tol=0).fit(given)
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-6)
        np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol=1e-6)
        np.testing.assert_allclose(-ours.score(given), ours.inertia_, rtol=1e-12)
        assert ours.n_iter_ == theirs.n_iter_ and ours.n_passes_ == theirs.n_iter_
        assert isinstance(ours.labels_, np.ndarray if given is rows else da.Array)
        np.testing.assert_array_equal(np.asarray(ours.labels_), theirs.labels_)
        np.testing.assert_array_equal(np.asarray(ours.predict(given)), theirs.labels_)
        distances = theirs.transform(rows.astype("f8"))
        np.testing.assert_allclose(np.asarray(ours.transform(given)), distances, rtol=1e-5)
        assert [r.objective for r in ours.history_][-1] == ours.inertia_


@pytest.mark.parametrize("kind", ["kmeans", "minibatch"])
def test_finds_what_is_there(kind, tmp_path):
    """Nine clusters, each in chunks of its own, are found again, in few passes."""
    ds = write_dataset(tmp_path / "a.zarr", X[np.argsort(OF, kind="stable")], chunks=400)
    model = pickle.loads(pickle.dumps(MODELS[kind].fit(ds)))
    assert adjusted_rand_score(np.sort(OF), model.labels_.compute()) > 0.95
    best = cluster.KMeans(9, n_init=10, random_state=0).fit(X).inertia_
    assert model.inertia_ <= best * (1.01 if kind == "minibatch" else 1 + 1e-5)
    assert model.n_passes_ <= 6


def test_a_sample_of_the_rows(tmp_path, monkeypatch):
    """Where the sample is a part of the rows, the end is that of all rows."""
    monkeypatch.setattr("daskdml.solvers.kmeans.SAMPLE_ROWS", 10)
    monkeypatch.setattr("daskdml.solvers.kmeans.SAMPLE_BYTES", 1)
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=400)
    model = KMeans(9, tol=0, random_state=0).fit(ds)
    best = cluster.KMeans(9, n_init=10, tol=0, random_state=0).fit(X).inertia_
    np.testing.assert_allclose(model.inertia_, best, rtol=1e-9)
    assert model.history_[0].label == "kmeans-sample"


def test_weights_are_repeats(tmp_path):
    """Weights in the data set, weights given, and repeated rows give the same clusters."""
    s = RNG.integers(0, 4, len(X))
    repeated = KMeans(9, random_state=0).fit(np.repeat(X, s, axis=0))
    ds = write_dataset(tmp_path / "a.zarr", X, sample_weight=s.astype("f8"), chunks=700)
    for model in (
        KMeans(9, random_state=0).fit(X, sample_weight=s),
        KMeans(9, random_state=0).fit(ds),
    ):
        np.testing.assert_allclose(model.cluster_centers_, repeated.cluster_centers_, rtol=1e-9)
        np.testing.assert_allclose(model.inertia_, repeated.inertia_, rtol=1e-9)
    np.testing.assert_allclose(-model.score(X, sample_weight=s), model.inertia_, rtol=1e-9)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Rows in twenty chunks."""
    path = tmp_path_factory.mktemp("bits") / "a.zarr"
    return write_dataset(path, X.astype("f4"), chunks=200)


@pytest.fixture
def many_groups(monkeypatch):
    """Each chunk is a task of its own."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)


def fitted(kind, rows, runner, **kwargs):
    """What must have the same bits."""
    from sklearn.base import clone

    with Engine(runner, **kwargs):
        model = clone(MODELS[kind]).fit(rows)
    seen = [r.objective for r in model.history_]
    return model.cluster_centers_.tobytes(), model.inertia_, seen, model.n_iter_


@pytest.mark.cluster
@pytest.mark.parametrize("kind", MODELS)
def test_the_same_bits_anywhere(kind, stored, many_groups, two_workers):
    """Inline, on threads, on worker processes, with all rows pinned or none."""
    expected = fitted(kind, stored, Inline())
    for runner in (Threads(1), Threads(2), Threads(4), two_workers):
        assert fitted(kind, stored, runner) == expected
    tight = fitted(kind, stored, Inline(), memory_limit=_smallest(kind, stored))
    assert tight == expected


def _smallest(kind, rows):
    """A promise that leaves no room for pinned blocks."""
    with pytest.raises(MemoryError) as refused:
        fitted(kind, rows, Inline(), memory_limit="1MB")
    stated = int(str(refused.value).partition("raise memory_limit to ")[2].partition("MB")[0])
    return f"{stated + 20}MB"


@pytest.mark.cluster
@pytest.mark.slow
def test_the_same_bits_on_four_workers(stored, many_groups):
    """Four worker processes get the bits of none."""
    with workers(4) as client:
        for kind in MODELS:
            assert fitted(kind, stored, client) == fitted(kind, stored, Inline())


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["kmeans", "minibatch"])
def test_a_worker_killed(kind, stored, many_groups):
    """A worker that dies in the middle of a pass costs time, not bits."""
    seen = []
    with workers(2) as client:
        pids = client.run(os.getpid)

        def kill(event):
            seen.append(isinstance(event, BlockEnd))
            if seen[-1] and sum(seen) == 27:
                os.kill(pids[event.worker], signal.SIGKILL)

        assert fitted(kind, stored, client, callbacks=[kill]) == fitted(kind, stored, Inline())
        assert sum(seen) > 27


def test_kinds_of_output(tmp_path):
    """Streamed with `out`; named columns; the plain estimator predicts the same."""
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=700)
    for model in (KMeans(4, random_state=0), MiniBatchKMeans(4, random_state=0)):
        labels = model.fit(ds).predict(X)
        name = type(model).__name__
        streamed = model.predict(ds, out=str(tmp_path / f"{name}.zarr"))
        assert streamed.dtype == np.int32
        np.testing.assert_array_equal(streamed[:], labels)
        np.testing.assert_array_equal(model.fit_predict(X), model.predict(X))
        np.testing.assert_array_equal(model.to_sklearn().predict(X), model.predict(X))
        frame = model.set_output(transform="pandas").transform(X)
        assert list(frame.columns) == [f"{name.lower()}{k}" for k in range(4)]


def test_partial_fit(tmp_path):
    """Blocks one after the other: a center is the mean of all rows that were ever nearest to it."""
    model = MiniBatchKMeans(9, batch_size=100, random_state=0)
    for start in range(0, len(X), 500):
        model.partial_fit(X[start : start + 500])
        assert len(model.labels_) == 500
    model.partial_fit(X[:3])  # fewer rows than clusters, once there are centers
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=700)
    model.partial_fit(ds)
    assert adjusted_rand_score(OF, model.predict(X)) > 0.95 and not hasattr(model, "inertia_")
    total = model.partial_fit(X)._state.weights.sum()
    assert total == 500 + len(X) * 3 + 3  # the first rows were the sample, too


def test_one_batch_from_given_centers():
    """The first batch moves each center to the mean of its rows, as one step of Lloyd's does."""
    start = X[:9]
    batch = MiniBatchKMeans(9, init=start, batch_size=4000, max_iter=1).fit(X)
    step = cluster.KMeans(9, init=start, n_init=1, max_iter=1).fit(X)
    np.testing.assert_allclose(batch.cluster_centers_, step.cluster_centers_, rtol=1e-9)


def test_bad_input(tmp_path):
    """What is wrong is named before or where it is found."""
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=700)
    for kind in (KMeans, MiniBatchKMeans):
        with pytest.raises(ValueError, match=r"n_samples=5 should be >= n_clusters=8: a has"):
            kind().fit(ds[:5])
        with pytest.raises(ValueError, match=r"init has shape \(3, 5\).* need \(3, 6\)"):
            kind(3, init=np.zeros((3, 5))).fit(ds)
        with pytest.raises(ValueError, match="init contains NaN"):
            kind(1, init=np.full((1, 6), np.nan)).fit(ds)
        with pytest.raises(ValueError, match="'init' parameter of"):
            kind(init="far").fit(ds)
        with pytest.raises(MemoryError, match="memory_limit"), Engine(memory_limit="1MB"):
            kind().fit(ds)
        model = kind(2).fit(ds)
        for method in (model.predict, model.transform, model.score):
            with pytest.raises(ValueError, match=r"5 features, but .* expecting 6"):
                method(da.ones((10, 5), chunks=5))
        bad = X.copy()
        bad[1234, 5] = bad[2345, 1] = np.nan
        url = str(tmp_path / f"{kind.__name__}.zarr")
        stored = write_dataset(url, bad, chunks=700)
        for given in (X[:2], "k-means++"):
            with pytest.raises(ValueError, match="row 1234, column 5"):
                kind(2, init=given).fit(stored)
        with pytest.raises(ValueError, match=r"sample_weight is negative.* row 7"):
            kind(2).fit(ds, sample_weight=np.where(np.arange(4000) == 7, -1.0, 1.0))
        with pytest.raises(ValueError, match="sample_weight is 0 for all rows"):
            kind(2).fit(ds, sample_weight=np.zeros(4000))
    with pytest.warns(ConvergenceWarning, match="only 2 of n_clusters=3"):
        KMeans(3).fit(np.repeat(X[:2], 5, axis=0))
