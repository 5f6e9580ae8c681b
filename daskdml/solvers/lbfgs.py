"""L-BFGS whose first Hessian approximation comes from a part of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.memory import FAN_IN, Needs
from daskdml.engine.run import Data, PassTotals
from daskdml.kernels.curvature import GRAM_SLAB
from daskdml.kernels.linear import LinearPass, LinearStats
from daskdml.kernels.losses import Multinomial, Squared
from daskdml.kernels.products import SLAB
from daskdml.solvers import certificates
from daskdml.solvers.base import STUCK, Problem, Report, Run, StatsOf
from daskdml.solvers.certificates import Certificate, Model
from daskdml.solvers.newton import Newton, centred, newton_model, nowhere, proven_bound
from daskdml.solvers.precondition import GRAM, Blocks, OnSample, factors_nbytes
from daskdml.solvers.problems import spread
from daskdml.solvers.search import Searched, cut, line_every, shorten

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
    """A point, the step that led to it, and what is known from the steps before.

    Parameters
    ----------
    origin, gradient : ndarray of shape (K, d + 1) or None
        Where the step began, and the gradient there.
    pairs : tuple of (ndarray, ndarray)
        The last steps and the changes of the gradient that they made.
    doubled : int
        How often the sample was doubled, since its Hessian was no good.
    blocks : Blocks or None
        Of the sample's Hessian where the step began.
    exact : bool
        Whether sums are taken in float64, since float32 hides what is left.
    """

    origin: np.ndarray | None = None
    gradient: np.ndarray | None = None
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    doubled: int = 0
    blocks: Blocks | None = None
    exact: bool = False


def _dense(problem: Problem) -> bool:
    """Whether a pass forms the Hessian, over some of the rows."""
    return len(problem.free) <= DENSE


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
            work += factors_nbytes(K, D) + 2 * D**2 * 8 + GRAM_SLAB * D * 8
            part = max(part, 5 * D**2 * 8 // FAN_IN)  # few groups, but large sums
        if _dense(problem):
            last = Newton().needs(problem, data)
            return Needs(max(work, last.work), last.part + part)
        return Needs(work, part)

    def start(self, problem: Problem, run: Run, theta: np.ndarray | None) -> LBFGSState:
        """Local SGD over the sample, unless a start is given."""
        if theta is not None:
            return LBFGSState(centred(problem, theta), exact=True)  # it may be near the optimum
        if not self.warm:
            return LBFGSState(problem.zeros())
        from daskdml.solvers.local_sgd import warm_start_sgd

        theta = centred(problem, warm_start_sgd(problem, run, self.sample))
        return LBFGSState(theta, theta)

    def step(self, problem: Problem, run: Run, state: LBFGSState) -> tuple[LBFGSState, Report]:
        """One pass over all rows, and maybe several over the sample, for the next direction."""
        label, dense = f"{run.label}-lbfgs", _dense(problem)
        stats, totals = self._pass(problem, run, state, label)
        f = problem.objective(stats.loss, stats.weight, state.theta)
        shorter = (cut if dense else shorten)(problem, state, stats, f)
        if shorter is not None:
            if not dense and state.near:
                shorter = replace(shorter, doubled=state.doubled + 1)
            proven = proven_bound(problem, stats, f, state.theta, np.inf)
            return shorter, Report(label, totals, f, proven, state.theta)
        g = problem.gradient(stats, state.theta).reshape(state.theta.shape) * problem.mask
        pairs = _with_pair(state, g)
        sample = self._groups(problem, run.data, state.doubled)
        solve = (
            _OnPart(problem, newton_model(problem, stats, state.theta, f, np.float64))
            if dense else OnSample(problem, run, state.theta, sample, state.blocks)
        )  # fmt: skip
        direction = state.stride * centred(problem, -_two_loops(g, pairs, solve))
        slope = float(np.sum(g * direction))
        decrement2 = -slope / state.stride
        certificate = _certificate(problem, state, stats, f, decrement2, solve, run.data)
        reason = nowhere(problem, stats)
        if state.f_before - f <= 1e-15 * abs(f) and decrement2 <= 1e-15 * abs(f):
            reason = STUCK
        crawls = state.crawls(decrement2)
        after = LBFGSState(
            state.theta + direction, direction, f, slope, state.stride, state.whole or crawls,
            _rounding(problem, state, run.data) * abs(f), state.theta, g, pairs,
            state.doubled + crawls, solve.blocks, state.exact or decrement2 <= EXACT * abs(f),
        )  # fmt: skip
        return after, Report(label, totals, f, certificate, state.theta, reason)

    def _pass(
        self, problem: Problem, run: Run, state: LBFGSState, label: str
    ) -> tuple[LinearStats, PassTotals]:
        dense, rows = _dense(problem), run.data.n_rows
        every = 1 if state.whole else max(1, rows // (DENSE_ROWS * len(problem.free)))
        at = LinearPass(
            problem.loss, problem.coordinates, state.theta, state.direction, state.steps,
            np.float64 if dense else None, every, line_every(rows), state.exact,
        )  # fmt: skip
        return run.data.map_reduce(StatsOf(problem.targets, at), label)

    def _groups(self, problem: Problem, data: Data, doubled: int) -> tuple[Group, ...]:
        """Groups with rows enough for a Hessian, the sample's at least."""
        share = SAMPLE_ROWS * (problem.n_features + 1) / data.n_rows
        n = max(len(self.sample), math.ceil(share * len(data.groups)))
        return spread(data.groups, min(len(data.groups), n * 2 ** min(doubled, 30)))


