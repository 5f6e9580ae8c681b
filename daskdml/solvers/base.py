"""Problem, Solver, Solution and minimise(): the one loop of the library."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from daskdml.engine.checkpoint import Checkpoints
from daskdml.engine.memory import Needs
from daskdml.engine.opened import Opened
from daskdml.engine.run import Data, PassTotals
from daskdml.events import FitEnd, FitStart, Message
from daskdml.kernels.block import Block
from daskdml.kernels.linear import Coordinates, LinearPass, LinearStats
from daskdml.kernels.losses import Loss, Multinomial
from daskdml.kernels.targets import Targets, check_rows
from daskdml.solvers.certificates import TINY, Certificate
from daskdml.solvers.record import Record

STUCK = "round-off hides any further decrease; raise tol, or add a penalty"


@dataclass(frozen=True)
class Problem:
    """Minimise ``(1/S) sum_i s_i loss(y_i, x_i . w + b) + (l2/2) |w|^2``.

    Parameters
    ----------
    loss : Loss or Multinomial
    targets : Targets
        Encodes what the data set stores.
    l2 : float
        Factor of the penalty, already divided by S.
    n_features, n_outputs : int
        d and K: a linear score for each of K outputs.
    fit_intercept : bool
    coordinates : Coordinates
        In which parameters are kept; the penalty is on the original ones.
    tiny : float
        Values of the objective below it are round-off.
    mean_weight : float
        S over the number of rows.
    blind : float
        f of the model that knows nothing, all parameters 0.
    """

    loss: Loss | Multinomial
    targets: Targets
    l2: float
    n_features: int
    n_outputs: int
    fit_intercept: bool
    coordinates: Coordinates
    tiny: float = TINY
    mean_weight: float = 1.0
    blind: float = np.inf

    @property
    def penalty(self) -> np.ndarray:
        """Factor of each squared parameter in the penalty times 2, shape (K, d + 1)."""
        row = np.append(self.l2 / self.coordinates.scale**2, 0.0)
        return np.tile(row, (self.n_outputs, 1))

    @property
    def mask(self) -> np.ndarray:
        """1 for parameters that move, else 0, shape (K, d + 1)."""
        mask = np.ones((self.n_outputs, self.n_features + 1))
        mask[:, -1] = self.fit_intercept
        return mask

    @property
    def free(self) -> np.ndarray:
        """Indices of the parameters that move, of K * (d + 1)."""
        return np.flatnonzero(self.mask)

    def zeros(self) -> np.ndarray:
        """The parameters (K, d + 1) of the model that knows nothing."""
        return np.zeros((self.n_outputs, self.n_features + 1))

    def objective(self, loss_sum: float, weight: float, theta: np.ndarray) -> float:
        """f from the sum of losses."""
        return loss_sum / weight + 0.5 * float(np.sum(self.penalty * theta**2))

    def gradient(self, stats: LinearStats, theta: np.ndarray) -> np.ndarray:
        """Gradient of f, shape (P,)."""
        return stats.gradient / stats.weight + (self.penalty * theta).ravel()


@dataclass(frozen=True)
class StatsOf:
    """Block -> `LinearStats`, with a clear error for rows that cannot be used."""

    targets: Targets
    statistics: LinearPass

    def __call__(self, block: Block) -> LinearStats:
        """Statistics of a block's rows."""
        y, s = self.targets.prepare(block)
        stats = self.statistics(block.X, y, s)
        if not np.isfinite(stats.loss + stats.row_norm2):
            check_rows(block.X)
        return stats


@dataclass(frozen=True)
class SolveOf:
    """Block -> ``solve(X, y, s)`` with encoded targets."""

    targets: Targets
    solve: Callable[[np.ndarray, np.ndarray, np.ndarray], Any]

    def __call__(self, block: Block) -> Any:
        """Solve on a block's rows."""
        return self.solve(block.X, *self.targets.prepare(block))


@dataclass(frozen=True)
class Report:
    """What one step of a solver found out.

    Parameters
    ----------
    label : str
    totals : PassTotals
        What its passes took.
    objective : float or None
        f at the point that was visited.
    certificate : Certificate or None
        Of `solution`.
    solution : ndarray of shape (K, d + 1)
        The best point so far.
    reason : str or None
        Why the solver does not go on; None while it does.
    converged : bool
        Whether that is because its own criterion is met.
    gradient : float or None
        Norm of the projected gradient, where the problem is not convex and no gap is known.
    """

    label: str
    totals: PassTotals
    objective: float | None
    certificate: Certificate | None
    solution: np.ndarray
    reason: str | None = None
    converged: bool = False
    gradient: float | None = None


