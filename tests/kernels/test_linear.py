"""Statistics of linear models, against plain NumPy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from daskdml.kernels.block import Block
from daskdml.kernels.linear import SLAB_ROWS, Coordinates, LinearPass, moments, scores
from daskdml.kernels.losses import Logistic, Multinomial, Squared
from daskdml.kernels.products import SLAB

N, D = 2 * SLAB_ROWS + 77, 4  # three slabs, the last one short
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, D)) * [1, 5, 0.1, 1] + [0, 3, 1, -2]
S = RNG.uniform(0, 2, N)
COORDINATES = Coordinates(X.mean(axis=0), X.std(axis=0))
T = np.column_stack([(X - COORDINATES.center) / COORDINATES.scale, np.ones(N)])
CASES = {
    "squared": (Squared(), RNG.standard_normal(N), 1),
    "logistic": (Logistic(), RNG.choice([-1.0, 1.0], N), 1),
    "multinomial": (Multinomial(), RNG.integers(0, 3, N), 3),
}


def objective(loss, theta, y, S=S):
    """Weighted sum of losses, by NumPy."""
    z = T @ theta.T
    if isinstance(loss, Multinomial):
        top = z.max(axis=1)
        return S @ (top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(N), y])
    z = z[:, 0]
    return S @ (0.5 * (z - y) ** 2 if isinstance(loss, Squared) else np.logaddexp(0, -y * z))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_derivatives(case, dtype):
    """Loss, gradient, Hessian and line are those of NumPy and of finite differences."""
    loss, y, K = CASES[case]
    theta = RNG.standard_normal((K, D + 1))
    direction = RNG.standard_normal((K, D + 1))
    rows = X.astype(dtype)
    stats = LinearPass(
        loss, COORDINATES, theta, direction, (-0.5, 0.25), np.dtype(dtype).type, line_every=2
    )(rows, y, S)  # fmt: skip
    tol = 1e-10 if dtype == "f8" else 1e-5
    assert np.isclose(stats.loss, objective(loss, theta, y), rtol=tol)
    assert np.isclose(stats.weight, S.sum()) and stats.n == N
    h = 1e-5
    P = K * (D + 1)
    numeric = np.empty(P)
    for j in range(P):
        e = np.zeros(P)
        e[j] = h
        e = e.reshape(theta.shape)
        numeric[j] = (objective(loss, theta + e, y) - objective(loss, theta - e, y)) / (2 * h)
    assert np.allclose(stats.gradient, numeric, atol=1e-3, rtol=1e-5)
    slab = SLAB if isinstance(loss, Multinomial) else SLAB_ROWS
    part = np.where(np.arange(N) // slab % 2 == 0, S, 0.0)
    assert np.isclose(stats.line_weight, part.sum())
    lines = [objective(loss, theta + t * direction, y, part) for t in (-0.5, 0.25)]
    assert np.allclose(stats.line, lines, rtol=tol)
    shifted = LinearPass(loss, COORDINATES, theta + h * direction)(X, y, S).gradient
    slope = (shifted - LinearPass(loss, COORDINATES, theta - h * direction)(X, y, S).gradient) / (
        2 * h
    )
    assert np.allclose(stats.hessian @ direction.ravel(), slope, rtol=1e-3, atol=1e-2)
    assert np.isclose(stats.row_norm2, (T**2).sum(axis=1).max(), rtol=tol)
    assert np.array_equal(stats.hessian, stats.hessian.T)


@pytest.mark.parametrize("case", CASES)
def test_statistics_add(case):
    """Statistics of parts add up to those of the whole."""
    loss, y, K = CASES[case]
    at = LinearPass(loss, COORDINATES, RNG.standard_normal((K, D + 1)), hessian_dtype=np.float64)
    whole = at(X, y, S)
    parts = at(X[:700], y[:700], S[:700]) + at(X[700:], y[700:], S[700:])
    for name in ("loss", "gradient", "hessian", "weight", "row_norm2", "slope", "rising_dual"):
        assert np.allclose(getattr(parts, name), getattr(whole, name), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_large_means_do_not_cancel(case):
    """A mean a billion times the spread costs the gradient no digits beyond those of the data."""
    loss, y, K = CASES[case]
    far = np.round(X * 2**10) + 2.0**40  # exact
    near = far - 2.0**40
    theta = RNG.standard_normal((K, D + 1))
    scale = near.std(axis=0)
    a, b = (
        LinearPass(loss, Coordinates(center, scale), theta, hessian_dtype=np.float64)(rows, y, S)
        for rows, center in ((far, np.full(D, 2.0**40)), (near, np.zeros(D)))
    )
    assert np.allclose(a.gradient, b.gradient, rtol=1e-12, atol=1e-12 * np.abs(b.gradient).max())
    assert np.allclose(a.hessian, b.hessian, rtol=1e-12, atol=1e-12 * np.abs(b.hessian).max())


def test_constant_columns_have_no_derivatives():
    """A column at its center is zero exactly, and so are its derivatives, however large it is."""
    loss, y, K = CASES["logistic"]
    rows = np.column_stack([X, np.full(N, 1e9)]).astype("f4")
    at = Coordinates(np.append(np.zeros(D), np.float64(rows[0, D])), np.ones(D + 1))
    stats = LinearPass(loss, at, RNG.standard_normal((K, D + 2)), hessian_dtype=np.float32)(
        rows, y, S
    )
    assert stats.rising[D] == stats.falling[D] == 0.0
    assert not stats.hessian[D].any()


def test_saturated_classes_keep_their_curvature():
    """Where a class is nearly certain, float32 curvature keeps its relative precision."""
    loss, y, _ = CASES["multinomial"]
    theta = np.zeros((3, D + 1))
    theta[0, -1] = 12.0  # probability of class 0 is 1 - 1e-5 in all rows
    exact, rough = (
        LinearPass(loss, COORDINATES, theta, hessian_dtype=t)(X.astype("f4"), y, S).hessian
        for t in (np.float64, np.float32)
    )
    assert np.allclose(np.diag(rough), np.diag(exact), rtol=1e-5)


def test_rising_and_falling_parts():
    """The gradient's parts are sums over rows of positive and of negative slope."""
    loss, y, _ = CASES["logistic"]
    theta = RNG.standard_normal((1, D + 1))
    stats = LinearPass(loss, COORDINATES, theta)(X, y, S)
    z = T @ theta[0]
    a = -S * y / (1 + np.exp(y * z))
    assert np.allclose(stats.rising, (a * (a > 0)) @ T) and np.allclose(
        stats.falling, (a * (a < 0)) @ T
    )
    assert np.isclose(stats.rising_weight, a[a > 0].sum())
    assert np.isclose(stats.slope, np.abs(a).sum())
    dual = a * z - S * np.logaddexp(0, -y * z)
    assert np.isclose(stats.rising_dual, dual[a > 0].sum())


@pytest.mark.parametrize("shift", [0.0, 1e6, 1e9])
def test_moments(shift):
    """Means and deviations of parts add up to those of the whole, also far from zero."""
    rows = X + shift
    parts = [moments(Block(rows[a], None, None)) for a in (slice(100), slice(100, None))]
    found = parts[0] + parts[1]
    assert np.allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
    assert np.allclose(found.m2 / N, X.var(axis=0), rtol=1e-6)
    assert np.allclose(found.coordinates(True).scale, X.std(axis=0), rtol=1e-6)


def test_coordinates_change_nothing():
    """Scores in standard coordinates are those of the original coefficients, and back."""
    w, b = RNG.standard_normal((2, D)), RNG.standard_normal(2)
    coef, intercept = COORDINATES.to_original(w, b)
    assert np.allclose(scores(X, coef, intercept), T @ np.column_stack([w, b]).T)
    back = COORDINATES.from_original(coef, intercept)
    assert np.allclose(back[0], w) and np.allclose(back[1], b)
