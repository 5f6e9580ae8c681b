"""Newton's method: warm starts that help or mislead, passes, records."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

import daskdml.engine.run
import daskdml.solvers.newton
from daskdml import LogisticRegression, Ridge
from daskdml.io import write_dataset


@pytest.fixture(autouse=True)
def many_groups(monkeypatch):
    """Each chunk is a group, so that some of them are a sample."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)


def data(n_classes):
    """Noisy classes in correlated features."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40_000, 8)) @ rng.standard_normal((8, 8)) * np.geomspace(0.1, 10, 8)
    z = X / X.std(axis=0) @ rng.standard_normal((8, n_classes))
    return X.astype("f4"), (z + 2 * rng.gumbel(size=z.shape)).argmax(axis=1)


def fit(url, X, y, **parameters):
    """Fit to a data set of twenty chunks; a warning is an error."""
    ds = write_dataset(url, X, y, chunks=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        return LogisticRegression(solver="newton", **parameters).fit(ds)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_sample_saves_passes(n_classes, tmp_path):
    """From the sample's solution, two passes over all rows certify a gap of 1e-4, four of 1e-9."""
    X, y = data(n_classes)
    assert fit(tmp_path / "a.zarr", X, y).n_iter_ <= 2
    assert fit(tmp_path / "b.zarr", X, y, tol=1e-9).n_iter_ <= 4


@pytest.mark.parametrize("n_classes", [2, 4])
def test_rows_sorted_by_class(n_classes, tmp_path):
    """Where groups hold one class each, so that any sample misleads, few passes still do."""
    X, y = data(n_classes)
    order = np.argsort(y, kind="stable")
    sorted_fit = fit(tmp_path / "a.zarr", X[order], y[order], tol=1e-9)
    plain = fit(tmp_path / "b.zarr", X, y, tol=1e-9)
    assert sorted_fit.n_iter_ <= 12
    assert np.allclose(sorted_fit.coef_, plain.coef_, rtol=1e-2, atol=1e-4)
    assert np.isclose(sorted_fit.certificate_.objective, plain.certificate_.objective, rtol=1e-8)


def test_rows_that_drift(tmp_path):
    """Where the features' sizes drift a hundredfold along the rows, few passes still do."""
    X, y = data(2)
    drift = np.geomspace(0.1, 10, len(X))[:, None].astype("f4")
    assert fit(tmp_path / "a.zarr", X * drift, y, tol=1e-9).n_iter_ <= 12


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("factors", [(0.1,), (5.0,), (1.0, 0.1)])
def test_hessians_of_an_unlike_part(factors, solver, tmp_path, monkeypatch):
    """Where Hessians are of rows unlike the rest, a step that misses brings those of all rows."""
    monkeypatch.setattr(daskdml.solvers.newton, "ROWS_PER_PARAMETER", 100)
    rng = np.random.default_rng(0)
    n, chunk = 120_000, 8000
    X = rng.standard_normal((n, 6))
    first = np.arange(n) % chunk < 1024  # of each group: they alone are in a part's Hessian
    X[first] *= np.resize(factors, 6)
    y = (X @ rng.standard_normal(6) + rng.logistic(size=n) > 0).astype(int)
    ds = write_dataset(tmp_path / "a.zarr", X, y, chunks=chunk)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = LogisticRegression(solver=solver, tol=1e-8).fit(ds)
    assert model.n_iter_ <= 7


def test_the_history_tells_each_pass(tmp_path):
    """One record for each pass, whose bytes and seconds only grow, and which end at the gap."""
    X, y = data(2)
    model = fit(tmp_path / "a.zarr", X, y, tol=1e-9)
    records = list(model.history_)
    passes = [r for r in records if r.gap is not None]
    assert len(passes) == model.n_iter_
    for a, b in pairwise(records):
        assert a.seconds <= b.seconds and a.nbytes <= b.nbytes and a.passes <= b.passes
    assert records[-1].nbytes <= model.bytes_read_
    assert min(r.gap for r in passes) == model.certificate_.gap
    assert model.n_passes_ == pytest.approx(records[-1].passes)


def test_least_squares_take_one_step(tmp_path):
    """A quadratic objective is solved by its first pass, certified by the same."""
    X, y = data(2)
    ds = write_dataset(tmp_path / "a.zarr", X, y.astype("f8"), chunks=2000)
    model = Ridge().fit(ds)
    assert model.n_iter_ == 1 and model.certificate_.relative < 1e-9
