"""NMF: scikit-learn's conventions and objective, on rows of any kind."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from sklearn import decomposition
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

import daskdml.engine.run
from daskdml import NMF, Engine
from daskdml.engine.run import Inline, Threads
from daskdml.io import write_dataset

RNG = np.random.default_rng(0)
X = RNG.random((600, 5)) @ (RNG.random((5, 20)) * (RNG.random((5, 20)) < 0.5))
X = np.maximum(X + 0.1 * RNG.standard_normal(X.shape), 0.0)


@parametrize_with_checks([NMF(), NMF(1, init="nndsvd"), NMF(2, init="random", alpha_W=0.01)])
def test_sklearn_conventions(estimator, check):
    """Every check that scikit-learn makes of an estimator passes."""
    check(estimator)


def objective(model, W, H):
    """scikit-learn's objective, in float64."""
    alpha_H = model.alpha_W if model.alpha_H == "same" else model.alpha_H
    r = model.l1_ratio

    def penalty(A):
        return r * A.sum() + (1 - r) / 2 * np.sum(A**2)

    n, d = X.shape
    squares = 0.5 * np.sum((X - W @ H) ** 2)
    return squares + d * model.alpha_W * penalty(W) + n * alpha_H * penalty(H)


@pytest.mark.parametrize("init", ["random", "nndsvd", "nndsvda", "nndsvdar"])
@pytest.mark.parametrize(
    "penalties",
    [{}, {"alpha_W": 0.01, "l1_ratio": 0.5}, {"alpha_W": 0.02, "alpha_H": 0.001, "l1_ratio": 1.0}],
)
def test_objective_is_no_worse_than_scikit_learns(penalties, init, tmp_path):
    """Of its objective, with and without penalties; told truly, and at a stationary point."""
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=130)
    ours = NMF(5, init=init, random_state=0, max_iter=500, **penalties).fit(ds)
    theirs = decomposition.NMF(
        5, init=init, random_state=0, max_iter=5000, tol=1e-6, **penalties
    ).fit(X)
    W, H = ours.transform(X), ours.components_
    f = objective(ours, W, H)
    assert H.sum(axis=1).min() > 0  # no component is lost
    assert H.min() >= 0 and W.min() >= 0
    assert f <= 1.001 * objective(ours, theirs.transform(X), theirs.components_)
    assert ours.reconstruction_err_ == pytest.approx(np.linalg.norm(X - W @ H), rel=1e-9)
    assert ours.history_[-1].objective == pytest.approx(f, rel=1e-9)
    n, alpha_H = len(X), penalties.get("alpha_H", ours.alpha_W)
    l1 = n * alpha_H * ours.l1_ratio
    g = W.T @ (W @ H - X) + l1 + n * alpha_H * (1 - ours.l1_ratio) * H
    norm = np.linalg.norm(np.where(H > 0, g, np.minimum(g, 0)))
    first = next(r.gradient for r in ours.history_ if r.gradient is not None)
    assert norm / first == pytest.approx(ours.stationarity_, rel=1e-6)
    assert ours.stationarity_ <= ours.tol


def test_transform_equals_scikit_learns():
    """W of the plain estimator, which stops earlier than at the optimum, is near ours."""
    ours = NMF(4, random_state=0, alpha_W=0.001).fit(X)
    plain = ours.to_sklearn().set_params(tol=1e-10, max_iter=5000)
    W = ours.transform(X)
    np.testing.assert_allclose(plain.transform(X), W, atol=1e-5)
    np.testing.assert_allclose(ours.inverse_transform(W), plain.inverse_transform(W))


def test_kinds_of_input_and_output(tmp_path):
    """Lazy for what is not in memory, streamed with `out`, and the same from fit_transform."""
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=130)
    model = NMF(4, random_state=0)
    W = model.fit_transform(X)
    H = model.components_
    np.testing.assert_allclose(W, model.transform(X), rtol=1e-12)
    lazy = model.fit_transform(ds)
    assert isinstance(lazy, da.Array) and lazy.shape == (600, 4)
    np.testing.assert_allclose(model.components_, H, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(lazy.compute(), W, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(model.inverse_transform(lazy).compute(), W @ H, rtol=1e-5)
    streamed = model.fit_transform(ds, out=str(tmp_path / "w.zarr"))
    np.testing.assert_allclose(streamed[:], W, rtol=1e-5, atol=1e-8)
    single = NMF(4, random_state=0).fit(X.astype("f4"))
    assert single.reconstruction_err_ == pytest.approx(model.reconstruction_err_, rel=1e-3)


@pytest.mark.parametrize("init", ["random", "nndsvda"])
def test_the_same_bits(init, tmp_path, monkeypatch, two_workers):
    """The bits depend on the seed, and not on who works on the rows."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)
    ds = write_dataset(tmp_path / "a.zarr", X.astype("f4"), chunks=50)
    found = set()
    for client in (Inline(), Threads(3), two_workers):
        with Engine(client):
            model = NMF(3, init=init, random_state=0, tol=1e-2).fit(ds)
        found.add(model.components_.tobytes() + np.float64(model.reconstruction_err_).tobytes())
        assert model.n_passes_ == len(model.history_) > model.n_iter_
    assert len(found) == 1


def test_bad_input(tmp_path):
    """Negative values are named by row and column, the first of all; as are other mistakes."""
    bad = X.copy()
    bad[[400, 250], [3, 7]] = -1e-3
    ds = write_dataset(tmp_path / "a.zarr", bad, chunks=100)
    said = "Negative values in data passed to NMF: first in row 250, column 7"
    for rows in (ds, bad, da.from_array(bad, chunks=(100, 20))):
        with pytest.raises(ValueError, match=said):
            NMF(2).fit(rows)
    model = NMF(2, random_state=0).fit(X)
    with pytest.raises(ValueError, match=said):
        model.transform(bad)
    with pytest.raises(ValueError, match=r"in row (250, column 7|400, column 3) of"):
        model.transform(ds).compute()
    with pytest.raises(ValueError, match="needs n_components of at most 20"):
        NMF(21, init="nndsvd").fit(X)
    with pytest.warns(ConvergenceWarning, match="max_iter=3"):
        NMF(3, random_state=0, max_iter=3).fit(X)
    with pytest.raises(MemoryError, match="memory_limit"), Engine(memory_limit="1MB"):
        NMF(2).fit(write_dataset(tmp_path / "b.zarr", X, chunks=100))


def test_rows_without_anything():
    """Rows of zeros have no coefficients, and a matrix of zeros no components."""
    rows = X.copy()
    rows[5] = 0.0
    assert not NMF(3, random_state=0).fit_transform(rows)[5].any()
    nothing = NMF(2, random_state=0).fit(np.zeros((6, 4)))
    assert nothing.reconstruction_err_ == 0.0 and nothing.stationarity_ == 0.0