@dataclass(frozen=True)
class _OnPart:
    """Right-hand side -> solution of Newton's equation with the Hessian over some rows."""

    problem: Problem
    model: Model
    blocks: None = None

    def __call__(self, q: np.ndarray) -> np.ndarray:
        free, out = self.problem.free, self.problem.zeros()
        out.flat[free] = -replace(self.model, g=q.ravel()[free] / self.model.unit).step()
        return centred(self.problem, out)


def _certificate(
    problem: Problem,
    state: LBFGSState,
    stats: LinearStats,
    f: float,
    decrement2: float,
    solved: _OnPart | OnSample,
    data: Data,
) -> Certificate:
    """A proven bound, or an estimate that says much more."""
    if isinstance(solved, _OnPart):
        at_point = certificates.bounds(solved.model)[0]
        proven = proven_bound(problem, stats, f, state.theta, at_point)
        estimate = _estimate_on_part(problem, state, f, solved.model)
    else:
        proven = proven_bound(problem, stats, f, state.theta, np.inf)
        estimate = None
        if solved.settled:
            estimate = _estimate_on_sample(problem, state, f, decrement2, data)
    return estimate if estimate is not None and proven.gap > 2 * estimate.gap else proven


def _little(problem: Problem, f: float, decrement2: float) -> bool:
    return isinstance(problem.loss, Squared) or decrement2 <= LITTLE * f


def _estimate_on_part(
    problem: Problem, state: LBFGSState, f: float, model: Model
) -> Certificate | None:
    """Half of the squared decrement, where that is near the gap, else None.

    It is where the last step did what its model had said, little is left to gain, and f is flat
    where the model has no curvature.
    """
    decrement2 = model.decrement2()
    flat = not model.singular or model.flat
    if not (flat and state.as_said(f) and _little(problem, f, decrement2)):
        return None
    return Certificate(f, 0.5 * decrement2 + certificates.EPS * f, certificates.ESTIMATE, False)


def _estimate_on_sample(
    problem: Problem, state: LBFGSState, f: float, decrement2: float, data: Data
) -> Certificate | None:
    """Half of the squared decrement, where that is near the gap, else None.

    It is where the last step did about what its model had said and little is left to gain. Slow
    progress shows that the sample is unlike the other rows: if steps go on to leave as much as the
    last one did, the decreases to come add up to a geometric series.
    """
    left = max(state.left(decrement2), 0.0)
    if left > STALLED or not (state.as_said(f, 0.4) and _little(problem, f, decrement2)):
        return None
    gap = 0.5 * decrement2 / (1.0 - left) + _rounding(problem, state, data) * f
    return Certificate(f, gap, ESTIMATE, False)


def _rounding(problem: Problem, state: LBFGSState, data: Data) -> float:
    """Relative round-off of f: scores of several outputs are taken in the rows' dtype at first."""
    blurred = isinstance(problem.loss, Multinomial) and not (_dense(problem) or state.exact)
    return 0.5 * float(np.finfo(data.source.dtype if blurred else np.float64).eps)


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
