"""Nearest centers of rows, exact, by products of matrices; sums of clusters, which add."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdml.kernels.apart import copy_apart
from daskdml.kernels.block import Block
from daskdml.kernels.compiled import REDUCTIONS, inlined, kernel
from daskdml.kernels.predict import array_token
from daskdml.kernels.products import apart
from daskdml.kernels.targets import check_rows, row_weights

SLAB_BYTES = 2**18  # of shifted rows, which stay in cache from their products to their sums


@dataclass(frozen=True, eq=False)
class ClusterSums:
    """Statistics of rows assigned to their nearest centers; they add.

    Parameters
    ----------
    weights : ndarray of shape (k,), float64
        Sum of the weights of each cluster's rows.
    sums : ndarray of shape (k, d), float64
        Weighted sum of each cluster's rows.
    inertia : float
        Weighted sum of squared distances to the nearest centers.
    """

    weights: np.ndarray
    sums: np.ndarray
    inertia: float

    def __add__(self, other: ClusterSums) -> ClusterSums:
        weights, sums = self.weights + other.weights, self.sums + other.sums
        return ClusterSums(weights, sums, self.inertia + other.inertia)

    def means(self, otherwise: np.ndarray) -> np.ndarray:
        """Means (k, d) of the clusters; those of an empty one are in `otherwise`."""
        full = self.weights > 0
        means = otherwise.copy()
        means[full] = self.sums[full] / self.weights[full, None]
        return means

    def variance(self, centers: np.ndarray) -> float:
        """Mean variance of the features, of rows that were assigned to these centers."""
        means, total = self.means(centers), self.weights.sum()
        apart = means - self.sums.sum(axis=0) / total
        moved = np.square(apart).sum(axis=1) - np.square(means - centers).sum(axis=1)
        return float((self.inertia + self.weights @ moved) / (total * centers.shape[1]))


@dataclass(frozen=True, eq=False)
class Farthest:
    """The rows farthest from their centers, farthest first; those of different rows add.

    Parameters
    ----------
    n : int
        How many are kept.
    squares : ndarray of shape (m,), float64
        Squared distances, m <= n.
    X : ndarray of shape (m, d)
    weights : ndarray of shape (m,), float64
    nearest : ndarray of shape (m,), int32
        Indices of their centers.
    """

    n: int
    squares: np.ndarray
    X: np.ndarray
    weights: np.ndarray
    nearest: np.ndarray

    def __add__(self, other: Farthest) -> Farthest:
        squares = np.concatenate([self.squares, other.squares])
        first = np.argsort(-squares, kind="stable")[: self.n]
        X = np.concatenate([self.X, other.X])[first]
        weights = np.concatenate([self.weights, other.weights])[first]
        nearest = np.concatenate([self.nearest, other.nearest])[first]
        return Farthest(self.n, squares[first], X, weights, nearest)


@dataclass(frozen=True, eq=False)
class _Slab:
    """Some rows of X, where they begin, and the nearest center of each (n,), int32."""

    start: int
    X: np.ndarray
    nearest: np.ndarray


class Centers:
    """Centers (k, d), and the rows nearest to each; picklable.

    Squared distances are compared as ``|c|^2 / 2 - x . c`` in the dtype of the rows, after the mean
    of the centers was taken off both. Where two centers are nearer to each other than the largest
    possible error of such a comparison [1]_, the distances of these are taken in float64: nearest
    centers are those of float64, and the first of several at the same distance.

    Parameters
    ----------
    centers : ndarray of shape (k, d)

    References
    ----------
    .. [1] Higham, "Accuracy and stability of numerical algorithms", 2002, section 3.1.

    Examples
    --------
    >>> Centers(np.array([[0.0], [10.0]])).labels(np.array([[1.0], [9.0], [5.0]]))
    array([0, 1, 0], dtype=int32)
    """

    def __init__(self, centers: np.ndarray) -> None:
        self.centers = np.array(centers, dtype=np.float64)

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, array_token(self.centers)

    def labels(self, X: np.ndarray) -> np.ndarray:
        """Index of the nearest center of each row of X, shape (n,), int32."""
        found = np.empty(len(X), np.int32)
        for slab in self._slabs(np.ascontiguousarray(X)):
            found[slab.start : slab.start + len(slab.X)] = slab.nearest
        return found

    def sums(self, X: np.ndarray, s: np.ndarray) -> ClusterSums:
        """`ClusterSums` of rows X (n, d) with weights s (n,), float64."""
        k, d = self.centers.shape
        C, sums, weights = copy_apart(self.centers), apart((k, d), np.float64), np.zeros(k)
        inertia = 0.0
        for slab in self._slabs(X):
            stop = slab.start + len(slab.X)
            inertia += _add_rows(slab.X, s[slab.start : stop], slab.nearest, C, weights, sums)
        return ClusterSums(weights, np.array(sums), inertia)

    def distances(self, X: np.ndarray) -> np.ndarray:
        """Distances (n, k) of rows X to all centers, float64."""
        C, shift = copy_apart(self.centers), self.centers.mean(axis=0)
        W = self.centers - shift
        squares = np.square(W).sum(axis=1)
        found = np.empty((len(X), len(W)))
        rows = slab_rows(W.shape[1], found.itemsize)
        for start in range(0, len(X), rows):
            T = X[start : start + rows] - shift
            norms = np.square(T).sum(axis=1)
            if not np.isfinite(norms).all():
                check_rows(X)
            S = np.matmul(T, W.T)
            _roots(X[start : start + rows], C, S, norms, squares, found[start : start + rows])
        return found

    def farthest(self, X: np.ndarray, s: np.ndarray, n: int) -> Farthest:
        """The n of the rows X whose weight is not 0 that are farthest from their centers."""
        C, squares, nearest = copy_apart(self.centers), np.empty(len(X)), self.labels(X)
        _squares(X, nearest, C, squares)
        weighty = np.flatnonzero(s > 0)
        first = weighty[np.argsort(-squares[weighty], kind="stable")[:n]]
        return Farthest(n, squares[first], X[first], s[first], nearest[first])

    def _slabs(self, X: np.ndarray) -> Iterator[_Slab]:
        """Slabs of X with their nearest centers; a `DataError` names what is not finite."""
        k, d = self.centers.shape
        dtype = X.dtype
        C = copy_apart(self.centers)
        shift = self.centers.mean(axis=0).astype(dtype)
        W = (self.centers - shift).astype(dtype)
        half = 0.5 * np.square(self.centers - shift).sum(axis=1)
        reach = float(np.sqrt(2 * half.max()))
        rows = slab_rows(d, dtype.itemsize)
        T, products = np.empty((rows, d), dtype), np.empty((k, rows), dtype)
        best, second = np.empty(rows, dtype), np.empty(rows, dtype)
        margin = np.empty(rows)
        with np.errstate(over="ignore"):  # then float64 decides, row by row
            halves = half.astype(dtype)
        info = np.finfo(dtype)
        # Each score's error: of the product, of rounding its factors, and of the half square.
        per_norm = (d + 8) * float(info.eps) / 2 * reach
        least = float(info.eps) * reach**2 + 4 * d * float(info.smallest_normal)
        limit = float(info.max) / 16
        for start in range(0, len(X), rows):
            part = X[start : start + rows]
            m, nearest = len(part), np.zeros(len(part), np.int32)
            finite = _shift(part, shift, T[:m], margin, per_norm, least, limit, reach)
            if not finite:
                check_rows(X)
            with np.errstate(over="ignore", invalid="ignore"):
                S = np.matmul(W, T[:m].T, out=products if m == rows else None)
            _two_nearest(S, halves, best[:m], second[:m], nearest)
            _settle(part, C, S, halves, best, second, margin, nearest)
            yield _Slab(start, part, nearest)


def slab_rows(d: int, itemsize: int) -> int:
    """Rows of a slab."""
    return max(64, min(1024, SLAB_BYTES // (d * itemsize)) // 64 * 64)


@dataclass(frozen=True)
class SumsOf:
    """Block -> `ClusterSums`, with a clear error for rows that cannot be used."""

    centers: Centers

    def __call__(self, block: Block) -> ClusterSums:
        """Sums over a block's rows."""
        return self.centers.sums(block.X, row_weights(block, block.n_rows))


