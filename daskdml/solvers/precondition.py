"""Newton's equation with the Hessian over a sample of the rows, as L-BFGS starts from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from daskdml.engine.graphs import Group
from daskdml.engine.run import NOTHING
from daskdml.kernels.curvature import Curved, Gram, HessianProduct, conjugate_gradients
from daskdml.solvers.base import Problem, Report, Run, SolveOf
from daskdml.solvers.newton import centred

GRAM = 1024  # features, the intercept's 1 included, up to which their products are summed
GRAM_ROWS = 20  # for each of them
GRAM_GROUPS = 4  # of the sample, at most
OWN = 10_000_000  # entries of all outputs' blocks, up to which each may have its own
MANY = 20  # iterations, after which a better preconditioner pays
RIDGE = 1e-6  # of the mean diagonal: rows in float32 do not tell less from 0


@dataclass(frozen=True)
class Blocks:
    """What is known of the blocks on the diagonal of a sample's Hessian.

    Parameters
    ----------
    curvatures : ndarray of shape (K,)
        Mean second derivatives of the loss in each score.
    grams : ndarray of shape (1, d + 1, d + 1) or (K, d + 1, d + 1), or None
        The mean of the blocks, or each output's own; None with too many features.
    n_iter : int
        Iterations that the last equation took with them.
    """

    curvatures: np.ndarray
    grams: np.ndarray | None
    n_iter: int = 0


@dataclass
class OnSample:
    """Right-hand side -> solution of Newton's equation with the Hessian over a sample's rows.

    It is solved by conjugate gradients, whose products are passes over the sample. Blocks on the
    Hessian's diagonal precondition them: multiples of one block for all outputs, or, where that
    takes many iterations, each output's own.

    Parameters
    ----------
    problem : Problem
    run : Run
    theta : ndarray of shape (K, d + 1)
        Where the Hessian is taken.
    sample : sequence of Group
    near : Blocks or None
        At a point nearby, if known; afterwards as found on the way.
    settled : bool
        Whether the equation was solved well enough to believe in the decrement.
    """

    problem: Problem
    run: Run
    theta: np.ndarray
    sample: tuple[Group, ...]
    near: Blocks | None
    settled: bool = False

    def __call__(self, q: np.ndarray) -> np.ndarray:
        """Solution for the right-hand side q of shape (K, d + 1)."""
        p, self._spent = self.problem, NOTHING
        b = centred(p, q * p.mask)
        if self.near is None:
            self.near = Blocks(self._product(b).mean_curvatures, self._grams(None))
        elif self.near.n_iter > MANY:
            self.near = replace(self.near, grams=self._grams(*range(p.n_outputs)))
        curvatures, precondition = self.near.curvatures, self._preconditioner(self.near)
        penalty = self._penalty(curvatures)

        def product(v: np.ndarray) -> np.ndarray:
            nonlocal curvatures
            found = self._product(v)
            curvatures = found.mean_curvatures
            return centred(p, (found.mean_total + penalty * v) * p.mask)

        found, n_iter, self.settled = conjugate_gradients(product, b, precondition)
        self.near = replace(self.near, curvatures=curvatures, n_iter=n_iter)
        self.run.note(Report(self._label, self._spent, None, None, self.theta))
        return found

    def _penalty(self, curvatures: np.ndarray) -> np.ndarray:
        """The problem's; with less than this, H would be flat where it may have no curvature."""
        penalty = self.problem.penalty
        floor = 1e-9 * (float(curvatures.mean()) + float(penalty.max()) + 1e-300)
        return np.where(penalty > 0, penalty, floor)

    def _preconditioner(self, near: Blocks) -> Callable[[np.ndarray], np.ndarray]:
        """Right-hand side -> solution with the blocks alone."""
        p, curvatures = self.problem, near.curvatures[:, None]
        penalty, mean = self._penalty(near.curvatures), max(float(curvatures.mean()), 1e-300)
        if near.grams is None:  # features in standard coordinates have a mean square of 1
            return lambda r: centred(p, r / (np.maximum(curvatures, 1e-3 * mean) + penalty))
        factors = []
        for gram in near.grams:
            ridge = RIDGE * float(np.trace(gram)) / len(gram) + 1e-300
            factors.append(cho_factor(gram + np.diag(penalty[0] + ridge)))
        if len(factors) < p.n_outputs:
            scale = np.maximum(curvatures / mean, 1e-3)
            return lambda r: centred(p, cho_solve(factors[0], r.T).T / scale)
        return lambda r: centred(
            p, np.array([cho_solve(f, row) for f, row in zip(factors, r, strict=True)])
        )

    def _grams(self, *outputs: int | None) -> np.ndarray | None:
        """Means of the outputs' blocks over some rows; the mean of all for None."""
        p, D, K = self.problem, self.problem.n_features + 1, self.problem.n_outputs
        if D > GRAM:
            return None
        if K * D**2 > OWN or K == 1:
            outputs = (None,)
        part = self.sample[:: -(-len(self.sample) // GRAM_GROUPS)]
        every = max(1, sum(g.rows for g in part) // (GRAM_ROWS * D))
        means = []
        for k in outputs:
            gram = Gram(p.loss, p.coordinates, self.theta, k, every)
            means.append(self._sum(gram, part).mean / (K if k is None else 1))
        return np.array(means)

    def _product(self, v: np.ndarray) -> Curved:
        p = self.problem
        found = self._sum(HessianProduct(p.loss, p.coordinates, self.theta, v), self.sample)
        assert isinstance(found, Curved)
        return found

    @property
    def _label(self) -> str:
        return f"{self.run.label}-precondition"

    def _sum(self, fn: HessianProduct | Gram, groups: tuple[Group, ...]) -> Any:
        solve = SolveOf(self.problem.targets, fn)
        found, totals = self.run.data.map_reduce(solve, self._label, groups)
        self._spent = self._spent + totals
        return found
