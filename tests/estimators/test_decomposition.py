"""PCA: scikit-learn's conventions and components, on rows of any kind."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from sklearn import decomposition
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import daskdml.engine.run
from daskdml import PCA, Engine, LogisticRegression, TruncatedSVD
from daskdml.engine.run import Inline, Threads
from daskdml.io import write_dataset

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3000, 12)) @ RNG.standard_normal((12, 12)) + 50


RANDOM = {"n_oversamples": 3, "random_state": 0}
MODELS = [
    PCA(),
    TruncatedSVD(),
    PCA(1, svd_solver="randomized", **RANDOM),
    TruncatedSVD(1, algorithm="randomized", **RANDOM),
]


@parametrize_with_checks(MODELS)
def test_sklearn_conventions(estimator, check):
    """Every check that scikit-learn makes of an estimator passes."""
    check(estimator)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("n_components", [None, 3, 0.9])
def test_equals_scikit_learn(n_components, whiten, dtype, tmp_path):
    """Components, variances and coordinates, from a data set and from memory."""
    rows = X.astype(dtype)
    ds = write_dataset(tmp_path / "a.zarr", rows, chunks=700)
    theirs = decomposition.PCA(n_components, whiten=whiten, svd_solver="full").fit(
        rows.astype("f8")
    )
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype == "f4" else {"rtol": 1e-8, "atol": 1e-8}
    for given in (ds, rows):
        ours = PCA(n_components, whiten=whiten).fit(given)
        for name in (
            "components_", "explained_variance_", "explained_variance_ratio_", "mean_",
            "singular_values_", "noise_variance_",
        ):  # fmt: skip
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), **tolerance)
        assert (ours.n_components_, ours.n_samples_) == (theirs.n_components_, 3000)
        Z = np.asarray(ours.transform(given))
        np.testing.assert_allclose(Z, theirs.transform(rows), **tolerance)
        np.testing.assert_allclose(
            ours.inverse_transform(Z), theirs.inverse_transform(Z), rtol=1e-4
        )


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_truncated_svd_equals_scikit_learn(dtype, tmp_path):
    """Components, singular values, variances and coordinates of rows that are not centred."""
    rows = (X - 45).astype(dtype)
    ds = write_dataset(tmp_path / "a.zarr", rows, chunks=700)
    theirs = decomposition.TruncatedSVD(4, algorithm="arpack", random_state=0).fit(
        rows.astype("f8")
    )
    tolerance = {"rtol": 2e-4, "atol": 1e-3} if dtype == "f4" else {"rtol": 1e-7, "atol": 1e-7}
    for given in (ds, rows):
        ours = TruncatedSVD(4).fit(given)
        for name in (
            "components_", "singular_values_", "explained_variance_", "explained_variance_ratio_",
        ):  # fmt: skip
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), **tolerance)
        Z = np.asarray(ours.transform(given))
        np.testing.assert_allclose(Z, theirs.transform(rows), **tolerance)
        np.testing.assert_allclose(
            ours.inverse_transform(Z), theirs.inverse_transform(Z), **tolerance
        )
    with pytest.raises(ValueError, match="n_components=13 must be at most 12"):
        TruncatedSVD(13).fit(ds)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("whiten", [False, True])
def test_randomized_pca(whiten, dtype, tmp_path):
    """The randomized route finds the same components, variances and mean as the exact one."""
    rows = X.astype(dtype)
    ds = write_dataset(tmp_path / "a.zarr", rows, chunks=700)
    theirs = decomposition.PCA(3, whiten=whiten, svd_solver="full").fit(rows.astype("f8"))
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype == "f4" else {"rtol": 1e-7, "atol": 1e-7}
    for given in (ds, rows):
        ours = PCA(3, whiten=whiten, svd_solver="randomized", tol=1e-13, **RANDOM).fit(given)
        for name in (
            "components_", "explained_variance_", "explained_variance_ratio_", "mean_",
            "singular_values_", "noise_variance_",
        ):  # fmt: skip
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), **tolerance)
        assert len(ours.history_) == ours.n_passes_ == ours.n_iter_
        np.testing.assert_allclose(
            np.asarray(ours.transform(given)), theirs.transform(rows), **tolerance
        )
    assert PCA(3).fit(ds).certificate_ is None


def test_randomized_svd(tmp_path):
    """So it does without centring; and passes can be given by number."""
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=700)
    exact = TruncatedSVD(4, algorithm="covariance_eigh").fit(ds)
    ours = TruncatedSVD(4, algorithm="randomized", tol=1e-13, **RANDOM).fit(ds)
    for name in (
        "components_", "singular_values_", "explained_variance_", "explained_variance_ratio_",
    ):  # fmt: skip
        np.testing.assert_allclose(getattr(ours, name), getattr(exact, name), rtol=1e-7, atol=1e-9)
    two = TruncatedSVD(2, algorithm="randomized", n_iter=1, **RANDOM).fit(ds)
    assert two.n_passes_ == 2


def test_the_same_bits_by_random_blocks(tmp_path, monkeypatch, two_workers):
    """The bits depend on the seed, and not on who works on the rows."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=100)
    found = set()
    for client in (Inline(), Threads(3), two_workers):
        with Engine(client):
            model = PCA(2, svd_solver="randomized", **RANDOM).fit(ds)
        found.add(model.components_.tobytes() + model.explained_variance_.tobytes())
    assert len(found) == 1


