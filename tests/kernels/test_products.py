"""Products with few outputs, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from daskdml.kernels.curvature import Gram, HessianProduct, conjugate_gradients
from daskdml.kernels.linear import Coordinates, LinearPass
from daskdml.kernels.losses import Logistic, Multinomial
from daskdml.kernels.products import SLAB

RNG = np.random.default_rng(0)
SHAPES = [(1, 1, 3), (SLAB, 5, 4), (SLAB + 1, 17, 5), (3 * SLAB - 9, 33, 7), (9 * SLAB + 1, 4, 3)]


def _problem(n: int, d: int, K: int, dtype: type) -> tuple[np.ndarray, ...]:
    X = (3 + 2 * RNG.standard_normal((n, d))).astype(dtype)
    return X, RNG.integers(0, K, n), RNG.random(n), 0.3 * RNG.standard_normal((K, d + 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "K"), SHAPES)
def test_softmax_statistics_are_those_of_numpy(n, d, K, dtype):
    """Loss, gradient, line and row norms of any number of rows, features and classes."""
    X, y, s, theta = _problem(n, d, K, dtype)
    at = Coordinates(np.full(d, 3.0), np.full(d, 2.0))
    direction = RNG.standard_normal(theta.shape)
    steps = (-0.5, -1.0)
    stats = LinearPass(Multinomial(), at, theta, direction, steps, line_every=2)(X, y, s)
    T = np.column_stack([(X.astype(np.float64) - 3) / 2, np.ones(n)])

    def losses(theta: np.ndarray) -> np.ndarray:
        z = T @ theta.T
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(n), y]

    p = np.exp(T @ theta.T)
    a = s[:, None] * (p / p.sum(axis=1, keepdims=True) - np.eye(K)[y])
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is np.float32 else {"rtol": 1e-11}
    np.testing.assert_allclose(stats.loss, s @ losses(theta), **tolerance)
    np.testing.assert_allclose(stats.gradient, (a.T @ T).ravel(), **tolerance)
    np.testing.assert_allclose(stats.slope, np.abs(a).sum(), **tolerance)
    part = np.where(np.arange(n) // SLAB % 2 == 0, s, 0.0)
    line = [part @ losses(theta + t * direction) for t in steps]
    np.testing.assert_allclose(stats.line, line, **tolerance)
    assert np.isclose(stats.line_weight, part.sum())
    np.testing.assert_allclose(stats.row_norm2, (T**2).sum(axis=1).max(), rtol=1e-12)


@pytest.mark.parametrize("K", [1, 3, 4])
def test_products_of_the_hessian_and_its_factors(K):
    """H v is that of the formed Hessian; its Kronecker factors are its own where rows agree."""
    n, d = 2 * SLAB + 5, 6
    X, y, s, theta = _problem(n, d, max(K, 2), np.float64)
    theta = theta[:K]
    at = Coordinates(np.full(d, 3.0), np.full(d, 2.0))
    loss, target = (Multinomial(), y) if K > 1 else (Logistic(), 2.0 * y - 1)
    H = LinearPass(loss, at, theta, hessian_dtype=np.float64)(X, target, s).hessian
    v = RNG.standard_normal((K, d + 1))
    found = HessianProduct(loss, at, theta, v)(X, target, s)
    np.testing.assert_allclose(found.total.ravel(), H @ v.ravel(), rtol=1e-9, atol=1e-12)
    blocks = H.reshape(K, d + 1, K, d + 1)
    own = np.array([blocks[k, :, k, :] for k in range(K)])
    np.testing.assert_allclose(found.curvatures, own[:, d, d])
    gram = Gram(loss, at, theta)(X, target, s)
    np.testing.assert_allclose(gram.mean * s.sum(), own.sum(axis=0))
    first = Gram(loss, at, theta, 0)(X, target, s)
    np.testing.assert_allclose((first + first).mean, own[0] / s.sum())


def test_conjugate_gradients_find_what_weak_directions_hide():
    """The decrement is right although most of it shows in the last iterations only."""
    values = np.geomspace(1e-6, 1, 25)
    for _ in range(50):
        vectors = np.linalg.qr(RNG.standard_normal((25, 25)))[0]
        A = vectors * values @ vectors.T
        b = vectors @ np.sqrt(values * np.geomspace(100, 1, 25))  # most of b . x where A is weakest
        found, n_iter, settled = conjugate_gradients(A.dot, b, lambda r: r)
        exact = float(b @ np.linalg.solve(A, b))
        assert settled and n_iter < 100
        assert 0.8 * exact <= b @ found <= 1.001 * exact


def test_conjugate_gradients_say_when_they_do_not_settle():
    """An operator that round-off makes indefinite gives no decrement to believe in."""
    A = np.diag([1.0, -1e-3])
    assert not conjugate_gradients(lambda v: A @ v, np.ones(2), lambda r: r)[2]


def test_products_do_not_depend_on_where_arrays_lie():
    """The same rows at any offset in memory give the same bits."""
    X, y, s, theta = _problem(SLAB + 3, 9, 3, np.float32)
    sums = LinearPass(Multinomial(), Coordinates.identity(9), theta)
    results = set()
    for offset in range(8):
        moved = np.empty(X.size + offset, X.dtype)[offset:].reshape(X.shape)
        moved[...] = X
        results.add(sums(moved, y, s).gradient.tobytes())
    assert len(results) == 1
