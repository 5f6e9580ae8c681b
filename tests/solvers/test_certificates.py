"""Certificates against optima known to forty digits."""

from __future__ import annotations

import warnings
from decimal import Decimal
from itertools import product
from random import Random

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

import daskdml.solvers.newton
from daskdml import LogisticRegression, Ridge
from tests.solvers.exact import Exact

N = 60
ROUND_OFF = 1e-14  # of the objective's scale: estimates below it say nothing


def _rows(d: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, d))


def _conditioned(number: float) -> np.ndarray:
    U, _, V = np.linalg.svd(_rows(), full_matrices=False)
    return (U * np.geomspace(1, 1 / number, 3)) @ V * np.sqrt(N)


ROWS = {
    "plain": _rows(),
    "condition 1e4": _conditioned(1e4),
    "condition 1e7": _conditioned(1e7),
    "condition 1e10": _conditioned(1e10),
    "scales 1e-5 to 1e5": _rows() * [1e-5, 1, 1e5],
    "a column twice": np.column_stack([_rows(), _rows()[:, 0]]),
    "a constant column": np.column_stack([_rows(), np.full(N, 3.0)]),
    "a column of zeros": np.column_stack([_rows(), np.zeros(N)]),
    "means 1e6": _rows() + 1e6,
    "a mean 1e9": _rows() + np.array([1e9, 0, 0]),
}


def _targets(kind: str, X: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    Z = X[:, :3] - X[:, :3].mean(axis=0)
    z = (Z / np.maximum(Z.std(axis=0), 1e-30)) @ [1.0, -2.0, 0.5]
    noise = rng.logistic(size=N)
    if kind == "three":
        return np.digitize(z + noise, [-1, 1])
    return (z + noise > 0).astype(int) if kind == "noisy" else (z > 0).astype(int)


def _parameters(model) -> np.ndarray:
    return np.column_stack([np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)])


def _check(model, exact: Exact, best: Decimal) -> None:
    """A proven gap is never below the true one; an estimate is within a factor of two."""
    c = model.certificate_
    f = exact.value(_parameters(model))
    true = float(f - best)
    if c.rigorous:
        assert c.gap >= true * (1 - 1e-9), (c, true)
    elif max(c.gap, true) > ROUND_OFF * (1 + float(f)):
        assert true / 2 <= c.gap <= 2 * true, (c, true)


def _exact(X, y, s, l2, kind, fit_intercept=True) -> Exact:
    y = 2 * y - 1 if kind == "logistic" else y
    return Exact(kind, np.asarray(X, "f8"), np.asarray(y, "f8"), s, l2, fit_intercept)


def _at_every_pass(X, y, s, C: float, solver: str) -> list[LogisticRegression]:
    """Give fits that stop after ever more passes, the last of them done."""
    models = []
    for max_iter in (1, 2, 3, 5, 40):
        model = LogisticRegression(C=C, tol=1e-13, max_iter=max_iter, solver=solver)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(model.fit(X, y, s))
        if model.n_iter_ < max_iter:
            break
    return models


KINDS = ("noisy", "separable", "three")
EVERY_C = (1e-6, 1.0, 1e6, np.inf)
CASES = [*product(ROWS, KINDS, ("f8", "f4"), EVERY_C)]


