"""Distributed stochastic gradient descent over the strata of a grid of ratings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from daskdml.engine.sweeps import Held, Sweeps
from daskdml.io.rating_store import Walk
from daskdml.io.ratings import Ratings
from daskdml.kernels.factors import sgd_block
from daskdml.kernels.ratings import RatingBlock
from daskdml.solvers.factorization import Model, Sweep

EXTRA = 3  # numbers behind a row's factors and bias: see `sgd_block`


@dataclass(frozen=True)
class WithSums:
    """First rows of a block, with what SGD keeps behind the factors and the bias.

    Parameters
    ----------
    first : callable
        ``(block, rows) -> (rows, k + 1)``.
    ratings : Ratings
    walk : {"user", "item"}
    power : float
        Of the model.
    """

    first: Callable[[int, int], np.ndarray]
    ratings: Ratings
    walk: Walk
    power: float

    def __call__(self, block: int, rows: int) -> np.ndarray:
        """Rows (rows, k + 4); those without ratings are 0."""
        factors = self.first(block, rows)
        counts = self.ratings.counts(self.walk, block).astype(np.float64)
        factors[counts == 0] = 0
        ones = np.ones((rows, EXTRA), factors.dtype)
        ones[:, -1] = np.maximum(counts, 1) ** (self.power - 1)
        return np.concatenate([factors, ones], axis=1)


@dataclass(frozen=True)
class Steps:
    """Rows of a block of users and of items, changed in place by its ratings.

    Parameters
    ----------
    model : Model
    rate : float
        Step size of a row's first rating.
    """

    model: Model
    rate: float

    def __call__(
        self, U: np.ndarray, V: np.ndarray, block: RatingBlock, t: int, i: int, j: int
    ) -> float:
        """One sweep over the block's ratings, users in an order drawn for this sweep.

        Gives the block's share of f: squared errors before their steps, and the penalty after.
        """
        m, one = self.model, U.dtype.type
        order = np.random.default_rng([m.seed, 2, t, i, j]).permutation(len(U))
        squares = sgd_block(
            block.indptr, block.indices, block.values, order, U, V, m.k, one(m.mean),
            one(self.rate), one(m.reg), m.biases, m.nonnegative,
        )  # fmt: skip
        return float(squares) + m.reg * self._penalty(U, V, block)

    def _penalty(self, U: np.ndarray, V: np.ndarray, block: RatingBlock) -> float:
        counts = np.diff(block.indptr), np.bincount(block.indices, minlength=len(V))
        total = 0.0
        for W, n in zip((U, V), counts, strict=True):
            w = W[:, : self.model.width]
            squares = np.einsum("rk,rk->r", w, w).astype(np.float64)
            total += float((squares * W[:, -1]) @ n)
        return total


@dataclass(frozen=True)
class DSGD:
    """Stochastic gradient descent over strata [1]_: tiles of one stratum share no row.

    In stratum s of n, replica k works on tile (k, (k + s) mod n): no two replicas touch the same
    users or items. No barrier stands between strata: a tile starts when its two factors are free.
    With ``staleness=s`` it starts from the items' factors of s strata before, and its change is
    added to the newest ones [2]_. Each row's step size falls with the sum of its squared gradients
    [3]_.

    The objective in the history is the running one: of the errors that ratings had before their own
    steps.

    Parameters
    ----------
    rate : float
        Step size of a row's first rating.
    staleness : int

    References
    ----------
    .. [1] Gemulla, Nijkamp, Haas, Sismanis, "Large-Scale Matrix Factorization with Distributed
       Stochastic Gradient Descent", KDD 2011.
    .. [2] Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
       Server", NIPS 2013.
    .. [3] Chin, Zhuang, Juan, Lin, "A Learning-rate Schedule for Stochastic Gradient Methods to
       Matrix Factorization", PAKDD 2015.
    """

    rate: float
    staleness: int = 0

    name: ClassVar[str] = "dsgd"
    paired: ClassVar[bool] = True

    def sweep(
        self, model: Model, data: Sweeps, t: int, users: Held, items: Held, state: Any
    ) -> tuple[Sweep, Any]:
        """All strata of a sweep."""
        rule = Steps(model, self.rate)
        found, users, items, totals = data.strata(
            rule, t, users, items, self.staleness, "dsgd-sweep"
        )
        return Sweep(users, items, totals, found, None), state

    def small(self, sweep: Sweep, before: float | None, steepest: float, tol: float) -> str | None:
        """Stop where the objective falls by less than a small share of itself."""
        if before is None or before - sweep.objective > tol * before:
            return None
        return f"the objective fell by less than tol={tol:g} of itself"
