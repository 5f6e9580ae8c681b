"""L-BFGS: certificates on rows of which only a part is preconditioned by, and its passes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

import daskdml.engine.run
import daskdml.solvers.lbfgs
import daskdml.solvers.precondition
from daskdml import LogisticRegression
from daskdml.io import write_dataset

TOLS = (1e-1, 1e-4, 1e-8)


@pytest.fixture(autouse=True)
def many_groups(monkeypatch):
    """Each chunk is a group, so that some of them are a sample."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)


def data(rows, n_classes):
    """Noisy classes: in features without structure, correlated ones, drifting or sorted rows."""
    rng, n, d = np.random.default_rng(0), 40_000, 15
    X = rng.standard_normal((n, d))
    if rows == "correlated":
        X = X @ rng.standard_normal((d, d)) * np.geomspace(0.1, 10, d)
    if rows == "ill-conditioned":
        X = X * np.geomspace(1, 1e-4, d) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    if rows == "drifting":
        X *= np.geomspace(0.1, 10, n)[:, None]
    z = 0.5 * (X / X.std(axis=0)) @ rng.standard_normal((d, n_classes))
    y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    if rows == "sorted":
        order = np.argsort(y, kind="stable")
        X, y = X[order], y[order]
    return X.astype("f4"), y


def gap_over_truth(model, best):
    """Give the certified gap over the true one, where that is more than round-off."""
    true = model.certificate_.objective - best
    return model.certificate_.gap / true if true > 1e-13 * best else None


@pytest.mark.parametrize("C", [1.0, 1e6])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("rows", ["plain", "correlated", "ill-conditioned", "drifting", "sorted"])
def test_certificates_with_hessians_of_a_part(rows, n_classes, C, tmp_path):
    """A proven gap is at least the truth; an estimate is within a factor of two, at any `tol`."""
    X, y = data(rows, n_classes)
    ds = write_dataset(tmp_path / "a.zarr", X, y, chunks=2000)
    best = LogisticRegression(C=C, solver="newton", tol=1e-14, max_iter=30).fit(ds).certificate_
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        for tol in TOLS:
            model = LogisticRegression(C=C, solver="lbfgs", tol=tol).fit(ds)
            ratio = gap_over_truth(model, best.objective)
            if model.certificate_.rigorous:
                assert ratio is None or ratio > 0.999
            else:
                assert ratio is None or 0.5 <= ratio <= 2
    assert model.n_iter_ <= 12


def check_estimates(ds, C, n_classes):
    """Estimates at any `tol` are within two of the truth; proven gaps are no less than it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        exact = LogisticRegression(C=C, solver="newton", tol=1e-14, max_iter=30).fit(ds)
    best = exact.certificate_.objective
    for tol in TOLS:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model = LogisticRegression(C=C, solver="lbfgs", tol=tol).fit(ds)
        certificate, true = model.certificate_, model.certificate_.objective - best
        blur = 1.2e-7 * best if n_classes > 2 and tol >= 1e-7 else 0.0  # of float32 scores
        assert certificate.gap <= 2 * true + blur or certificate.rigorous
        assert true / (1 if certificate.rigorous else 2) <= certificate.gap + 1e-13 * best
        assert model.n_iter_ <= 12


@pytest.mark.parametrize("C", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("rows", ["plain", "correlated", "ill-conditioned", "drifting", "sorted"])
def test_estimates_without_hessians(rows, n_classes, C, tmp_path, monkeypatch):
    """With too many parameters for a Hessian."""
    monkeypatch.setattr(daskdml.solvers.lbfgs, "DENSE", 0)
    check_estimates(
        write_dataset(tmp_path / "a.zarr", *data(rows, n_classes), chunks=2000), C, n_classes
    )


@pytest.mark.parametrize("limit", ["GRAM", "MANY"])
@pytest.mark.parametrize("rows", ["plain", "correlated", "drifting"])
def test_estimates_with_other_preconditioners(rows, limit, tmp_path, monkeypatch):
    """With too many features for a block of the Hessian, or with each class's own block."""
    monkeypatch.setattr(daskdml.solvers.lbfgs, "DENSE", 0)
    monkeypatch.setattr(daskdml.solvers.precondition, limit, 0)
    check_estimates(write_dataset(tmp_path / "a.zarr", *data(rows, 4), chunks=2000), 1.0, 4)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_no_intercept(n_classes, tmp_path, monkeypatch):
    """Parameters that do not move stay out of the sample's equation, too."""
    monkeypatch.setattr(daskdml.solvers.lbfgs, "DENSE", 0)
    X, y = data("plain", n_classes)
    ds = write_dataset(tmp_path / "a.zarr", X + 1, y, chunks=2000)
    best = LogisticRegression(solver="newton", fit_intercept=False, tol=1e-12).fit(ds)
    model = LogisticRegression(solver="lbfgs", fit_intercept=False, tol=1e-8).fit(ds)
    assert model.n_iter_ <= 8
    assert model.certificate_.objective <= best.certificate_.objective * (1 + 1e-8)


def test_a_sample_that_weighs_nothing(tmp_path, monkeypatch):
    """All rows take its place."""
    monkeypatch.setattr(daskdml.solvers.lbfgs, "DENSE", 0)
    X, y = data("plain", 2)
    weight = np.zeros(len(y))
    weight[-2000:] = 1.0
    ds = write_dataset(tmp_path / "a.zarr", X, y, weight, chunks=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = LogisticRegression(solver="newton", tol=1e-12).fit(ds).certificate_.objective
        found = LogisticRegression(solver="lbfgs", tol=1e-8).fit(ds).certificate_.objective
    assert best * (1 - 1e-12) <= found <= best * (1 + 2e-8)


def test_a_warm_start_at_the_optimum_stays(tmp_path, monkeypatch):
    """Round-off of float32 scores makes no step look like one upwards."""
    monkeypatch.setattr(daskdml.solvers.lbfgs, "DENSE", 0)
    X, y = data("plain", 3)
    ds = write_dataset(tmp_path / "a.zarr", X, y, chunks=2000)
    model = LogisticRegression(solver="lbfgs", tol=1e-7, warm_start=True).fit(ds)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        assert model.set_params(tol=1e-9).fit(ds).n_iter_ <= 4
