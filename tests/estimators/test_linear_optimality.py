"""Coefficients are scikit-learn's optima: gradients of its objectives vanish at them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import linear_model
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_sample_weight

from daskdml import LinearRegression, LogisticRegression, Ridge

N, D = 500, 5
LABELS = {
    "int": lambda y: y * 3 - 1,
    "str": lambda y: np.array(["ash", "birch", "cedar", "oak", "yew"])[y],
    "bool": lambda y: y == 1,
    "object": lambda y: np.array(["ash", "birch", "cedar", "oak", "yew"], dtype=object)[y],
}


def data(n_classes, seed=0):
    """Rows with unlike scales, a class index correlated with them, and weights, some of them 0."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, D)) * [1, 0.1, 3, 1, 20] + [0, 1, 0, -2, 50]
    z = (X - X.mean(axis=0)) / X.std(axis=0) @ rng.standard_normal((D, n_classes))
    y = (z + rng.gumbel(size=z.shape) * 2 + np.linspace(0, 2, n_classes)).argmax(axis=1)
    s = rng.uniform(0, 3, N)
    s[::7] = 0.0
    return X, y, s


def logistic_gradient(model, X, y, s, C, fit_intercept):
    """Gradient of scikit-learn's objective over the sum of weights, in units of the features."""
    X = np.asarray(X, dtype=np.float64)
    S = s.sum()
    z = X @ model.coef_.T + model.intercept_
    index = np.searchsorted(model.classes_, y)
    if len(model.classes_) == 2:
        a = (1 / (1 + np.exp(-z[:, 0])) - index)[:, None]
    else:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        a = p / p.sum(axis=1, keepdims=True)
        a[np.arange(len(y)), index] -= 1
    g = (s[:, None] * a).T @ X / S + model.coef_ / (C * S)
    b = (s[:, None] * a).sum(axis=0) / S if fit_intercept else np.zeros(a.shape[1])
    return np.abs(g / np.sqrt((X**2).mean(axis=0))).max(), np.abs(b).max()


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e5, np.inf])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(
    "weights", [None, "rows", "balanced", "dict", "rows, balanced", "rows, dict"]
)
def test_logistic_regression_is_optimal(weights, fit_intercept, C, n_classes, dtype):
    """The gradient of scikit-learn's objective, weighted as scikit-learn weights, is round-off."""
    X, y, s = data(n_classes)
    X = X.astype(dtype)
    sample_weight = s if weights and "rows" in weights else None
    given = weights or ""
    class_weight = (
        "balanced" if "balanced" in given else {0: 2.0, 1: 0.5} if "dict" in given else None
    )
    model = LogisticRegression(
        C=C, fit_intercept=fit_intercept, class_weight=class_weight, tol=1e-13
    ).fit(X, y, sample_weight)
    rows = np.ones(N) if sample_weight is None else s
    factors = compute_sample_weight(class_weight, y) if class_weight else np.ones(N)
    if class_weight == "balanced":
        factors = balanced(y, sample_weight)
    g, b = logistic_gradient(model, X, y, rows * factors, C, fit_intercept)
    assert g < 2e-7 and b < 2e-7


def balanced(y, sample_weight):
    """Factors of the rows as the installed scikit-learn's fit takes them for "balanced"."""
    from sklearn.utils.class_weight import compute_class_weight

    classes = np.unique(y)
    weight = compute_class_weight("balanced", classes=classes, y=y, sample_weight=sample_weight)
    return weight[np.searchsorted(classes, y)]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 2.0, 1: 0.5}])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("C", [0.1, 1e3])
