"""Distributed stochastic gradient descent over the strata of a grid of ratings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from daskdml.engine.sweeps import Held, Sweeps
from daskdml.kernels.factors import sgd_block
from daskdml.kernels.ratings import RatingBlock
from daskdml.solvers.factorization import Model, Sweep


@dataclass(frozen=True)
class Steps:
    """Factors of a block of users and of items, changed in place by its ratings.

    Parameters
    ----------
    model : Model
    rates : tuple of float
        Step sizes of the sweeps.
    grid : tuple of int
        Blocks of users and of items: a row is visited so many times in a sweep.
    """

    model: Model
    rates: tuple[float, ...]
    grid: tuple[int, int]

    def __call__(
        self, U: np.ndarray, V: np.ndarray, block: RatingBlock, t: int, i: int, j: int
    ) -> float:
        """One sweep over the block's ratings, users in an order drawn for this sweep.

        Gives the block's share of f: squared errors before their steps, and the penalty after.
        """
        m, one = self.model, U.dtype.type
        order = np.random.default_rng([m.seed, 2, t, i, j]).permutation(len(U))
        step = self.rates[t - 1]
        reg = one(m.reg if m.by_count else 0.0)
        if not m.by_count:
            U *= one(1 - step * m.reg / self.grid[1])
            V *= one(1 - step * m.reg / self.grid[0])
        squares = sgd_block(
            block.indptr, block.indices, block.values, order, U, V, one(m.mean), one(step),
            reg, reg, m.biases, m.nonnegative,
        )  # fmt: skip
        return float(squares) + m.reg * self._penalty(U, V, block)

    def _penalty(self, U: np.ndarray, V: np.ndarray, block: RatingBlock) -> float:
        of_users, of_items = (np.einsum("rk,rk->r", W, W, dtype=np.float64) for W in (U, V))
        if not self.model.by_count:
            return float(of_users.sum() / self.grid[1] + of_items.sum() / self.grid[0])
        columns = np.bincount(block.indices, minlength=len(V))
        return float(np.diff(block.indptr) @ of_users + columns @ of_items)


@dataclass(frozen=True)
class DSGD:
    """Stochastic gradient descent over strata [1]_: tiles of one stratum share no row.

    In stratum s of n, replica k works on tile (k, (k + s) mod n): no two replicas touch the same
    users or items. No barrier stands between strata: a tile starts when its two factors are free.
    With ``staleness=s`` it starts from the items' factors of s strata before, and its change is
    added to the newest ones [2]_.

    The objective in the history is the running one: of the errors that ratings had before their own
    steps.

    Parameters
    ----------
    learning_rate : float
        Step size of the first sweep; it falls along a line, to nearly 0 in the last one.
    max_iter : int
    staleness : int

    References
    ----------
    .. [1] Gemulla, Nijkamp, Haas, Sismanis, "Large-Scale Matrix Factorization with Distributed
       Stochastic Gradient Descent", KDD 2011.
    .. [2] Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
       Server", NIPS 2013.
    """

    learning_rate: float
    max_iter: int
    staleness: int = 0

    name: ClassVar[str] = "dsgd"
    paired: ClassVar[bool] = True

    @property
    def rates(self) -> tuple[float, ...]:
        """Step sizes of the sweeps."""
        return tuple(self.learning_rate * (1 - t / self.max_iter) for t in range(self.max_iter))

    def sweep(
        self, model: Model, data: Sweeps, t: int, users: Held, items: Held, state: Any
    ) -> tuple[Sweep, Any]:
        """All strata of a sweep."""
        rule = Steps(model, self.rates, data.ratings.grid)
        found, users, items, totals = data.strata(
            rule, t, users, items, self.staleness, "dsgd-sweep"
        )
        return Sweep(users, items, totals, found, None), state

    def small(self, sweep: Sweep, before: Sweep | None, first: Sweep, tol: float) -> str | None:
        """Stop where the objective falls by less than a small share of itself."""
        if before is None or before.objective - sweep.objective > tol * before.objective:
            return None
        return f"the objective fell by less than tol={tol:g} of itself"
