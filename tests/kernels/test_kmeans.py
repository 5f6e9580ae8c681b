"""Nearest centers are those of float64, whatever the dtype of the rows; sums are NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from daskdml.kernels.block import Block
from daskdml.kernels.kmeans import Centers, FarthestOf, SumsOf
from daskdml.kernels.targets import DataError

RNG = np.random.default_rng(0)
SHAPES = [(1, 1, 1), (5, 3, 4), (1000, 17, 1), (1025, 5, 33), (3000, 40, 70)]


def squares(X, C):
    """Squared distances (n, k) in float64, none of them by a difference of large numbers."""
    return np.square(X[:, None].astype(np.float64) - C).sum(axis=2)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("offset", [0.0, 3e4])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_nearest_and_sums_are_those_of_float64(n, d, k, offset, dtype):
    """Labels, weights, sums, inertia and distances, also far from the origin."""
    X = (offset + RNG.standard_normal((n, d))).astype(dtype)
    C, s = offset + RNG.standard_normal((k, d)), RNG.random(n)
    exact, at = squares(X, C), Centers(C)
    labels = exact.argmin(axis=1)
    np.testing.assert_array_equal(at.labels(X), labels)
    found = SumsOf(at)(Block(X, None, s))
    of = np.eye(k)[labels] * s[:, None]
    np.testing.assert_allclose(found.weights, of.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.sums, of.T @ X.astype("f8"), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.inertia, s @ exact.min(axis=1), rtol=1e-10)
    np.testing.assert_allclose(at.distances(X), np.sqrt(exact), rtol=1e-7)
    mean = np.average(X, axis=0, weights=s)
    variance = np.average(np.square(X - mean), axis=0, weights=s).mean()
    np.testing.assert_allclose(found.variance(C), variance, rtol=1e-6, atol=1e-9)


def test_scores_in_float32_alone_would_be_wrong():
    """Rows between two centers: float32 products choose wrongly, the settled choice does not."""
    C = np.array([[1000.0, 0, 0], [-1000.0, 0, 0], [0, 5000.0, 0]])
    X = np.zeros((2000, 3), "f4")
    X[:, 0] = RNG.standard_normal(2000) * 1e-5
    X[:, 1:] = RNG.standard_normal((2000, 2)) * [1e-3, 100] + [-400, 0]
    exact = squares(X, C).argmin(axis=1)
    t, w = X - C.mean(axis=0).astype("f4"), (C - C.mean(axis=0)).astype("f4")
    alone = (np.square(w).sum(axis=1) / 2 - t @ w.T).argmin(axis=1)
    assert (alone != exact).sum() > 100
    np.testing.assert_array_equal(Centers(C).labels(X), exact)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_first_of_equal_centers(dtype):
    """A row at the same distance from several centers belongs to the first of them."""
    C = np.repeat(RNG.integers(-3, 4, (6, 4)).astype("f8"), 3, axis=0)
    X = RNG.integers(-3, 4, (500, 4)).astype(dtype)
    np.testing.assert_array_equal(Centers(C).labels(X), squares(X, C).argmin(axis=1))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e17, 1e19, 1e30])
def test_rows_whose_squares_float32_cannot_hold(scale):
    """Where products overflow or underflow, float64 decides."""
    X = (RNG.standard_normal((200, 5)) * scale).astype("f4")
    C = RNG.standard_normal((7, 5)) * scale
    np.testing.assert_array_equal(Centers(C).labels(X), squares(X / scale, C / scale).argmin(1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named(bad):
    """Its row and column, in every method."""
    X = RNG.standard_normal((3000, 4)).astype("f4")
    X[2222, 3] = bad
    at = Centers(np.zeros((2, 4)))
    for method in (at.labels, at.distances, lambda X: SumsOf(at)(Block(X, None, None))):
        with pytest.raises(DataError) as error:
            method(X)
        assert (error.value.row, error.value.column) == (2222, 3)


def test_farthest_rows_of_two_blocks():
    """Those with the largest distances, in order, without rows of weight 0."""
    X, C = RNG.standard_normal((400, 3)), RNG.standard_normal((5, 3))
    s = (RNG.random(400) > 0.3) * 2.0
    find = FarthestOf(Centers(C), 6)
    found = find(Block(X[:150], None, s[:150])) + find(Block(X[150:], None, s[150:]))
    exact = squares(X, C)
    first = np.argsort(-np.where(s > 0, exact.min(axis=1), -1))[:6]
    np.testing.assert_array_equal(found.X, X[first])
    np.testing.assert_array_equal(found.nearest, exact.argmin(axis=1)[first])
    np.testing.assert_allclose(found.squares, exact.min(axis=1)[first])
    assert (found.weights == 2).all()