def test_logistic_regression_is_scikit_learns(C, weighted, class_weight, n_classes):
    """Coefficients, labels, scores and probabilities are those of scikit-learn, tightly solved."""
    X, y, s = data(n_classes)
    X = (X - X.mean(axis=0)) / X.std(axis=0)  # so that scikit-learn gets close
    sample_weight = s if weighted else None
    theirs = linear_model.LogisticRegression(
        C=C, class_weight=class_weight, tol=1e-12, max_iter=10_000, solver="newton-cholesky"
    ).fit(X, y, sample_weight)
    ours = LogisticRegression(C=C, class_weight=class_weight, tol=1e-13).fit(X, y, sample_weight)
    assert np.allclose(ours.coef_, theirs.coef_, rtol=1e-5, atol=1e-6)
    assert np.allclose(ours.intercept_, theirs.intercept_, rtol=1e-5, atol=1e-6)
    assert np.array_equal(ours.predict(X), theirs.predict(X))
    assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    assert np.allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-5)
    assert ours.score(X, y, s) == theirs.score(X, y, s)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_labels_of_any_dtype(labels, n_classes):
    """Labels come back as they were given; coefficients do not depend on how they are called."""
    X, y, _ = data(n_classes)
    if labels == "bool":
        y = y % 2
    plain = LogisticRegression(tol=1e-10).fit(X, y)
    model = LogisticRegression(tol=1e-10).fit(X, LABELS[labels](y))
    assert np.array_equal(model.coef_, plain.coef_)
    assert np.array_equal(model.classes_, np.unique(LABELS[labels](y)))
    assert set(model.predict(X)) <= set(LABELS[labels](y))
    assert model.score(X, LABELS[labels](y)) == plain.score(X, y)


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("alpha", [0.0, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_least_squares_is_scikit_learns(weighted, fit_intercept, alpha, dtype):
    """Ridge and LinearRegression have scikit-learn's coefficients to nine digits."""
    rng = np.random.default_rng(1)
    X, _, s = data(2)
    X = X.astype(dtype)
    y = X @ rng.standard_normal(D) + rng.standard_normal(N) + 7
    s = s if weighted else None
    X64 = X.astype("f8")
    theirs = linear_model.Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="svd")
    theirs.fit(X64, y, s)
    ours = Ridge(alpha=alpha, fit_intercept=fit_intercept).fit(X, y, s)
    assert np.allclose(ours.coef_, theirs.coef_, rtol=1e-8, atol=1e-10)
    assert np.allclose(ours.intercept_, theirs.intercept_, rtol=1e-8, atol=1e-8)
    assert ours.certificate_.rigorous and ours.n_iter_ <= 2
    if alpha == 0:
        plain = LinearRegression(fit_intercept=fit_intercept).fit(X, y, s)
        assert np.array_equal(plain.coef_, ours.coef_)
        assert np.isclose(ours.score(X, y, s), theirs.score(X64, y, s), rtol=1e-10)


def test_underdetermined_least_squares_has_the_least_norm():
    """Of all solutions, LinearRegression gives scikit-learn's: that of least norm."""
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((8, 20)) * np.geomspace(0.1, 10, 20), rng.standard_normal(8)
    theirs = linear_model.LinearRegression().fit(X, y)
    ours = LinearRegression().fit(X, y)
    assert np.allclose(ours.coef_, theirs.coef_, rtol=1e-6, atol=1e-9)


def test_weights_are_repetitions():
    """A row of weight 3 counts as three rows, one of weight 0 as none."""
    X, y, _ = data(3)
    s = np.random.default_rng(3).integers(0, 4, N)
    weighted = LogisticRegression(tol=1e-13).fit(X, y, s)
    repeated = LogisticRegression(tol=1e-13).fit(np.repeat(X, s, axis=0), np.repeat(y, s))
    assert np.allclose(weighted.coef_, repeated.coef_, rtol=1e-6, atol=1e-9)


def test_warm_start_continues():
    """A second fit from the solution takes one step; a start of another shape is an error."""
    X, y, _ = data(2)
    model = LogisticRegression(tol=1e-6, warm_start=True).fit(X, y)
    first = model.n_iter_
    assert model.fit(X, y).n_iter_ == 1 < first
    with pytest.raises(ValueError, match="warm_start has coefficients of shape"):
        model.fit(X[:, :3], y)


def test_one_float32_step_is_not_the_last():
    """float32 data is solved to the tolerance asked for, not to float32's precision."""
    X, y, _ = data(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = LogisticRegression(tol=1e-12).fit(X.astype("f4"), y)
    assert model.certificate_.relative <= 1e-12
