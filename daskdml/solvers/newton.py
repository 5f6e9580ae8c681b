"""Newton's method with block Hessians summed in a fixed tree, from a solution on a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.memory import Needs
from daskdml.engine.run import Data, PassTotals
from daskdml.kernels.linear import SLAB_ROWS, LinearPass, LinearStats
from daskdml.kernels.losses import Multinomial, Squared
from daskdml.solvers import certificates
from daskdml.solvers.base import STUCK, Problem, Report, Run, SolveOf, StatsOf
from daskdml.solvers.certificates import Certificate, Model
from daskdml.solvers.search import Searched, cut, line_every, shorten

SAMPLE_STEPS = 15
HEAD = 8  # of a block's rows, the part on which its solution is begun
LITTLE = 1e-10  # decrease to come, relative to f, at which what is not proven by then never is
PROVEN_ENOUGH = 1e-10  # of f: a smaller bound is not given up for an estimate
ROWS_PER_PARAMETER = 10_000  # of a Hessian: its error is then about a per cent


@dataclass(frozen=True)
class NewtonState(Searched):
    """A point, the step that led to it, and in which dtype rows are multiplied for Hessians."""

    dtype: type = np.float64


@dataclass(frozen=True)
class Newton:
    """Newton's method: one pass per step.

    A pass gives f, its gradient, its Hessian, and f at shorter steps along the direction that led
    there, so that a step that went too far is cut without another pass. A sample of the groups is
    solved first: its solution is as good as its sampling error, which one step on all rows squares.

    Parameters
    ----------
    sample : sequence of Group
        Groups of the warm start; empty for none.
    """

    sample: tuple[Group, ...] = ()

    def needs(self, problem: Problem, data: Data) -> Needs:
        """Slabs of rows, their product and the sums of products."""
        P = problem.n_outputs * (problem.n_features + 1)
        return Needs(work=2 * SLAB_ROWS * P * 8 + 3 * P * P * 8, part=P * P * 8)

    def start(self, problem: Problem, run: Run, theta: np.ndarray | None) -> NewtonState:
        """Solve the sample."""
        dtype = np.dtype(run.data.source.dtype).type
        if isinstance(problem.loss, Squared):
            dtype = np.float64  # one exact pass is worth more than two fast ones
        if theta is not None:
            return NewtonState(centred(problem, theta), dtype=dtype)
        if not self.sample:
            return NewtonState(problem.zeros(), dtype=dtype)
        label = f"{run.label}-sample"
        solve = SolveRows(problem, dtype)
        found, totals = run.data.map_reduce(SolveOf(problem.targets, solve), label, self.sample)
        run.note(Report(label, totals, None, None, problem.zeros()))
        if found.singular:
            dtype = np.float64
        guess = centred(problem, found.total / max(found.n, 1))
        # A sample may mislead (rows sorted by class): the first pass compares it with 0.
        return NewtonState(guess, guess, dtype=dtype)

    def step(self, problem: Problem, run: Run, state: NewtonState) -> tuple[NewtonState, Report]:
        """One pass over all rows."""
        quadratic = isinstance(problem.loss, Squared)
        enough = ROWS_PER_PARAMETER * len(problem.free)
        at = LinearPass(
            problem.loss, problem.coordinates, state.theta, state.direction, state.steps,
            state.dtype, 1 if quadratic or state.whole else max(1, run.data.n_rows // enough),
            line_every(run.data.n_rows),
        )  # fmt: skip
        label = f"{run.label}-newton"
        # Two passes are the rule after a sample; fresh memory for blocks costs as much as a read.
        run.data.once = bool(self.sample) and sum(r.label == label for r in run.history) < 2
        stats, totals = run.data.map_reduce(StatsOf(problem.targets, at), label)
        f = problem.objective(stats.loss, stats.weight, state.theta)
        shorter = cut(problem, state, stats, f)
        if shorter is not None:
            proven = proven_bound(problem, stats, f, state.theta, np.inf)
            return shorter, Report(label, totals, f, proven, state.theta)
        return _advance(problem, state, stats, f, label, totals)


@dataclass(frozen=True)
class Starts:
    """Sum of solutions on blocks, how many there are, and how many had a singular Hessian."""

    n: int
    total: np.ndarray
    singular: int

    def __add__(self, other: Starts) -> Starts:
        return Starts(self.n + other.n, self.total + other.total, self.singular + other.singular)


@dataclass(frozen=True)
class SolveRows:
    """The problem's solution on some rows alone, by Newton's method.

    Averaged over blocks, such solutions are nearly as good as that on all the blocks' rows [1]_.

    References
    ----------
    .. [1] Zhang, Duchi, Wainwright, "Communication-efficient algorithms for statistical
       optimization", JMLR 14, 2013.
    """

    problem: Problem
    dtype: type

    def __call__(self, X: np.ndarray, y: np.ndarray, s: np.ndarray) -> Starts:
        """Solve on rows X (n, d), encoded targets y (n,), weights s (n,)."""
        problem, n = self.problem, len(y)
        nothing = Starts(0, problem.zeros(), 0)
        if not (s.any() and self._all_classes(y)):
            return nothing  # no optimum, or one at infinity
        state, head = NewtonState(problem.zeros(), dtype=self.dtype), n // HEAD
        # Steps from afar need no more rows than that.
        begins = head >= 10 * len(problem.free) and self._all_classes(y[:head]) and s[:head].any()
        for rows in (head, n) if begins else (n,):
            found = self._steps(state, X[:rows], y, s)
            if found is None:
                return nothing  # the first pass says what is wrong
            state = NewtonState(found.theta, dtype=found.dtype)
        return Starts(1, state.theta, int(state.dtype is not self.dtype))

    def _all_classes(self, y: np.ndarray) -> bool:
        classes = self.problem.targets.classes
        return classes is None or len(np.unique(y)) == len(classes)

    def _steps(
        self, state: NewtonState, X: np.ndarray, y: np.ndarray, s: np.ndarray
    ) -> NewtonState | None:
        """Newton's steps on rows X until the sampling error is what is left, if f is finite."""
        problem, n = self.problem, len(X)
        for _ in range(SAMPLE_STEPS):
            at = LinearPass(
                problem.loss, problem.coordinates, state.theta, state.direction, state.steps,
                state.dtype,
            )  # fmt: skip
            stats = at(X, y[:n], s[:n])
            f = problem.objective(stats.loss, stats.weight, state.theta)
            if not np.isfinite(f):
                return None
            shorter = shorten(problem, state, stats, f)
            if shorter is not None:
                state = shorter
                continue
            model = newton_model(problem, stats, state.theta, f, state.dtype)
            direction = problem.zeros()
            direction.flat[problem.free] = model.step()
            gap2 = model.decrement2()
            dtype = np.float64 if model.singular else state.dtype
            step = state.stride * direction
            state = NewtonState(
                state.theta + step, step, f, -state.stride * gap2, state.stride, dtype=dtype
            )
            if gap2 <= 0.1 * len(problem.free) / n:
                break
        return state