@dataclass(frozen=True)
class FarthestOf:
    """Block -> `Farthest`, n of its rows."""

    centers: Centers
    n: int

    def __call__(self, block: Block) -> Farthest:
        """Find a block's rows."""
        return self.centers.farthest(block.X, row_weights(block, block.n_rows), self.n)


@kernel(fastmath=REDUCTIONS)
def _shift(X, shift, T, margin, per_norm, least, limit, reach):  # type: ignore[no-untyped-def]
    """T = X - shift, and twice the largest error of a score of each row; whether all is finite."""
    finite = True
    for i in range(X.shape[0]):
        q = X[i, 0] * 0
        for j in range(X.shape[1]):
            t = X[i, j] - shift[j]
            T[i, j] = t
            q += t * t
        norm = np.sqrt(np.float64(q))
        margin[i] = 2.0 * (per_norm * norm + least)
        if not (norm * (1.0 + reach) < limit) or not (reach * reach < limit):
            margin[i] = np.inf
            finite = False
    return finite


@kernel()
def _two_nearest(S, half, best, second, nearest):  # type: ignore[no-untyped-def]
    """The smallest score of each row, the one after it, and whose the smallest is."""
    best[:] = np.inf
    second[:] = np.inf
    for k in range(S.shape[0]):
        h = half[k]
        for i in range(S.shape[1]):
            s, b, other = h - S[k, i], best[i], second[i]
            lower = s < b
            between = s if s < other else other
            second[i] = b if lower else between
            best[i] = s if lower else b
            nearest[i] = k if lower else nearest[i]


