"""Means and scatter matrices of rows, which add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from daskdml.kernels.block import Block
from daskdml.kernels.targets import check_rows

SCATTER_SLAB = 1024  # rows of one product with themselves


@dataclass(frozen=True)
class Scatter:
    """Number of rows, their mean, and the sum of products of their deviations from it [1]_.

    Parameters
    ----------
    n : int
    mean : ndarray of shape (d,), float64
    products : ndarray of shape (d, d), float64

    References
    ----------
    .. [1] Chan, Golub, LeVeque, "Algorithms for computing the sample variance: analysis and
       recommendations", The American Statistician 37, 1983.
    """

    n: int
    mean: np.ndarray
    products: np.ndarray

    def __add__(self, other: Scatter) -> Scatter:
        n, apart = self.n + other.n, other.mean - self.mean
        between = np.outer(apart, apart) * (self.n * other.n / n)
        mean = self.mean + apart * (other.n / n)
        return Scatter(n, mean, self.products + other.products + between)


def scatter(block: Block) -> Scatter:
    """`Scatter` of a block, whose rows are multiplied in their dtype and summed in float64.

    Examples
    --------
    >>> import numpy as np
    >>> found = scatter(Block(np.array([[1.0, 0.0], [3.0, 1.0]]), None, None))
    >>> found.mean, found.products
    (array([2. , 0.5]), array([[2. , 1. ],
           [1. , 0.5]]))
    """
    X = block.X
    n, d = X.shape
    shift = X.mean(axis=0, dtype=np.float64).astype(X.dtype)  # near the mean: nothing cancels
    products, total = np.zeros((d, d)), np.zeros(d)
    for start in range(0, n, SCATTER_SLAB):
        rows = X[start : start + SCATTER_SLAB] - shift
        total += rows.sum(axis=0, dtype=np.float64)
        products += rows.T @ rows
    if not np.isfinite(total).all():
        check_rows(X)
    off = total / n
    return Scatter(n, shift + off, products - n * np.outer(off, off))


@dataclass(frozen=True)
class Spectrum:
    """Leading eigenpairs of the rows' scatter matrix, or of the matrix of their products.

    Parameters
    ----------
    n : int
        Rows.
    mean : ndarray of shape (d,)
    values : ndarray of shape (k,)
        Largest eigenvalues, falling.
    vectors : ndarray of shape (k, d)
    total : float
        Sum of all eigenvalues.
    spread : float
        Sum of the rows' squared deviations from their mean.
    """

    n: int
    mean: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    total: float
    spread: float


def spectrum(found: Scatter, centred: bool, k: int) -> Spectrum:
    """The k leading eigenpairs, of the products of rows or of their deviations from the mean.

    Examples
    --------
    >>> import numpy as np
    >>> found = scatter(Block(np.array([[1.0, 0.0], [3.0, 0.0]]), None, None))
    >>> spectrum(found, True, 1).values, spectrum(found, False, 1).values
    (array([2.]), array([10.]))
    """
    spread, d = float(np.trace(found.products)), len(found.mean)
    C = found.products
    if not centred:
        C = C + found.n * np.outer(found.mean, found.mean)
    values, vectors = eigh(C, subset_by_index=None if k == d else [d - k, d - 1])
    values = np.maximum(values[::-1], 0.0)
    return Spectrum(found.n, found.mean, values, vectors.T[::-1], float(np.trace(C)), spread)