def test_routes(tmp_path):
    """Many features for few components take the randomized route; all components cannot."""
    wide = RNG.standard_normal((40, 1200)).astype("f4")
    ds = write_dataset(tmp_path / "a.zarr", wide, chunks=20)
    assert PCA(2, random_state=0).fit(ds).certificate_.rigorous
    assert TruncatedSVD(2, random_state=0).fit(ds).certificate_.relative <= 1e-6
    with pytest.raises(ValueError, match=r"needs n_components as a number .* it is 0\.9"):
        PCA(0.9, svd_solver="randomized").fit(ds)
    with pytest.warns(ConvergenceWarning, match="raise tol"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("daskdml.solvers.krylov.PASSES", 2)
        PCA(2, svd_solver="randomized", **RANDOM).fit(X)


def test_one_pass_and_the_same_bits(tmp_path, monkeypatch, two_workers):
    """The rows are read once, and the bits do not depend on who works on them."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=100)
    found = set()
    for client in (Inline(), Threads(3), two_workers):
        with Engine(client):
            model = PCA(2).fit(ds)
        assert model.n_passes_ == 1
        found.add(model.components_.tobytes() + model.explained_variance_.tobytes())
    assert len(found) == 1


def test_kinds_of_output(tmp_path):
    """Lazy for what is not in memory, streamed with `out`; in a pipeline, and named columns."""
    ds = write_dataset(tmp_path / "a.zarr", X, (X[:, 0] > 50).astype(int), chunks=700)
    model = PCA(3).fit(ds)
    exact = model.transform(X)
    lazy = model.transform(ds)
    assert isinstance(lazy, da.Array) and lazy.shape == (3000, 3)
    np.testing.assert_allclose(lazy.compute(), exact, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(
        model.inverse_transform(lazy).compute(), model.inverse_transform(exact)
    )
    streamed = model.transform(ds, out=str(tmp_path / "z.zarr"))
    np.testing.assert_allclose(streamed[:], exact, rtol=1e-12, atol=1e-9)
    frame = PCA(2).set_output(transform="pandas").fit(X).transform(X)
    assert list(frame.columns) == ["pca0", "pca1"]
    assert (
        make_pipeline(PCA(5), LogisticRegression()).fit(X, X[:, 0] > 50).score(X, X[:, 0] > 50)
        > 0.6
    )


@pytest.mark.parametrize("model", [PCA(3, whiten=True), PCA(0.9), TruncatedSVD(3)])
def test_to_sklearn(model):
    """The plain estimator gives the same coordinates, and the same rows back."""
    model.fit(X)
    plain, Z = model.to_sklearn(), model.transform(X)
    np.testing.assert_allclose(plain.transform(X), Z, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(plain.inverse_transform(Z), model.inverse_transform(Z))


@pytest.mark.parametrize("n_components", [4, 12])
def test_the_probabilistic_model(n_components, tmp_path):
    """Densities, covariance and precision are scikit-learn's; scores of a store, too."""
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=700)
    ours = PCA(n_components).fit(ds)
    theirs = decomposition.PCA(n_components, svd_solver="full").fit(X)
    for name in ("get_covariance", "get_precision"):
        expected = getattr(theirs, name)()
        np.testing.assert_allclose(
            getattr(ours, name)(), expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max()
        )
    expected = theirs.score_samples(X)
    np.testing.assert_allclose(ours.score_samples(X), expected, rtol=1e-7)
    np.testing.assert_allclose(ours.score_samples(ds).compute(), expected, rtol=1e-7)
    assert ours.score(X) == pytest.approx(theirs.score(X), rel=1e-9)
    assert ours.score(ds) == pytest.approx(theirs.score(X), rel=1e-9)
    flat = PCA(1).fit(np.outer(np.arange(5.0), [1.0, 2.0]))
    with pytest.raises(ValueError, match="keep fewer components"):
        flat.score(X[:, :2])


def test_bad_input(tmp_path):
    """Too many components, one row, and values that are no numbers are said before or where."""
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=700)
    with pytest.raises(ValueError, match="n_components=13 must be at most 12"):
        PCA(13).fit(ds)
    with pytest.raises(ValueError, match="minimum of 2"):
        PCA().fit(ds[:1])
    bad = X.copy()
    bad[1234, 5] = np.nan
    with pytest.raises(ValueError, match="row 1234, column 5"):
        PCA().fit(write_dataset(tmp_path / "b.zarr", bad, chunks=700))
    with pytest.raises(MemoryError, match="memory_limit"), Engine(memory_limit="1MB"):
        PCA().fit(ds)
    constant = PCA(1).fit(np.ones((5, 2)))
    assert constant.explained_variance_ratio_ == [0.0]
