"""Newton's method with block Hessians summed in a fixed tree, from a solution on a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.memory import Needs
from daskdml.engine.run import Data, PassTotals
from daskdml.kernels.linear import SLAB_ROWS, LinearPass, LinearStats
from daskdml.kernels.losses import Multinomial, Squared
from daskdml.solvers import certificates
from daskdml.solvers.base import Problem, Report, Run, StatsOf
from daskdml.solvers.certificates import Certificate, Model
from daskdml.solvers.search import BACKTRACKS, Searched, shorten

SAMPLE_STEPS = 25


@dataclass(frozen=True)
class NewtonState(Searched):
    """A point, the step that led to it and the dtype in which products of rows are taken."""

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
        state = NewtonState(problem.zeros() if theta is None else theta, dtype=dtype)
        if theta is not None or not self.sample:
            return state
        enough = 0.1 * len(problem.free) / sum(g.rows for g in self.sample)
        for _ in range(SAMPLE_STEPS):
            state, report = self._step(problem, run, state, self.sample, "sample")
            run.note(replace(report, objective=None, certificate=None))
            if report.reason or (report.certificate is not None and -state.slope < enough):
                break
        # A sample may mislead (rows sorted by class): the first pass also looks back to 0.
        return NewtonState(state.theta, state.theta, dtype=state.dtype)

    def step(self, problem: Problem, run: Run, state: NewtonState) -> tuple[NewtonState, Report]:
        """One pass over all rows."""
        return self._step(problem, run, state, None, "newton")

    def _step(
        self,
        problem: Problem,
        run: Run,
        state: NewtonState,
        groups: Sequence[Group] | None,
        what: str,
    ) -> tuple[NewtonState, Report]:
        steps = BACKTRACKS if state.direction is not None else ()
        at = LinearPass(
            problem.loss, problem.coordinates, state.theta, state.direction, steps, state.dtype
        )
        label = f"{run.label}-{what}"
        stats, totals = run.data.map_reduce(StatsOf(problem.targets, at), label, groups)
        f = problem.objective(stats.loss, stats.weight, state.theta)
        shorter = shorten(problem, state, stats, f)
        if shorter is not None:
            report = Report(label, totals, f, None, state.theta)
            return replace(state, theta=shorter, direction=None), report
        return _advance(problem, state, stats, f, label, totals)


def _advance(
    problem: Problem,
    state: NewtonState,
    stats: LinearStats,
    f: float,
    label: str,
    totals: PassTotals,
) -> tuple[NewtonState, Report]:
    model = newton_model(problem, stats, state.theta, f, state.dtype)
    free = problem.free
    direction = problem.zeros()
    direction.flat[free] = model.step()
    after = state.theta + direction
    at_point, at_next = certificates.bounds(model)
    gap2 = model.decrement2()
    proven = _proven(problem, stats, f, state.theta, at_point)
    solution = state.theta
    certificate: Certificate | None
    if at_next < (np.inf if proven is None else proven.gap):
        solution = after
        certificate = Certificate(f - 0.5 * gap2, at_next, _method(problem), True)
    elif proven is not None and proven.gap <= 4 * gap2 + 1e-300:
        certificate = proven
    else:
        certificate = Certificate(f, 0.5 * gap2, certificates.ESTIMATE, False)
        if proven is not None and not model.singular:
            certificate = proven
    dtype, reason = state.dtype, None
    if model.singular and dtype is not np.float64:
        dtype = np.float64  # float32 products cannot tell this Hessian from a singular one
    elif state.f_before - f <= 1e-15 * abs(f) and gap2 <= 1e-15 * abs(f):
        reason = "round-off hides any further decrease"
    searched = None if np.isfinite(at_next) else direction
    next_state = NewtonState(after, searched, f, -gap2, dtype)
    return next_state, Report(label, totals, f, certificate, solution, reason)


def newton_model(
    problem: Problem, stats: LinearStats, theta: np.ndarray, f: float, dtype: type
) -> Model:
    """The quadratic model of f over the parameters that move."""
    assert stats.hessian is not None
    free = problem.free
    penalty = problem.penalty.ravel()
    H = stats.hessian / stats.weight + np.diag(penalty)
    g = problem.gradient(stats, theta)
    if isinstance(problem.loss, Multinomial):
        _fix_common_shift(H, g, penalty, problem.n_outputs)
    curved = {Squared: 0.0, Multinomial: np.sqrt(2.0)}.get(type(problem.loss), 1.0)
    return certificates.quadratic_model(f, g[free], H[np.ix_(free, free)], stats, dtype, curved)


def _fix_common_shift(H: np.ndarray, g: np.ndarray, penalty: np.ndarray, K: int) -> None:
    """Give H curvature along shifts common to all classes, which change no probability.

    f is constant along such a shift of an unpenalised parameter, and its gradient has no part
    there; any positive curvature leaves step and bounds as they are and makes H invertible.
    """
    D = len(g) // K
    for j in np.flatnonzero(penalty[:D] == 0):
        at = np.arange(K) * D + j
        g[at] -= g[at].mean()
        H[np.ix_(at, at)] += max(float(H[at, at].mean()), 1e-300) / K


def _method(problem: Problem) -> str:
    quadratic = isinstance(problem.loss, Squared)
    return certificates.QUADRATIC if quadratic else certificates.SELF_CONCORDANCE


def _proven(
    problem: Problem, stats: LinearStats, f: float, theta: np.ndarray, at_point: float
) -> Certificate | None:
    """The best proven bound at the point visited."""
    candidates = [(at_point, _method(problem)), (f, certificates.POSITIVE)]
    if problem.n_outputs == 1 and problem.l2 > 0:
        gap = certificates.duality_gap(f, theta[0], problem.penalty[0], stats)
        candidates.append((gap, certificates.DUALITY))
    return certificates.best(f, candidates)