class Objective(Protocol):
    """What is minimised: a `Problem`, or what another solver takes for one."""

    @property
    def tiny(self) -> float:
        """Values of the objective below it are round-off."""


P_contra = TypeVar("P_contra", bound=Objective, contravariant=True)
P = TypeVar("P", bound=Objective)


class Solver(Protocol[P_contra]):
    """An algorithm: `start` makes its state, `step` is one pass (or epoch) of it."""

    def needs(self, problem: P_contra, data: Data) -> Needs:
        """Bytes that a pass holds beside its blocks."""

    def start(self, problem: P_contra, run: Run, theta: np.ndarray | None) -> Any:
        """State before the first step."""

    def step(self, problem: P_contra, run: Run, state: Any) -> tuple[Any, Report]:
        """State after one step, and what it found."""


D = TypeVar("D", bound=Opened)


@dataclass
class RunOf(Generic[D]):
    """A fit in progress: its data, its clock and its history."""

    data: D
    label: str
    began: float = field(default_factory=time.perf_counter)
    history: list[Record] = field(default_factory=list)
    solution: Solution | None = None
    checkpoints: Checkpoints | None = None

    def resume(self, fingerprint: Mapping[str, Any]) -> Saved | None:
        """Where an earlier call of this fit stood, or None; its history is this fit's, too.

        `fingerprint` and what is raised are those of `Checkpoints.claim`.
        """
        if self.checkpoints is None:
            return None
        self.checkpoints.claim(fingerprint)
        saved: Saved | None = self.checkpoints.load()
        if saved is not None:
            self.history[:] = saved.history
            self.data.totals = saved.totals
            self.began -= saved.history[-1].seconds
            self.data.engine.tell(
                Message(f"Goes on after step {saved.n_iter} from {self.checkpoints.place.url}.")
            )
        return saved

    def save(self, state: Any, best: Report, n_iter: int) -> None:
        """Keep where the fit stands, if it is time to."""
        if self.checkpoints is not None:
            c = best.certificate
            facts = {
                "n_iter": n_iter, "objective": best.objective if c is None else c.objective,
                "gap": None if c is None else c.gap,
            }  # fmt: skip
            history, totals = tuple(self.history), self.data.totals
            self.checkpoints.offer(lambda: Saved(state, best, n_iter, history, totals), facts)

    def note(self, report: Report) -> None:
        """Add a report to the history and tell the callbacks."""
        c = report.certificate
        gap, relative = (None, None) if c is None else (c.gap, c.relative)
        self.add(report.label, report.totals, report.objective, gap, relative, report.gradient)

    def add(
        self, label: str, totals: PassTotals, objective: float | None, gap: float | None = None,
        relative: float | None = None, gradient: float | None = None,
        validation: float | None = None,
    ) -> None:  # fmt: skip
        """Add a pass to the history and tell the callbacks."""
        t, total = totals, self.data.totals
        record = Record(
            label, time.perf_counter() - self.began, total.nbytes,
            total.rows / self.data.n_rows, objective, gap, relative,
            t.read, t.decode, t.compute, t.wait, t.transfer, gradient, validation,
        )  # fmt: skip
        self.history.append(record)
        self.data.end_pass(label, t, objective, gap, relative)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint has: where `minimise` stands after a step."""

    state: Any
    best: Report
    n_iter: int
    history: tuple[Record, ...]
    totals: PassTotals


Run: TypeAlias = RunOf[Data]


@contextmanager
def running(data: D, label: str, began: float, resumable: bool = False) -> Iterator[RunOf[D]]:
    """A fit, told of when it starts, and when it ends or fails.

    Parameters
    ----------
    data : Opened
    label : str
        Name of the fit.
    began : float
        When the user called `fit`, by ``time.perf_counter()``.
    resumable : bool
        Whether it can be taken up from a checkpoint.
    """
    tell, place = data.engine.tell, data.engine.checkpoint
    if place is not None and not resumable:
        raise NotImplementedError(
            f"checkpoints are kept for linear models so far, not for {label}; use an Engine "
            "without checkpoint= for it"
        )
    tell(FitStart(label, data.plan, *data.shape, data.runner.dashboard_link))
    run = RunOf(data, label, began)
    try:
        run.checkpoints = None if place is None else Checkpoints(place)
        yield run
    except BaseException as error:
        if run.checkpoints is not None:
            run.checkpoints.close()
        reason = f"broken off by {type(error).__name__}"
        tell(FitEnd(label, reason, time.perf_counter() - began, None))
        raise
    if run.checkpoints is not None:
        run.checkpoints.close()
    assert run.solution is not None
    found = run.solution
    tell(FitEnd(label, found.reason, time.perf_counter() - began, found.certificate))


@dataclass(frozen=True)
class Solution:
    """Where a fit ended.

    Parameters
    ----------
    theta : ndarray of shape (K, d + 1)
        In the problem's coordinates.
    certificate : Certificate or None
    reason : str
        Why it ended, in one sentence.
    converged : bool
    n_iter : int
        Steps of the solver.
    state : object
        The solver's last state.
    """

    theta: np.ndarray
    certificate: Certificate | None
    reason: str
    converged: bool
    n_iter: int
    state: Any


def minimise(
    problem: P,
    solver: Solver[P],
    run: Run,
    tol: float,
    max_iter: int,
    start: np.ndarray | None = None,
    saved: Saved | None = None,
) -> Solution:
    """Step until the certified relative gap is at most `tol`.

    Parameters
    ----------
    problem, solver, run
        What, how and on which data.
    tol : float
        Certified relative suboptimality at which to stop.
    max_iter : int
        Steps at most.
    start : ndarray of shape (K, d + 1) or None
        Where to start, in the problem's coordinates.
    saved : Saved or None
        Where to go on instead.

    Returns
    -------
    Solution
    """
    best: Report | None = None
    done = 0
    if saved is None:
        state = solver.start(problem, run, start)
    else:
        state, best, done = saved.state, saved.best, saved.n_iter
    reason = f"max_iter={max_iter} steps were made; raise max_iter or tol, or add a penalty"
    converged, n_iter = False, done
    for n_iter in range(done + 1, max_iter + 1):
        state, report = solver.step(problem, run, state)
        if report.certificate is not None:
            report = replace(report, certificate=replace(report.certificate, tiny=problem.tiny))
        run.note(report)
        best = report if best is None else _better(best, report)
        c = report.certificate
        if c is not None and c.relative <= tol:
            kind = "certified" if c.rigorous else "estimated"
            reason, converged = f"the {kind} relative gap is below tol={tol:g}", True
            break
        if report.reason is not None:
            reason, converged = report.reason, report.converged
            break
        if n_iter < max_iter:
            run.save(state, best, n_iter)
    assert best is not None
    run.solution = Solution(best.solution, best.certificate, reason, converged, n_iter, state)
    return run.solution


def _better(a: Report, b: Report) -> Report:
    """The report of the smaller proven gap, or else of the lower f.

    An estimate of the gap at a point is one of f*, and so of the gap at a lower point, too; but
    what is left of it after most of it came true would be its error.
    """
    if a.certificate is None or b.certificate is None:
        return b if a.certificate is None else a
    if a.certificate.rigorous and b.certificate.rigorous:
        return a if a.certificate.gap < b.certificate.gap else b
    low, high = (b, a) if b.certificate.objective <= a.certificate.objective else (a, b)
    c, other = low.certificate, high.certificate
    assert c is not None and other is not None
    lower = other.objective - c.objective
    gap = other.gap - lower
    if 2 * gap < c.gap and 2 * lower <= other.gap:
        return replace(low, certificate=replace(other, objective=c.objective, gap=gap))
    return low


def warn_unless_converged(solution: Solution, tol: float, category: type[Warning]) -> None:
    """Warn that a fit stopped short, with the gap it reached."""
    if solution.converged:
        return
    c = solution.certificate
    reached = "no bound of the gap is known" if c is None else (
        f"the relative gap reached is {c.relative:.2g} ({'proven' if c.rigorous else 'estimated'})"
    )  # fmt: skip
    warnings.warn(
        f"the fit stopped before tol={tol:g}, and {reached}: {solution.reason}",
        category,
        stacklevel=4,
    )