@pytest.mark.parametrize(("rows", "kind", "dtype", "C"), sorted(Random(0).sample(CASES, 120)))
def test_logistic_gaps_are_never_below_the_truth(rows, kind, dtype, C):
    """At every pass, for any C, from a hopeless Hessian to a perfect one: half of all cases."""
    X = ROWS[rows].astype(dtype)
    y = _targets(kind, X.astype("f8"))
    s = np.random.default_rng(2).uniform(0.5, 2, N) if C == 1 else np.ones(N)
    l2 = 0.0 if np.isinf(C) else 1 / (C * s.sum())
    exact = _exact(X, y, s, l2, "multinomial" if kind == "three" else "logistic")
    models = _at_every_pass(X, y, s, C, "lbfgs") + _at_every_pass(X, y, s, C, "newton")
    no_minimum = kind == "separable" and np.isinf(C)
    best = Decimal(0) if no_minimum else exact.optimum(_parameters(models[-1]))
    for model in models:
        _check(model, exact, best)


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("C", EVERY_C)
def test_gaps_of_five_weighted_classes(C, dtype):
    """The same for five classes of weighted rows."""
    X = ROWS["condition 1e4"].astype(dtype)
    z = (X.astype("f8") / X.std(axis=0)) @ np.random.default_rng(6).standard_normal((3, 5))
    y = (z + np.random.default_rng(7).gumbel(size=z.shape)).argmax(axis=1)
    y[:5] = np.arange(5)
    s = np.random.default_rng(8).uniform(0.1, 3, N)
    exact = _exact(X, y, s, 0.0 if np.isinf(C) else 1 / (C * s.sum()), "multinomial")
    models = _at_every_pass(X, y, s, C, "lbfgs") + _at_every_pass(X, y, s, C, "newton")
    best = exact.optimum(_parameters(models[-1]))
    for model in models:
        _check(model, exact, best)


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("rows", ROWS)
def test_squared_gaps_are_never_below_the_truth(rows, dtype):
    """The same for least squares, with and without an intercept, on noisy and on exact targets."""
    X = ROWS[rows].astype(dtype)
    rng = np.random.default_rng(3)
    s = rng.uniform(0.5, 2, N)
    Z = X[:, :3].astype("f8")
    signal = ((Z - Z.mean(axis=0)) / np.maximum(Z.std(axis=0), 1e-30)).sum(axis=1)
    for y in (signal, signal + rng.standard_normal(N)):
        for alpha, fit_intercept in ((0.0, True), (1.0, True), (1e-9, False), (1e6, False)):
            model = Ridge(alpha=alpha, fit_intercept=fit_intercept)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(X, y, s)
            exact = _exact(X, y, s, alpha / s.sum(), "squared", fit_intercept)
            _check(model, exact, exact.optimum(_parameters(model)))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_far_starts(n_classes):
    """A start far from the optimum, where the Hessian tells little, is certified as truly."""
    X = ROWS["plain"]
    y = _targets("noisy" if n_classes == 2 else "three", X)
    exact = _exact(X, y, np.ones(N), 1 / N, "logistic" if n_classes == 2 else "multinomial")
    outputs = 1 if n_classes == 2 else 3
    best = exact.optimum(np.zeros((outputs, 4)))
    for size in (3.0, 30.0, 1000.0):
        for max_iter in (1, 2, 3, 6):
            model = LogisticRegression(warm_start=True, max_iter=max_iter, tol=1e-12)
            model.coef_ = np.random.default_rng(4).standard_normal((outputs, 3)) * size
            model.intercept_ = np.full(outputs, -size)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(X, y)
            _check(model, exact, best)


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_hessians_of_a_part_of_the_rows(n_classes, dtype, monkeypatch):
    """Where the Hessian is of a part of the rows, even an unlike part, the bound still holds."""
    monkeypatch.setattr(daskdml.solvers.newton, "ROWS_PER_PARAMETER", 100)
    rng = np.random.default_rng(5)
    n = 2500
    X = rng.standard_normal((n, 2)) * np.linspace(0.2, 3, n)[:, None]  # later rows are longer
    X = X.astype(dtype)
    z = X @ [1.0, -1.0] + rng.logistic(size=n)
    y = np.digitize(z, [0.0] if n_classes == 2 else [-1.0, 1.0])
    exact = _exact(X, y, np.ones(n), 1 / n, "logistic" if n_classes == 2 else "multinomial")
    models = []
    for max_iter in (1, 2, 3, 20):
        model = LogisticRegression(tol=1e-9, max_iter=max_iter, solver="newton")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(model.fit(X, y))
    best = exact.optimum(_parameters(models[-1]))
    for model in models:
        _check(model, exact, best)


def test_a_fit_that_stops_short_warns_with_its_gap():
    """`ConvergenceWarning` states the relative gap reached, which is the certificate's."""
    y = _targets("noisy", ROWS["plain"])
    with pytest.warns(ConvergenceWarning, match=r"relative gap reached is.*max_iter=2") as caught:
        model = LogisticRegression(max_iter=2, tol=1e-9).fit(ROWS["plain"], y)
    assert f"{model.certificate_.relative:.2g}" in str(caught[0].message)


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("C", [1e-6, 1.0, 1e6, np.inf])
@pytest.mark.parametrize("kind", ["noisy", "three"])
@pytest.mark.parametrize(
    "rows", [name for name in ROWS if name not in ("condition 1e7", "condition 1e10")]
)
def test_few_passes_reach_the_tolerance(rows, kind, C, dtype, solver):
    """Data that no hyperplane separates is solved to 1e-8 in at most 12 passes, without warning."""
    X = ROWS[rows].astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = LogisticRegression(C=C, tol=1e-8, solver=solver)
        model.fit(X, _targets(kind, X.astype("f8")))
    assert model.certificate_.relative <= 1e-8
    assert model.n_iter_ <= 12


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_separable_classes_without_a_penalty_end_soon(n_classes, solver):
    """No coefficients are best: the fit says so once all rows are on the right side."""
    X = ROWS["plain"]
    y = np.digitize(X[:, 0], [0.0] if n_classes == 2 else [-0.5, 0.5])
    X = X * [10.0, 1.0, 1.0] if n_classes == 2 else np.column_stack([X, X[:, 0] ** 2])
    with pytest.warns(ConvergenceWarning, match="look separable.*set a finite C"):
        model = LogisticRegression(C=np.inf, tol=1e-6, solver=solver).fit(X, y)
    assert model.n_iter_ <= (15 if solver == "newton" else 25)
    assert model.score(X, y) == 1.0
    assert model.certificate_.rigorous and model.certificate_.relative >= 1


def test_exact_targets_converge():
    """Targets without noise, whose objective is round-off, end without a warning."""
    X = ROWS["plain"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = Ridge(alpha=0.0).fit(X, X @ [1.0, 2.0, 3.0] + 4.0)
    assert model.n_iter_ <= 3 and np.allclose(model.coef_, [1, 2, 3], rtol=1e-12)
