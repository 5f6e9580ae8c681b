"""L-BFGS whose first Hessian approximation comes from a part of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.memory import Needs
from daskdml.engine.run import Data
from daskdml.kernels.curvature import LocalNewton
from daskdml.kernels.linear import LinearPass
from daskdml.kernels.losses import Multinomial, Squared
from daskdml.kernels.products import SLAB
from daskdml.solvers import certificates
from daskdml.solvers.base import STUCK, Problem, Report, Run, SolveOf, StatsOf
from daskdml.solvers.certificates import Certificate, Model
from daskdml.solvers.newton import Newton, centred, newton_model, nowhere, proven_bound
from daskdml.solvers.search import Searched, shorten

PAIRS = 10
ESTIMATE = (
    "estimate: half of the squared Newton decrement, with the inverse Hessian of L-BFGS over "
    "Newton's equations on a sample of the rows, and the rate of progress (Nocedal & Wright 2006, "
    "7.2; Wang et al. 2018)"
)
DENSE = 512  # parameters whose Hessian is formed, over some of the rows
DENSE_ROWS = 100  # for each parameter: its eigenvalues are then within a fifth or so
STALLED = 0.9  # of the decrease predicted last: where more is left, nothing is believed
LITTLE = 0.1  # decrease to come, relative to f, below which quadratic models are believed


@dataclass(frozen=True)
class LBFGSState(Searched):
    """A point, the step that led to it, and the last pairs of steps and gradient changes.

    `whole` is whether Hessians are taken over all rows, since a part of them was no good.
    """

    origin: np.ndarray | None = None
    gradient: np.ndarray | None = None
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS [1]_, preconditioned by Newton's equation on a sample [2]_.

    A pass gives f and its gradient, and f at shorter steps along the direction that led there.
    The two-loop recursion starts from Newton's equation on a part of the rows, so that few passes
    are needed, however the features are correlated: with at most `DENSE` parameters the pass also
    takes the Hessian over some of its rows; with more, the recursion starts from the mean of the
    solutions on each of the sample's groups, by conjugate gradients.

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
        """A group's rows in standard coordinates, scores, vectors, and what a Hessian takes."""
        D, K = problem.n_features + 1, problem.n_outputs
        rows = max(g.rows for g in self.sample)
        item = np.dtype(data.source.dtype).itemsize
        vectors, part = 12 * K * D * 8, 2 * K * D * 8
        standard = rows * (D * item + 5 * K * 8) + 4 * SLAB * D * 8
        work = vectors + SLAB * D * 8 + 6 * 8 * rows
        if len(problem.free) <= DENSE:
            last = Newton().needs(problem, data)
            return Needs(max(work, last.work), last.part + part)
        return Needs(work, part, alone=vectors + standard)

    def start(self, problem: Problem, run: Run, theta: np.ndarray | None) -> LBFGSState:
        """Local SGD over the sample, unless a start is given."""
        if theta is not None:
            return LBFGSState(centred(problem, theta))
        if not self.warm:
            return LBFGSState(problem.zeros())
        from daskdml.solvers.local_sgd import warm_start_sgd

        theta = centred(problem, warm_start_sgd(problem, run, self.sample))
        return LBFGSState(theta, theta)

    def step(self, problem: Problem, run: Run, state: LBFGSState) -> tuple[LBFGSState, Report]:
        """One pass over all rows, and maybe the sample's equations, for the next direction."""
        label = f"{run.label}-lbfgs"
        dense = len(problem.free) <= DENSE
        enough = DENSE_ROWS * len(problem.free)
        every = 1 if state.whole else max(1, run.data.n_rows // enough)
        at = LinearPass(
            problem.loss, problem.coordinates, state.theta, state.direction, state.steps,
            np.float64 if dense else None, every,
        )  # fmt: skip
        stats, totals = run.data.map_reduce(StatsOf(problem.targets, at), label)
        f = problem.objective(stats.loss, stats.weight, state.theta)
        shorter = shorten(problem, state, stats, f)
        if shorter is not None:
            proven = proven_bound(problem, stats, f, state.theta, np.inf)
            if not state.whole and np.isfinite(state.f_before):
                shorter = replace(shorter, whole=True, reach=1.0)  # with a Hessian of all rows
            return shorter, Report(label, totals, f, proven, state.theta)
        g = problem.gradient(stats, state.theta).reshape(state.theta.shape) * problem.mask
        pairs = _with_pair(state, g)
        model = newton_model(problem, stats, state.theta, f, np.float64) if dense else None
        solve = _OnSample(problem, run, state.theta, self.sample) if model is None else _OnPart(
            problem, model
        )  # fmt: skip
        direction = centred(problem, -_two_loops(g, pairs, solve))
        slope = float(np.sum(g * direction))
        at_point = np.inf if model is None else certificates.bounds(model)[0]
        certificate = proven_bound(problem, stats, f, state.theta, at_point)
        estimate = _estimate(problem, state, f, -slope, model, run.data.source.dtype)
        if estimate is not None and certificate.gap > 2 * estimate.gap:
            certificate = estimate
        reason = nowhere(problem, stats)
        if state.f_before - f <= 1e-15 * abs(f) and -slope <= 1e-15 * abs(f):
            reason = STUCK
        whole = state.whole or state.crawls(-slope)
        stride = state.stride
        step = stride * direction
        after = LBFGSState(
            state.theta + step, step, f, stride * slope, stride, state.theta, g, pairs, whole
        )
        return after, Report(label, totals, f, certificate, state.theta, reason)


def _estimate(
    problem: Problem,
    state: Searched,
    f: float,
    decrement2: float,
    model: Model | None,
    dtype: np.dtype,
) -> Certificate | None:
    """Half of the squared decrement, where that is near the gap, else None.

    It is where the last step did what its model had said, little is left to gain, and f is flat
    where the model has no curvature. Without a model, slow progress shows that the sample is unlike
    the other rows, or that its equations are not solved well enough; if steps go on to leave as
    much as the last one did, the decreases to come add up to a geometric series.
    """
    squared = isinstance(problem.loss, Squared)
    if model is not None:
        decrement2 = model.decrement2()
    if not state.as_said(f, 0.2 if model else 0.5) or not (squared or decrement2 <= LITTLE * f):
        return None
    if model is not None:
        believed = not model.singular or model.flat
        kind = certificates.ESTIMATE
        gap = 0.5 * decrement2 + certificates.EPS * f
        return Certificate(f, gap, kind, False) if believed else None
    left = max(state.left(decrement2), 0.0)
    if left > STALLED:
        return None
    eps = certificates.EPS
    if isinstance(problem.loss, Multinomial):
        eps = 0.5 * float(np.finfo(dtype).eps)  # scores are taken in the rows' dtype
    return Certificate(f, 0.5 * decrement2 / (1.0 - left) + eps * f, ESTIMATE, False)


@dataclass(frozen=True)
class _OnPart:
    """Right-hand side -> solution of Newton's equation with the Hessian over some rows."""

    problem: Problem
    model: Model

    def __call__(self, q: np.ndarray) -> np.ndarray:
        free, out = self.problem.free, self.problem.zeros()
        out.flat[free] = -replace(self.model, g=q.ravel()[free] / self.model.unit).step()
        return centred(self.problem, out)


@dataclass(frozen=True)
class _OnSample:
    """Right-hand side -> mean of the solutions of Newton's equations on a sample's groups."""

    problem: Problem
    run: Run
    theta: np.ndarray
    sample: tuple[Group, ...]

    def __call__(self, q: np.ndarray) -> np.ndarray:
        p, label = self.problem, f"{self.run.label}-precondition"
        solve = LocalNewton(p.loss, p.coordinates, self.theta, p.penalty, q, p.mask)
        found, totals = self.run.data.map_reduce(
            SolveOf(p.targets, solve), label, self.sample, ahead=False
        )
        self.run.note(Report(label, totals, None, None, self.theta))
        return np.asarray(found.mean)


def _two_loops(
    g: np.ndarray,
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...],
    solve: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Product of the inverse Hessian approximation with g."""
    q, kept = g.copy(), []
    for s, y in reversed(pairs):
        alpha = float(np.sum(s * q) / np.sum(s * y))
        kept.append(alpha)
        q -= alpha * y
    r = solve(q)
    for (s, y), alpha in zip(pairs, reversed(kept), strict=True):
        beta = float(np.sum(y * r) / np.sum(s * y))
        r = r + (alpha - beta) * s
    return r


def _with_pair(state: LBFGSState, g: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    if state.origin is None or state.gradient is None:
        return ()
    s, y = state.theta - state.origin, g - state.gradient
    if float(np.sum(s * y)) <= 1e-10 * float(np.sqrt(np.sum(s * s) * np.sum(y * y))):
        return state.pairs
    return (*state.pairs, (s, y))[-PAIRS:]
