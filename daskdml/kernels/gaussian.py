"""Densities of rows under the Gaussian model of probabilistic PCA, and means over rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from daskdml.kernels.block import Block
from daskdml.kernels.targets import check_rows

SLAB_BYTES = 4_000_000  # of rows less their mean, in float64


@dataclass(frozen=True)
class LogDensity:
    """Rows (n, d) -> log density (n,) under a Gaussian [1]_, without its d x d covariance.

    The covariance is ``noise * I`` but along k components, whose variances it has.

    Parameters
    ----------
    mean : ndarray of shape (d,)
    components : ndarray of shape (k, d)
        Orthonormal.
    variances : ndarray of shape (k,)
    noise : float
        Variance along all other directions; of no matter for k = d.

    References
    ----------
    .. [1] Tipping, Bishop, "Mixtures of probabilistic principal component analyzers", Neural
       Computation 11, 1999.

    Examples
    --------
    >>> import numpy as np
    >>> density = LogDensity(np.zeros(2), np.array([[1.0, 0.0]]), np.array([4.0]), 1.0)
    >>> density(np.array([[0.0, 0.0], [2.0, 1.0]])).round(4)
    array([-2.531, -3.531])
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    noise: float

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Log densities of rows X; a `DataError` names the first that is not finite."""
        k, d = self.components.shape
        constant = d * np.log(2.0 * np.pi) + float(np.log(self.variances).sum())
        if k < d:
            constant += (d - k) * np.log(self.noise)
        out, step = np.empty(len(X)), max(1, SLAB_BYTES // (d * 8))
        for start in range(0, len(X), step):
            rows = X[start : start + step] - self.mean
            z2 = (rows @ self.components.T) ** 2
            far = (z2 / self.variances).sum(axis=1)
            if k < d:
                rest = np.einsum("ij,ij->i", rows, rows) - z2.sum(axis=1)
                far += np.maximum(rest, 0.0) / self.noise
            out[start : start + step] = -0.5 * (far + constant)
        if not np.isfinite(out).all():
            check_rows(X)
        return out


@dataclass(frozen=True)
class Mean:
    """A sum over rows and their number; they add.

    Parameters
    ----------
    n : int
    total : float
    """

    n: int
    total: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.n + other.n, self.total + other.total)


@dataclass(frozen=True)
class MeanOf:
    """Block -> `Mean` of ``rows(X)``, which gives a number for each row."""

    rows: Callable[[np.ndarray], np.ndarray]

    def __call__(self, block: Block) -> Mean:
        """Sum over a block."""
        return Mean(block.n_rows, float(self.rows(block.X).sum()))