@inlined(fastmath=REDUCTIONS)
def _distance2(x, c):  # type: ignore[no-untyped-def]
    q = 0.0
    for j in range(x.shape[0]):
        r = np.float64(x[j]) - c[j]
        q += r * r
    return q


@kernel()
def _settle(X, C, S, half, best, second, margin, nearest):  # type: ignore[no-untyped-def]
    """Compare in float64 the distances of centers whose scores are within the margin."""
    for i in range(X.shape[0]):
        b = np.float64(best[i])
        if np.float64(second[i]) - b > margin[i]:
            continue
        least = np.inf
        for k in range(C.shape[0]):
            if np.float64(half[k] - S[k, i]) - b > margin[i]:
                continue
            q = _distance2(X[i], C[k])
            if q < least:
                least, nearest[i] = q, k


@kernel(fastmath=REDUCTIONS)
def _add_rows(X, s, nearest, C, weights, sums):  # type: ignore[no-untyped-def]
    """Add weighted rows to the sums of their clusters; returns their inertia."""
    inertia = 0.0
    for i in range(X.shape[0]):
        k, w, q = nearest[i], s[i], 0.0
        for j in range(X.shape[1]):
            x = np.float64(X[i, j])
            r = x - C[k, j]
            q += r * r
            sums[k, j] += w * x
        weights[k] += w
        inertia += w * q
    return inertia


@kernel()
def _squares(X, nearest, C, out):  # type: ignore[no-untyped-def]
    for i in range(X.shape[0]):
        out[i] = _distance2(X[i], C[nearest[i]])


@kernel()
def _roots(X, C, S, norms, squares, out):  # type: ignore[no-untyped-def]
    """Distances from products S (n, k); those that round-off would hide are taken by themselves."""
    for i in range(X.shape[0]):
        for k in range(C.shape[0]):
            both = norms[i] + squares[k]
            q = both - 2.0 * S[i, k]
            out[i, k] = np.sqrt(q if q > 1e-6 * both else _distance2(X[i], C[k]))
