"""Newton's equation with the Hessian over a sample of the rows, as L-BFGS starts from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_solve

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


def _each_its_own(K: int, D: int) -> bool:
    """Whether each of K outputs may have a block of its own."""
    return K * D**2 <= OWN


def factors_nbytes(K: int, D: int) -> int:
    """Bytes of the factors that `Blocks` may hold."""
    return 4 * D**2 * (K if _each_its_own(K, D) else 1)


@dataclass(frozen=True)
class Blocks:
    """What is known of the blocks on the diagonal of a sample's Hessian.

    Parameters
    ----------
    curvatures : ndarray of shape (K,)
        Mean second derivatives of the loss in each score.
    factors : tuple of ndarrays of shape (d + 1, d + 1), float32
        Cholesky factors of the blocks' mean, or of each output's own; none with too many features.
    n_iter : int
        Iterations that the last equation took with them.
    """

    curvatures: np.ndarray
    factors: tuple[np.ndarray, ...]
    n_iter: int = 0


@dataclass
class OnSample:
    """Right-hand side -> solution of Newton's equation with the Hessian over a sample's rows.

    It is solved by conjugate gradients, whose products are passes over the sample. Blocks on the
    Hessian's diagonal precondition them: multiples of one block for all outputs, or, after an
    equation that took many iterations, each output's own.

    Parameters
    ----------
    problem : Problem
    run : Run
    theta : ndarray of shape (K, d + 1)
        Where the Hessian is taken.
    sample : sequence of Group
        All groups take its place where its rows weigh nothing.
    blocks : Blocks or None
        At a point nearby, if known; afterwards as found on the way.
    settled : bool
        Whether the equation was solved well enough to believe in the decrement.
    """

    problem: Problem
    run: Run
    theta: np.ndarray
    sample: tuple[Group, ...]
    blocks: Blocks | None
    settled: bool = False

    def __call__(self, q: np.ndarray) -> np.ndarray:
        """Solution for the right-hand side q of shape (K, d + 1)."""
        p, self._spent = self.problem, NOTHING
        b = centred(p, q * p.mask)
        if self.blocks is None:
            curvatures = self._product(b).mean_curvatures
            self.blocks = Blocks(curvatures, self._factors(curvatures, None))
        elif self.blocks.n_iter > MANY:
            own = _each_its_own(p.n_outputs, p.n_features + 1)
            outputs = range(p.n_outputs) if own else (None,)
            factors = self._factors(self.blocks.curvatures, *outputs)
            self.blocks = replace(self.blocks, factors=factors)
        curvatures, precondition = self.blocks.curvatures, self._preconditioner(self.blocks)
        penalty = self._penalty(curvatures)

        def product(v: np.ndarray) -> np.ndarray:
            nonlocal curvatures
            found = self._product(v)
            curvatures = found.mean_curvatures
            return centred(p, (found.mean_total + penalty * v) * p.mask)

        found, n_iter, self.settled = conjugate_gradients(product, b, precondition)
        self.blocks = replace(self.blocks, curvatures=curvatures, n_iter=n_iter)
        self.run.note(Report(self._label, self._spent, None, None, self.theta))
        return found

    def _penalty(self, curvatures: np.ndarray) -> np.ndarray:
        """The problem's; with less than this, H would be flat where it may have no curvature."""
        penalty = self.problem.penalty
        floor = 1e-9 * (float(curvatures.mean()) + float(penalty.max()) + 1e-300)
        return np.where(penalty > 0, penalty, floor)

    def _preconditioner(self, blocks: Blocks) -> Callable[[np.ndarray], np.ndarray]:
        """Right-hand side -> solution with the blocks alone."""
        p, factors = self.problem, blocks.factors
        mean = max(float(blocks.curvatures.mean()), 1e-300)
        curvatures = np.maximum(blocks.curvatures, 1e-3 * mean)[:, None]

        def solve(r: np.ndarray) -> np.ndarray:
            if not factors:  # features in standard coordinates have a mean square of 1
                return r / (curvatures + p.penalty)
            if len(factors) < p.n_outputs:
                return _solve(factors[0], r.T).T * (mean / curvatures)
            return np.array([_solve(f, row) for f, row in zip(factors, r, strict=True)])

        return lambda r: centred(p, solve(r) * p.mask)

    def _factors(self, curvatures: np.ndarray, *outputs: int | None) -> tuple[np.ndarray, ...]:
        """Factors of the outputs' blocks over some rows; of the mean of all for None."""
        p, D, K = self.problem, self.problem.n_features + 1, self.problem.n_outputs
        if D > GRAM:
            return ()
        part = self.sample[:: -(-len(self.sample) // GRAM_GROUPS)]
        every = max(1, sum(g.rows for g in part) // (GRAM_ROWS * D))
        factors, penalty = [], self._penalty(curvatures)[0]
        for k in outputs:
            gram = Gram(p.loss, p.coordinates, self.theta, k, every)
            block = self._sum(gram, part).mean / (K if k is None else 1)
            ridge = RIDGE * float(np.trace(block)) / D + 1e-300
            block[np.diag_indices(D)] += penalty + ridge
            factors.append(np.linalg.cholesky(block).astype(np.float32))
        return tuple(factors)

    def _product(self, v: np.ndarray) -> Curved:
        p = self.problem
        found = self._sum(HessianProduct(p.loss, p.coordinates, self.theta, v), self.sample)
        assert isinstance(found, Curved)
        return found

    @property
    def _label(self) -> str:
        return f"{self.run.label}-precondition"

    def _sum(self, fn: HessianProduct | Gram, groups: tuple[Group, ...]) -> Any:
        data = self.run.data
        found, totals = data.map_reduce(SolveOf(self.problem.targets, fn), self._label, groups)
        self._spent = self._spent + totals
        if found.weight > 0 or len(groups) == len(data.groups):
            return found
        self.sample = data.groups
        return self._sum(replace(fn, every=1) if isinstance(fn, Gram) else fn, data.groups)


def _solve(factor: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Solution of ``L L' x = r``, in float32 but for the scale."""
    scale = float(np.abs(r).max(initial=0.0)) or 1.0
    x = cho_solve((factor, True), (r / scale).astype(np.float32), check_finite=False)
    return x.astype(np.float64) * scale