def _advance(
    problem: Problem,
    state: NewtonState,
    stats: LinearStats,
    f: float,
    label: str,
    totals: PassTotals,
) -> tuple[NewtonState, Report]:
    model = newton_model(problem, stats, state.theta, f, state.dtype)
    direction = problem.zeros()
    direction.flat[problem.free] = model.step()
    direction = centred(problem, direction)  # round-off drifts along what only adds penalty
    idle = _idle(stats)
    direction.flat[idle] = np.where(problem.penalty > 0, -state.theta, 0.0).flat[idle]
    after = state.theta + direction
    if model.singular and model.flat and problem.l2 == 0:
        after = _least_norm(problem, model, after)
    at_point, at_next = certificates.bounds(model)
    gap2 = model.decrement2()
    proven = proven_bound(problem, stats, f, state.theta, at_point)
    if at_next < proven.gap:
        solution = after
        certificate = Certificate(f - 0.5 * gap2, at_next, _method(problem), True)
    elif proven.gap > max(gap2, PROVEN_ENOUGH * f) and _quadratic(problem, model, state, f):
        solution = state.theta
        certificate = Certificate(f, 0.5 * gap2, certificates.ESTIMATE, False)
    else:
        solution, certificate = state.theta, proven
    dtype, reason = state.dtype, nowhere(problem, stats)
    if model.singular and dtype is not np.float64:
        dtype = np.float64  # float32 products cannot tell this Hessian from a singular one
    elif state.f_before - f <= 1e-15 * abs(f) and gap2 <= 1e-15 * abs(f):
        reason = STUCK
    whole = state.whole or state.crawls(gap2)
    if np.isfinite(at_next):
        next_state = NewtonState(after, None, f, -gap2, dtype=dtype, whole=whole)
    else:
        stride = state.stride
        step = stride * (after - state.theta)
        next_state = NewtonState(
            state.theta + step, step, f, -stride * gap2, stride, dtype=dtype, whole=whole
        )
    return next_state, Report(label, totals, f, certificate, solution, reason)


def _idle(stats: LinearStats) -> np.ndarray:
    """Which parameters belong to a feature that is 0 in all rows, as a constant one is."""
    assert stats.hessian is not None
    return (np.diag(stats.hessian) == 0) & (stats.rising == 0) & (stats.falling == 0)


def nowhere(problem: Problem, stats: LinearStats) -> str | None:
    """Why to stop where no optimum is, else None.

    Rows of equal weight whose losses sum to less than log 2 are all on the right side.
    """
    if problem.l2 > 0 or not problem.loss.is_classification:
        return None
    if stats.loss * stats.n >= np.log(2.0) * stats.weight:
        return None
    return (
        "the classes look separable, so that without a penalty f falls to 0 for ever and no finite "
        "coefficients are best: set a finite C"
    )


