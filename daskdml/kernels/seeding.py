"""A sample of all rows, and the centers among them from which k-means starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskdml.kernels.block import Block
from daskdml.kernels.targets import check_rows, row_weights


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows and their weights; samples of different rows add.

    Parameters
    ----------
    X : ndarray of shape (m, d)
    weights : ndarray of shape (m,), float64
        All above 0.
    """

    X: np.ndarray
    weights: np.ndarray

    def __add__(self, other: Sample) -> Sample:
        X = np.concatenate([self.X, other.X])
        return Sample(X, np.concatenate([self.weights, other.weights]))


@dataclass(frozen=True)
class SampleOf:
    """Block -> `Sample` of its rows, a function of the seed and of where the block begins.

    Parameters
    ----------
    share : float
        Of the rows; each is as likely as any other. All of them for 1.
    seed : int

    Examples
    --------
    >>> block = Block(np.arange(1000.0).reshape(-1, 1), None, None)
    >>> len(SampleOf(0.1, seed=0)(block).X)
    100
    """

    share: float
    seed: int

    def __call__(self, block: Block) -> Sample:
        """Draw from a block's rows."""
        s, n = row_weights(block, block.n_rows), block.n_rows
        chosen = np.arange(n)
        if self.share < 1:
            random = np.random.default_rng((self.seed, block.start))
            chosen = np.sort(random.choice(n, int(self.share * n + random.random()), replace=False))
        chosen = chosen[s[chosen] > 0]
        X = block.X[chosen]
        if not np.isfinite(X).all():
            check_rows(block.X)
        return Sample(X, s[chosen])


def in_order(sample: Sample, seed: int) -> Sample:
    """The rows in an order that depends on what they are, and not on where they lay."""
    along = np.random.default_rng(seed).standard_normal(sample.X.shape[1])
    order = np.argsort(sample.X @ along, kind="stable")
    return Sample(sample.X[order], sample.weights[order])


def draw_random(sample: Sample, k: int, seed: int) -> np.ndarray:
    """k rows (k, d), float64, drawn with their weights, no row twice while there are others."""
    random, left = np.random.default_rng(seed), sample.weights.copy()
    chosen = []
    for _ in range(k):
        chosen.append(_draw(left if left.any() else sample.weights, random.random(1))[0])
        left[chosen[-1]] = 0.0
    return sample.X[chosen].astype(np.float64)


def draw_apart(sample: Sample, k: int, seed: int) -> np.ndarray:
    """k rows (k, d), float64, far from each other: greedy k-means++ [1]_.

    Each is drawn with the squares of the distances to those chosen before it; of several so drawn
    the one is taken that lowers the sum of squares most.

    Parameters
    ----------
    sample : Sample
    k : int
    seed : int

    References
    ----------
    .. [1] Arthur, Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.

    Examples
    --------
    >>> sample = Sample(np.array([[0.0], [1.0], [100.0], [101.0]]), np.ones(4))
    >>> np.sort(draw_apart(sample, 2, seed=0).ravel().round(-2))
    array([  0., 100.])
    """
    random, s = np.random.default_rng(seed), sample.weights
    tries = 2 + int(np.log(k))
    T = sample.X - np.average(sample.X, axis=0, weights=s).astype(sample.X.dtype)
    norms = np.einsum("ij,ij->i", T, T)
    first = _draw(s, random.random(1))
    chosen, closest = first.tolist(), _squares(T, norms, first)[0]
    for _ in range(1, k):
        cost = s * closest
        drawn = _draw(cost if cost.any() else s, random.random(tries))
        nearer = np.minimum(closest, _squares(T, norms, drawn))
        best = int(np.argmin(nearer @ s))
        chosen.append(int(drawn[best]))
        closest = nearer[best]
    return sample.X[chosen].astype(np.float64)


def _draw(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Indices drawn with the weights, one for each number from 0 to 1."""
    total = np.cumsum(weights, dtype=np.float64)
    drawn = np.searchsorted(total, uniform * total[-1], side="right")
    return np.minimum(drawn, np.flatnonzero(weights)[-1])


def _squares(T: np.ndarray, norms: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Squared distances (c, m) of rows T (m, d) to those chosen; 0 where round-off hides them."""
    found = norms[chosen][:, None] + norms
    tiny = 4 * np.finfo(T.dtype).eps * found
    found -= 2 * (T[chosen] @ T.T)
    return np.where(found > tiny, found, 0)
