"""Alternating least squares over tiles of users and of items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import numpy as np

from daskdml.engine.memory import Needs
from daskdml.engine.sweeps import Held, Sweeps
from daskdml.kernels.factors import (
    Normals,
    add_ratings,
    batch_rows,
    cg_implicit,
    descend_rows,
    normals_nbytes,
    solve_rows,
)
from daskdml.kernels.ratings import RatingBlock
from daskdml.solvers.factorization import Model, Sweep


@dataclass(frozen=True)
class HalfStats:
    """Sums over rows that were solved for; they add.

    Parameters
    ----------
    value : float
        Of f without the other side's penalty, at the new rows.
    penalty : float
        The new rows' share of it.
    gradient : float
        Squared norm of the gradient of f at the old rows.
    gram : ndarray of shape (m, m)
        ``sum of w w'`` of the new rows.
    """

    value: float
    penalty: float
    gradient: float
    gram: np.ndarray

    def __add__(self, other: HalfStats) -> HalfStats:
        return HalfStats(
            self.value + other.value, self.penalty + other.penalty,
            self.gradient + other.gradient, self.gram + other.gram,
        )  # fmt: skip


@dataclass(frozen=True)
class SolveRows:
    """Old rows of one side, their ratings, the other side's rows -> new rows, `HalfStats`.

    Parameters
    ----------
    model : Model
    gram : ndarray of shape (k, k) or None
        Of the other side's rows, for implicit feedback.
    """

    model: Model
    gram: np.ndarray | None

    def __call__(
        self, old: np.ndarray, block: RatingBlock, factors: np.ndarray
    ) -> tuple[np.ndarray, HalfStats]:
        """Solve for all rows of a block."""
        new = old.copy()
        found, const = np.zeros((3, len(old))), np.zeros(len(old))
        if self.model.cg_steps:
            self._descend(new, block, factors, found, const)
        else:
            self._solve(new, block, factors, found, const)
        gradient, value, penalty = found.sum(axis=1)
        w = new[:, : self.model.k].astype(np.float64)
        return new, HalfStats(float(value + const.sum()), float(penalty), float(gradient), w.T @ w)

    def _descend(
        self, new: np.ndarray, block: RatingBlock, factors: np.ndarray, found: np.ndarray,
        const: np.ndarray,
    ) -> None:  # fmt: skip
        model, one = self.model, new.dtype.type
        assert self.gram is not None
        cg_implicit(
            block.indptr, block.indices, block.values, factors, self.gram.astype(new.dtype),
            one(model.alpha), model.reg, model.power, model.cg_steps, new, found, const,
        )  # fmt: skip

    def _solve(
        self, new: np.ndarray, block: RatingBlock, factors: np.ndarray, found: np.ndarray,
        const: np.ndarray,
    ) -> None:  # fmt: skip
        model, m, one = self.model, self.model.unknowns, new.dtype.type
        base = None if self.gram is None else self.gram.astype(new.dtype)
        batch = batch_rows(m, new.itemsize)
        normals = Normals.zeros(min(batch, len(new)), m, new.dtype)
        for lo in range(0, len(new), batch):
            rows = slice(lo, lo + batch)
            at = normals.begin(len(new[rows]), base)
            add_ratings(
                at.A, at.b, at.const, at.count, block.indptr[lo : lo + len(at.b) + 1],
                block.indices, block.values, factors, one(model.mean), one(model.alpha),
                model.implicit, model.biases,
            )  # fmt: skip
            equations = at.A, at.b, at.count, model.reg, model.power
            if model.nonnegative:
                descend_rows(*equations, model.k, m, new[rows], found[:, rows])
            else:
                solve_rows(*equations, m, new[rows], found[:, rows])
            const[rows] += at.const


@dataclass(frozen=True)
class ALS:
    """Alternating least squares: explicit [1]_ or implicit [2]_ feedback.

    A half-step minimises f exactly over all users (then all items): each row's normal equations are
    summed over its ratings, and solved by Cholesky's method, or, for nonnegative factors, by
    coordinate descent. With ``model.cg_steps``, implicit feedback takes so many conjugate gradient
    steps from the row's old factors instead [3]_, which form no matrix.

    f falls in every half-step, and comes out of it: at a solution x of ``A x = b``, the row's share
    is ``const - b . x``. So does the gradient's norm at the point (new users, old items): where
    solutions are exact, the users' part of it is 0 there, and the items' is ``2 (A x - b)`` at the
    old items.

    References
    ----------
    .. [1] Zhou, Wilkinson, Schreiber, Pan, "Large-scale Parallel Collaborative Filtering for the
       Netflix Prize", AAIM 2008.
    .. [2] Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008.
    .. [3] Takacs, Pilaszy, Tikk, "Applications of the Conjugate Gradient Method for Implicit
       Feedback Collaborative Filtering", RecSys 2011.
    """

    name: ClassVar[str] = "als"
    paired: ClassVar[bool] = False

    def needs(self, model: Model) -> Needs:
        """Bytes of a task's equations."""
        m, itemsize = model.unknowns, model.dtype.itemsize
        return Needs(work=batch_rows(m, itemsize) * normals_nbytes(m, itemsize))

    def sweep(
        self, model: Model, data: Sweeps, t: int, users: Held, items: Held, state: Any
    ) -> tuple[Sweep, Any]:
        """Solve for the users, then for the items; the state is the items' Gram matrix."""
        gram = state
        if model.implicit and gram is None:
            gram = data.gram(items, model.k)
        rule = SolveRows(model, gram)
        found, users, first = data.half_sweep("user", rule, users, items, "als-sweep")
        of_users = reduce(add, found)
        rule = SolveRows(model, of_users.gram if model.implicit else None)
        found, items, second = data.half_sweep("item", rule, items, users, "als-sweep")
        of_items = reduce(add, found)
        objective = of_items.value + of_users.penalty
        if model.implicit:
            gram = of_items.gram
        gradient = math.sqrt(of_items.gradient)
        return Sweep(users, items, first + second, objective, gradient), gram

    def small(self, sweep: Sweep, before: float | None, steepest: float, tol: float) -> str | None:
        """Stop where the gradient's norm is a small share of the largest one."""
        assert sweep.gradient is not None
        if before is not None and sweep.gradient <= tol * steepest:
            return f"the gradient's norm is below tol={tol:g} of the largest in this fit"
        return None