def centred(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Parameters of mean zero over the classes: the same probabilities, at less penalty."""
    return theta - theta.mean(axis=0) if isinstance(problem.loss, Multinomial) else theta


def _quadratic(problem: Problem, model: Model, state: NewtonState, f: float) -> bool:
    """Whether to believe the model where nothing is proven of it.

    f is flat where a singular Hessian leaves out, the last step did what its model had said, and
    little is left to gain; a loss that tends to 0 does as said and always has as much left again.
    """
    little = model.decrement2() <= (0.1 if model.singular else LITTLE) * f
    if model.singular and not model.flat:
        return False
    return isinstance(problem.loss, Squared) or (state.as_said(f) and little)


def newton_model(
    problem: Problem, stats: LinearStats, theta: np.ndarray, f: float, dtype: type
) -> Model:
    """The quadratic model of f over the parameters that move."""
    assert stats.hessian is not None
    free = problem.free
    penalty = problem.penalty.ravel()
    H = stats.hessian / stats.hessian_weight + np.diag(penalty)
    g = problem.gradient(stats, theta)
    settled = _idle(stats) & ((theta.ravel() == 0) | (penalty == 0))
    H[settled, settled] = 1.0  # where they are is best; any curvature keeps them out of the way
    if isinstance(problem.loss, Multinomial):
        _fix_common_shift(H, g, problem.n_outputs)
    curved = {Squared: 0.0, Multinomial: np.sqrt(2.0)}.get(type(problem.loss), 1.0)
    assert problem.loss.curvature_bound is not None
    return certificates.quadratic_model(
        f, g[free], H[np.ix_(free, free)], stats, dtype, curved,
        score_error(problem, stats, theta), problem.loss.curvature_bound,
    )  # fmt: skip


def score_error(problem: Problem, stats: LinearStats, theta: np.ndarray) -> float:
    """Bound of the round-off of one row's scores, in the 2-norm.

    It holds for scores taken in float64 in the problem's coordinates, and for exact scores with
    the coefficients rounded as `Coordinates.to_original` gives them.
    """
    d = problem.n_features
    moved = np.abs(theta[:, :d] / problem.coordinates.scale) @ np.abs(problem.coordinates.center)
    size = np.sqrt(stats.row_norm2) * np.linalg.norm(theta) + np.linalg.norm(moved)
    return float((2 * d + 8) * certificates.EPS * size)


def _fix_common_shift(H: np.ndarray, g: np.ndarray, K: int) -> None:
    """Give H curvature along shifts common to all classes, which change no probability.

    At parameters of mean zero over the classes, where Newton's method stays, such a shift only
    adds penalty. So it may have any positive curvature: step and bounds stay what they are over
    the other directions, and no tiny penalty makes H look flat.
    """
    D = len(g) // K
    for j in range(D):
        at = np.arange(K) * D + j
        g[at] -= g[at].mean()
        H[np.ix_(at, at)] += max(float(H[at, at].mean()), 1e-300) / K


def _least_norm(problem: Problem, model: Model, theta: np.ndarray) -> np.ndarray:
    """Move along directions in which f is flat to the least norm of the original coefficients."""
    flat = np.zeros((theta.size, int(np.sum(~model.kept))))
    flat[problem.free] = model.vectors[:, ~model.kept] / model.unit[:, None]
    inverse = np.tile(np.append(1.0 / problem.coordinates.scale, 0.0), problem.n_outputs)
    back = np.linalg.lstsq(flat * inverse[:, None], theta.ravel() * inverse, rcond=None)[0]
    return theta - (flat @ back).reshape(theta.shape)


def _method(problem: Problem) -> str:
    quadratic = isinstance(problem.loss, Squared)
    return certificates.QUADRATIC if quadratic else certificates.SELF_CONCORDANCE


def proven_bound(
    problem: Problem, stats: LinearStats, f: float, theta: np.ndarray, at_point: float
) -> Certificate:
    """The best proven bound at the point visited."""
    z_error = score_error(problem, stats, theta)
    assert problem.loss.curvature_bound is not None
    rounding = (stats.n + 8) * certificates.EPS * f + z_error * (
        stats.slope / stats.weight + problem.loss.curvature_bound * z_error
    )  # of f
    candidates = [(at_point, _method(problem)), (f + rounding, certificates.POSITIVE)]
    if problem.n_outputs == 1 and problem.l2 > 0:
        gap = certificates.duality_gap(f, theta[0], problem.penalty[0], stats)
        candidates.append((gap + rounding, certificates.DUALITY))
    return Certificate(f, *min(candidates), True)
