"""L-BFGS whose first Hessian approximation is solved for on a sample of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.memory import Needs
from daskdml.engine.run import Data
from daskdml.kernels.curvature import LocalNewton
from daskdml.kernels.linear import SLAB_ROWS, LinearPass
from daskdml.solvers.base import Problem, Report, Run, SolveOf, StatsOf
from daskdml.solvers.certificates import Certificate
from daskdml.solvers.newton import proven_bound
from daskdml.solvers.search import Searched, shorten

PAIRS = 10
ESTIMATE = (
    "estimate: half of the squared Newton decrement, with the inverse Hessian of L-BFGS over "
    "Newton's equations on a sample of the rows (Nocedal & Wright 2006, 7.2; Wang et al. 2018)"
)


@dataclass(frozen=True)
class LBFGSState(Searched):
    """A point, the step that led to it, and the last pairs of steps and gradient changes."""

    origin: np.ndarray | None = None
    gradient: np.ndarray | None = None
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS [1]_, preconditioned by Newton's equation on a sample [2]_.

    A pass gives f and its gradient, and f at shorter steps along the direction that led there.
    The two-loop recursion starts from the mean of the solutions of Newton's equation on each of the
    sample's groups, so that few passes are needed, however the features are correlated.

    Parameters
    ----------
    sample : sequence of Group
        Groups whose Newton equations are solved.
    warm : bool
        Whether to begin with local SGD over the sample.

    References
    ----------
    .. [1] Nocedal, "Updating quasi-Newton matrices with limited storage", Math. Comp. 35, 1980.
    .. [2] Wang, Roosta, Xu, Mahoney, "GIANT: Globally Improved Approximate Newton Method for
       Distributed Optimization", NeurIPS 2018.
    """

    sample: tuple[Group, ...]
    warm: bool = True

    def needs(self, problem: Problem, data: Data) -> Needs:
        """A group's rows in standard coordinates, scores, slabs and vectors of parameters."""
        D, K = problem.n_features + 1, problem.n_outputs
        rows = max(g.rows for g in self.sample)
        item = np.dtype(data.source.dtype).itemsize
        standard = rows * (D * item + 5 * K * 8)
        return Needs(work=standard + 2 * SLAB_ROWS * D * 8 + 12 * K * D * 8, part=2 * K * D * 8)

    def start(self, problem: Problem, run: Run, theta: np.ndarray | None) -> LBFGSState:
        """Local SGD over the sample, unless a start is given."""
        if theta is not None:
            return LBFGSState(theta)
        if not self.warm:
            return LBFGSState(problem.zeros())
        from daskdml.solvers.local_sgd import warm_start_sgd

        theta = warm_start_sgd(problem, run, self.sample)
        return LBFGSState(theta, theta)

    def step(self, problem: Problem, run: Run, state: LBFGSState) -> tuple[LBFGSState, Report]:
        """One pass over all rows, and the sample's equations for the next direction."""
        label = f"{run.label}-lbfgs"
        at = LinearPass(
            problem.loss, problem.coordinates, state.theta, state.direction, state.steps
        )
        stats, totals = run.data.map_reduce(StatsOf(problem.targets, at), label)
        f = problem.objective(stats.loss, stats.weight, state.theta)
        shorter = shorten(problem, state, stats, f)
        if shorter is not None:
            return shorter, Report(label, totals, f, None, state.theta)
        g = problem.gradient(stats, state.theta).reshape(state.theta.shape) * problem.mask
        pairs = _with_pair(state, g)
        direction = self._direction(problem, run, state.theta, g, pairs)
        slope = float(np.sum(g * direction))
        certificate = Certificate(f, -0.5 * slope, ESTIMATE, False)
        if problem.n_outputs == 1:
            proven = proven_bound(problem, stats, f, state.theta, np.inf)
            certificate = proven if proven.gap <= certificate.gap else certificate
        stuck = state.f_before - f <= 1e-15 * abs(f) and -slope <= 1e-15 * abs(f)
        reason = "round-off hides any further decrease" if stuck else None
        after = LBFGSState(state.theta + direction, direction, f, slope, state.theta, g, pairs)
        return after, Report(label, totals, f, certificate, state.theta, reason)

    def _direction(
        self,
        problem: Problem,
        run: Run,
        theta: np.ndarray,
        g: np.ndarray,
        pairs: tuple[tuple[np.ndarray, np.ndarray], ...],
    ) -> np.ndarray:
        """Minus the inverse Hessian approximation's product with g (the two-loop recursion)."""
        q, kept = g.copy(), []
        for s, y in reversed(pairs):
            alpha = float(np.sum(s * q) / np.sum(s * y))
            kept.append(alpha)
            q -= alpha * y
        solve = LocalNewton(
            problem.loss, problem.coordinates, theta, problem.penalty, q, problem.mask
        )
        label = f"{run.label}-precondition"
        found, totals = run.data.map_reduce(SolveOf(problem.targets, solve), label, self.sample)
        run.note(Report(label, totals, None, None, theta))
        r = found.mean
        for (s, y), alpha in zip(pairs, reversed(kept), strict=True):
            beta = float(np.sum(y * r) / np.sum(s * y))
            r = r + (alpha - beta) * s
        return np.asarray(-r)


def _with_pair(state: LBFGSState, g: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    if state.origin is None or state.gradient is None:
        return ()
    s, y = state.theta - state.origin, g - state.gradient
    if float(np.sum(s * y)) <= 1e-10 * float(np.sqrt(np.sum(s * s) * np.sum(y * y))):
        return state.pairs
    return (*state.pairs, (s, y))[-PAIRS:]
