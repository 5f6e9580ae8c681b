"""Products of the rows' scatter matrix with a few directions, without the matrix; they add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdml.kernels.block import Block
from daskdml.kernels.targets import check_rows

SLAB_BYTES = 4_000_000  # of shifted rows, between their product with Q and that with what it gave
SLAB_ROWS = 1024  # of them, at most


@dataclass(frozen=True)
class Sketch:
    """The scatter matrix S of rows, and of their squares, known by its products with Q.

    Parameters
    ----------
    n : int
    mean : ndarray of shape (d,), float64
    along : ndarray of shape (l,)
        ``mean @ Q``.
    products : ndarray of shape (d, l), float64
        ``S @ Q``, S being the sum of products of the rows' deviations from their mean.
    spread : float
        Trace of S.
    """

    n: int
    mean: np.ndarray
    along: np.ndarray
    products: np.ndarray
    spread: float

    def __add__(self, other: Sketch) -> Sketch:
        n, apart = self.n + other.n, other.mean - self.mean
        weight, share = self.n * other.n / n, other.n / n
        steps = other.along - self.along
        return Sketch(
            n,
            self.mean + apart * share,
            self.along + steps * share,
            self.products + other.products + np.outer(apart, steps * weight),
            self.spread + other.spread + weight * float(apart @ apart),
        )

    def uncentred(self) -> tuple[np.ndarray, float]:
        """``X'X Q`` and the trace of ``X'X``, of the rows X as they are."""
        products = self.products + np.outer(self.n * self.mean, self.along)
        return products, self.spread + self.n * float(self.mean @ self.mean)


@dataclass(frozen=True)
class SketchOf:
    """Block -> `Sketch`; rows are multiplied in their dtype and summed in float64.

    Parameters
    ----------
    Q : ndarray of shape (d, l), float64

    Examples
    --------
    >>> import numpy as np
    >>> block = Block(np.array([[1.0, 0.0], [3.0, 1.0]]), None, None)
    >>> found = SketchOf(np.array([[1.0], [0.0]]))(block)
    >>> found.products.ravel(), found.spread
    (array([2., 1.]), 2.5)
    """

    Q: np.ndarray

    def __call__(self, block: Block) -> Sketch:
        """Products of a block's rows."""
        X = block.X
        n, d = X.shape
        Q = np.ascontiguousarray(self.Q, X.dtype)
        shift = X.mean(axis=0, dtype=np.float64).astype(X.dtype)  # near the mean: nothing cancels
        products, total, spread = np.zeros(self.Q.shape), np.zeros(d), 0.0
        step = slab_rows(d, X.dtype)
        for start in range(0, n, step):
            rows = X[start : start + step] - shift
            total += rows.sum(axis=0, dtype=np.float64)
            spread += float(np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64))
            products += rows.T @ (rows @ Q)
        if not np.isfinite(total).all():
            check_rows(X)
        off = total / n
        mean, along = shift + off, off @ self.Q
        products -= np.outer(n * off, along)
        return Sketch(n, mean, mean @ self.Q, products, spread - n * float(off @ off))


def slab_rows(d: int, dtype: np.dtype[Any]) -> int:
    """Rows of d features that are shifted at a time."""
    return max(16, min(SLAB_ROWS, SLAB_BYTES // (d * np.dtype(dtype).itemsize)))
