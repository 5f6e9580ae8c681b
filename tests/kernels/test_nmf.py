from functools import reduce
from operator import add

import numpy as np
import pytest
from scipy.optimize import nnls

from daskdml.kernels.block import Block
from daskdml.kernels.nmf import (
    SLAB_ROWS,
    Coefficients,
    FactorRows,
    SignedNorms,
    nonnegative_rows,
    totals,
)
from daskdml.kernels.targets import DataError, check_nonnegative

RNG = np.random.default_rng(0)
H = RNG.random((6, 15)) * (RNG.random((6, 15)) < 0.6)
X = np.maximum(RNG.random((700, 6)) @ H + 0.2 * RNG.standard_normal((700, 15)), 0.0)


def test_rows_are_solved_exactly():
    """Coefficients are those of Lawson and Hanson's algorithm."""
    expected = np.array([nnls(H.T, x)[0] for x in X])
    np.testing.assert_allclose(Coefficients(H)(X), expected, atol=1e-10)


@pytest.mark.parametrize("l1", [0.0, 0.3])
@pytest.mark.parametrize("rank", [3, 8, 20])
def test_optimality(rank, l1):
    """Gradients vanish where coefficients do not and are not negative elsewhere, from any start."""
    G = H.T @ H if rank > 6 else H[:rank] @ H[:rank].T
    K = len(G)
    C = X[:50, :K] @ G - l1  # bounded below: in the range of G, but for l1
    C = np.maximum(C, -1.0) if l1 else C
    for start in (np.zeros((50, K)), RNG.random((50, K))):
        W = start.copy()
        G_l2 = G + 1e-3 * np.eye(K) if l1 else G
        nonnegative_rows(G_l2, C, W)
        gradient = W @ G_l2 - C
        scale = np.abs(C).max()
        assert W.min() >= 0
        assert np.abs(gradient[W > 0]).max() < 1e-8 * scale
        assert gradient.min() > -1e-8 * scale


def test_a_component_of_zeros():
    """A component without entries is left alone, unless a penalty pulls it to 0."""
    W = np.array([[3.0, 5.0]])
    nonnegative_rows(np.diag([2.0, 0.0]), np.array([[2.0, 0.0]]), W)
    np.testing.assert_allclose(W, [[1.0, 5.0]])
    nonnegative_rows(np.diag([2.0, 0.0]), np.array([[2.0, -0.1]]), W)
    np.testing.assert_allclose(W, [[1.0, 0.0]])
    dead = H.copy()
    dead[2] = 0.0
    W = Coefficients(dead)(X)
    assert not W[:, 2].any()
    np.testing.assert_allclose(np.delete(W, 2, 1), Coefficients(np.delete(H, 2, 0))(X), atol=1e-10)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("rows", [700, 300, 1])
def test_sums(rows, dtype):
    """Sums added over blocks are those of all rows' coefficients, with penalties too."""
    data, solve = X.astype(dtype), Coefficients(H, 0.1, 0.2)
    blocks = [Block(data[a : a + rows], None, None) for a in range(0, len(X), rows)]
    found = reduce(add, map(FactorRows(solve), blocks))
    W = solve(data)
    tolerance = {"rtol": 1e-4 if dtype == "f4" else 1e-10, "atol": 1e-3 if dtype == "f4" else 1e-9}
    np.testing.assert_allclose(found.squares, W.T @ W, **tolerance)
    np.testing.assert_allclose(found.products, W.T @ data, **tolerance)
    np.testing.assert_allclose(found.along, np.sum(W * (data @ H.T)), **tolerance)
    np.testing.assert_allclose(found.coefficients, W.sum(axis=0), **tolerance)
    all_of_it = reduce(add, map(totals, blocks))
    np.testing.assert_allclose(all_of_it.power, np.sum(X**2), rtol=1e-6)
    np.testing.assert_allclose((all_of_it.n, all_of_it.total), (700, X.sum()), rtol=1e-6)
    norms = reduce(add, map(SignedNorms(H - 0.4), blocks))
    U = X @ (H - 0.4).T
    np.testing.assert_allclose(norms[0], np.sum(np.maximum(U, 0) ** 2, axis=0), **tolerance)
    np.testing.assert_allclose(norms[1], np.sum(np.minimum(U, 0) ** 2, axis=0), **tolerance)


def test_the_slab_does_not_matter():
    """A row has its coefficients wherever it lies, up to round-off."""
    W = Coefficients(H)(X)
    for at in (0, 1, SLAB_ROWS - 1, SLAB_ROWS, 699):
        np.testing.assert_allclose(Coefficients(H)(X[at : at + 1]), W[at : at + 1], atol=1e-12)


@pytest.mark.parametrize(
    ("value", "what"), [(-1e-9, "Negative values"), (np.nan, "NaN"), (np.inf, "infinity")]
)
def test_values_that_cannot_be(value, what):
    """The first one is named by row and column."""
    bad = np.ones((5000, 3))
    bad[4500, 1] = bad[4700, 0] = value
    with pytest.raises(DataError, match=what) as error:
        check_nonnegative(bad)
    assert (error.value.row, error.value.column) == (4500, 1)
    assert error.value.later(7).check is check_nonnegative
