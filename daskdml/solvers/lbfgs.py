"""L-BFGS whose first Hessian approximation comes from a part of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.memory import Needs
from daskdml.engine.run import Data
from daskdml.kernels.curvature import GRAM_SLAB
from daskdml.kernels.linear import LinearPass
from daskdml.kernels.losses import Multinomial, Squared
from daskdml.kernels.products import SLAB
from daskdml.solvers import certificates
from daskdml.solvers.base import STUCK, Problem, Report, Run, StatsOf
from daskdml.solvers.certificates import Certificate, Model
from daskdml.solvers.newton import Newton, centred, newton_model, nowhere, proven_bound
from daskdml.solvers.precondition import GRAM, GRAM_GROUPS, Blocks, OnSample
from daskdml.solvers.problems import spread
from daskdml.solvers.search import NEAR, Searched, line_every, shorten

PAIRS = 10
ESTIMATE = (
    "estimate: half of the squared Newton decrement, with the inverse Hessian of L-BFGS over that "
    "of a sample of the rows, and the rate of progress (Nocedal & Wright 2006, 7.2; Byrd et al. "
    "2011)"
)
DENSE = 512  # parameters whose Hessian is formed, over some of the rows
DENSE_ROWS = 100  # for each parameter: its eigenvalues are then within a fifth or so
EXACT = 1e-6  # decrement to come, relative to f, that rows in float32 would blur
SAMPLE_ROWS = 50  # for each feature, of an equation's sample
STALLED = 0.9  # of the decrease predicted last: where more is left, nothing is believed
LITTLE = 0.1  # decrease to come, relative to f, below which quadratic models are believed


@dataclass(frozen=True)
class LBFGSState(Searched):
    """A point, the step that led to it, and the last pairs of steps and gradient changes.

    `whole` is whether Hessians are taken over all rows, since a part of them was no good, and
    `doubled` how often the sample was doubled for that reason. `near` is the sample's Hessian's;
    `exact` whether sums are taken in float64, since
    float32 hides what is left.
    """

    origin: np.ndarray | None = None
    gradient: np.ndarray | None = None
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    whole: bool = False
    doubled: int = 0
    near: Blocks | None = None
    exact: bool = False


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS [1]_, preconditioned by Newton's equation on a sample [2]_.

    A pass gives f and its gradient, and f at shorter steps along the direction that led there.
    The two-loop recursion starts from Newton's equation on a part of the rows, so that few passes
    are needed, however the features are correlated: with at most `DENSE` parameters the pass also
    takes the Hessian over some of its rows; with more, the equation is solved on a sample, by
    conjugate gradients.

    Parameters
    ----------
    sample : sequence of Group
        Groups of the warm start, and of Newton's equation if they have rows enough.
    warm : bool
        Whether to begin with local SGD over the sample.

    References
    ----------
    .. [1] Nocedal, "Updating quasi-Newton matrices with limited storage", Math. Comp. 35, 1980.
    .. [2] Byrd, Chin, Neveitt, Nocedal, "On the use of stochastic Hessian information in
       optimization methods for machine learning", SIAM J. Optim. 21, 2011.
    """

    sample: tuple[Group, ...]
    warm: bool = True

    def needs(self, problem: Problem, data: Data) -> Needs:
        """Slabs of rows, coefficients and their sums, and what a Hessian takes."""
        D, K = problem.n_features + 1, problem.n_outputs
        work, part = 12 * K * D * 8 + SLAB * D * 8, 2 * K * D * 8
        if D <= GRAM:
            grams = D**2 * 8 + GRAM_SLAB * D * 8 + (GRAM_GROUPS + 1) * D**2 // 2 * 8
            work = max(work, grams)
        if len(problem.free) <= DENSE:
            last = Newton().needs(problem, data)
            return Needs(max(work, last.work), last.part + part)
        return Needs(work, part)

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
            np.float64 if dense else None, every, line_every(run.data.n_rows), state.exact,
        )  # fmt: skip
        stats, totals = run.data.map_reduce(StatsOf(problem.targets, at), label)
        f = problem.objective(stats.loss, stats.weight, state.theta)
        shorter = shorten(problem, state, stats, f)
        if shorter is not None:
            proven = proven_bound(problem, stats, f, state.theta, np.inf)
            if dense and not state.whole and np.isfinite(state.f_before):
                shorter = replace(shorter, whole=True, reach=1.0)  # with a Hessian of all rows
            elif not dense and -state.slope <= NEAR * abs(state.f_before):
                shorter = replace(shorter, doubled=state.doubled + 1)
            return shorter, Report(label, totals, f, proven, state.theta)
        g = problem.gradient(stats, state.theta).reshape(state.theta.shape) * problem.mask
        pairs = _with_pair(state, g)
        model = newton_model(problem, stats, state.theta, f, np.float64) if dense else None
        rows = self._rows(problem, run.data, state.doubled)
        on_sample = OnSample(problem, run, state.theta, rows, state.near)
        solve = on_sample if model is None else _OnPart(problem, model)
        direction = centred(problem, -_two_loops(g, pairs, solve))
        slope = float(np.sum(g * direction))
        at_point = np.inf if model is None else certificates.bounds(model)[0]
        certificate = proven_bound(problem, stats, f, state.theta, at_point)
        estimate = None
        if model is not None or on_sample.settled:
            estimate = _estimate(problem, state, f, -slope, model, run.data.source.dtype)
        if estimate is not None and certificate.gap > 2 * estimate.gap:
            certificate = estimate
        reason = nowhere(problem, stats)
        if state.f_before - f <= 1e-15 * abs(f) and -slope <= 1e-15 * abs(f):
            reason = STUCK
        crawls = state.crawls(-slope)
        stride = state.stride
        step = stride * direction
        after = LBFGSState(
            state.theta + step, step, f, stride * slope, stride, state.theta, g, pairs,
            state.whole or crawls, state.doubled + crawls, on_sample.near,
            state.exact or -slope <= EXACT * abs(f),
        )  # fmt: skip
        return after, Report(label, totals, f, certificate, state.theta, reason)

    def _rows(self, problem: Problem, data: Data, doubled: int) -> tuple[Group, ...]:
        """Groups with rows enough for a Hessian, the sample's at least."""
        enough = SAMPLE_ROWS * (problem.n_features + 1) * 2**doubled
        n = math.ceil(enough * len(data.groups) / data.n_rows)
        return spread(data.groups, min(len(data.groups), max(len(self.sample), n)))


def _estimate(
    problem: Problem,
    state: LBFGSState,
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
    if not state.as_said(f, 0.2 if model else 0.4) or not (squared or decrement2 <= LITTLE * f):
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
    if isinstance(problem.loss, Multinomial) and not state.exact:
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
