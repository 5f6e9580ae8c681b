"""Problem, Solver, Solution and minimise(): the one loop of the library."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from daskdml.engine.checkpoint import Checkpoints
from daskdml.engine.journal import Entry
from daskdml.engine.memory import Needs
from daskdml.engine.opened import Opened
from daskdml.engine.run import NOTHING, Data, PassTotals
from daskdml.events import FitEnd, FitStart, Message
from daskdml.kernels.block import Block
from daskdml.kernels.linear import Coordinates, LinearPass, LinearStats
from daskdml.kernels.losses import Loss, Multinomial
from daskdml.kernels.targets import Targets, check_rows
from daskdml.solvers.certificates import TINY, Certificate
from daskdml.solvers.record import Record

_OURS = ("daskdml", "contextlib", "sklearn")  # between a fit's end and who called it
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


PATIENCE = 1.5
"""Seconds that who interrupts waits for a checkpoint, which is written all the same."""

MISTAKES = ArithmeticError, LookupError, TypeError, ValueError
"""What calling again does not mend: where the fit stood is not kept anew."""


@dataclass
class RunOf(Generic[D]):
    """A fit in progress: its data, its clock and its history."""

    data: D
    label: str
    began: float = field(default_factory=time.perf_counter)
    history: list[Record] = field(default_factory=list)
    solution: Solution | None = None
    checkpoints: Checkpoints | None = None
    _last: Saved = field(default_factory=lambda: Saved())
    _resumed: bool = False
    _hurried: bool = False

    def resume(self, fingerprint: Mapping[str, Any], there: Collection[str] = ()) -> Saved | None:
        """Where an earlier call of this fit stood, or None; its history is this fit's, too.

        Passes that the earlier call made in a step of its own are not made again, nor those before
        the first step. To be called before any pass that a journal is to have. `fingerprint` and
        what is raised are those of `Checkpoints.claim`, `there` is that of `Checkpoints.load`.
        """
        if self.checkpoints is None:
            return None
        self.checkpoints.claim(fingerprint)
        found: Saved | None = self.checkpoints.load(there)
        if found is not None:
            self._last = found
            self.history[:] = found.history
            self.data.totals = found.totals
            self.began -= found.seconds
            at = self.checkpoints.place.url
            self.data.engine.tell(Message(f"Goes on after step {found.n_iter} from {at}."))
        self.data.journal.start(self._last.journal, self._offer)
        self._resumed = True
        return None if self._last.state is None else self._last

    def save(
        self, state: Any, best: Report, n_iter: int, ended: tuple[str, bool] | None = None,
        names: tuple[str, ...] = (),
    ) -> bool:  # fmt: skip
        """Keep where the fit stands after a step, if it is time to, or if it has `ended`.

        `names` are those of things elsewhere that the state relies on. Tells whether it is kept.
        """
        if self.checkpoints is None:
            return False
        self.data.journal.step()
        history, totals = tuple(self.history), self.data.totals
        self._last = Saved(state, best, n_iter, history, totals, ended=ended, names=names)
        return self._offer(now=ended is not None)

    def _offer(self, now: bool = False) -> bool:
        assert self.checkpoints is not None
        seconds, journal = time.perf_counter() - self.began, self.data.journal.entries
        last = self._last
        facts: dict[str, Any] = {"n_iter": last.n_iter, "ended": last.ended is not None}
        facts |= {"objective": None, "gap": None, "names": list(last.names)}
        if last.best is not None:
            c = last.best.certificate
            facts["objective"] = last.best.objective if c is None else c.objective
            facts["gap"] = None if c is None else c.gap
        made = partial(_made, last, seconds, journal)
        return self.checkpoints.offer(made, facts, now)

    def finish(self, solution: Solution, best: Report, names: tuple[str, ...] = ()) -> None:
        """End with a solution, and keep it; or, if the user interrupted, where the fit stands."""
        self.solution = solution
        if solution.interrupted:
            self.interrupt()
        elif self._last.ended is None:  # else an earlier call has kept it
            ended = solution.reason, solution.converged
            self.save(solution.state, best, solution.n_iter, ended, names)

    def interrupt(self) -> None:
        """Keep where the fit stands: Ctrl-C was pressed, or what it runs on is gone."""
        if self._resumed:  # else it is not known yet
            self._offer(now=True)
            self._hurried = not self._last.names  # what it names may not change until it is kept

    def close(self) -> None:
        """Wait until what is being written is written; not for long, if the user interrupted."""
        self.data.journal.stop()
        if self.checkpoints is not None:
            self.checkpoints.close(PATIENCE if self._hurried else None)

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
    """What a checkpoint has: where a fit stands after a step, and what it found since.

    Parameters
    ----------
    state : object
        Of the solver; None before the first step.
    best : Report or None
    n_iter : int
        Steps made.
    history : tuple of Record
        Up to the step.
    totals : PassTotals
    journal : tuple of Entry
        Passes that are kept, and those since the step.
    seconds : float
        That the fit took.
    ended : (str, bool) or None
        Why it ended, and whether it converged, if it has ended.
    names : tuple of str
        Of what lies elsewhere, and the state relies on.
    """

    state: Any = None
    best: Report | None = None
    n_iter: int = 0
    history: tuple[Record, ...] = ()
    totals: PassTotals = NOTHING
    journal: tuple[Entry, ...] = ()
    seconds: float = 0.0
    ended: tuple[str, bool] | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Later:
    """A state that is made when it is written, by the thread that writes."""

    make: Callable[[], Any]


def _made(saved: Saved, seconds: float, journal: tuple[Entry, ...]) -> Saved:
    state = saved.state.make() if isinstance(saved.state, Later) else saved.state
    return replace(saved, state=state, seconds=seconds, journal=journal)


Run: TypeAlias = RunOf[Data]


@contextmanager
def running(data: D, label: str, began: float, resumable: bool = True) -> Iterator[RunOf[D]]:
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
        raise ValueError(
            f"partial_fit of {label} keeps no checkpoints: keep the estimator itself (pickle), and "
            "call it within an Engine without checkpoint="
        )
    tell(FitStart(label, data.plan, *data.shape, data.runner.dashboard_link))
    run = RunOf(data, label, began)
    try:
        run.checkpoints = None if place is None else Checkpoints(place)
        yield run
    except BaseException as error:
        ended = isinstance(error, Exception | KeyboardInterrupt | SystemExit)
        if ended and not isinstance(error, MISTAKES):
            run.interrupt()
        run.close()
        reason = f"broken off by {type(error).__name__}"
        tell(FitEnd(label, reason, time.perf_counter() - began, None))
        raise
    run.close()
    assert run.solution is not None
    found = run.solution
    tell(FitEnd(label, found.reason, time.perf_counter() - began, found.certificate))
    if found.interrupted:
        again = ""
        if place is not None:
            again = f"; the same fit, called again, goes on from {place.url}"
        warnings.warn(
            f"{label} was {found.reason}: this is the best model so far, and {_reached(found)}"
            f"{again}",
            RuntimeWarning, stacklevel=_callers_level(),
        )  # fmt: skip


def _callers_level() -> int:
    """How far above the calling function the user's code is."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    return level


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
    interrupted : bool
        Whether the user ended it.
    """

    theta: np.ndarray
    certificate: Certificate | None
    reason: str
    converged: bool
    n_iter: int
    state: Any
    interrupted: bool = False


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
    n_iter = 0
    if saved is not None:
        state, best, n_iter = saved.state, saved.best, saved.n_iter
    reason = f"max_iter={max_iter} steps were made; raise max_iter or tol, or add a penalty"
    converged = interrupted = False
    if saved is not None and saved.ended is not None:
        (reason, converged), max_iter = saved.ended, n_iter
    try:
        if saved is None:
            state = solver.start(problem, run, start)
        while n_iter < max_iter:
            state, report = solver.step(problem, run, state)
            n_iter += 1
            if report.certificate is not None:
                report = replace(report, certificate=replace(report.certificate, tiny=problem.tiny))
            best = report if best is None else _better(best, report)
            run.note(report)
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
    except KeyboardInterrupt:
        if best is None:
            raise
        reason, converged, interrupted = interruption(n_iter), False, True
    assert best is not None
    why = reason, converged
    found = Solution(best.solution, best.certificate, *why, n_iter, state, interrupted)
    run.finish(found, best)
    return found


def interruption(n_iter: int) -> str:
    """Why a fit ended that the user ended."""
    return f"interrupted (Ctrl-C) after step {n_iter}"


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
    if solution.converged or solution.interrupted:
        return  # who interrupts is told by `running`
    warnings.warn(
        f"the fit stopped before tol={tol:g}, and {_reached(solution)}: {solution.reason}",
        category,
        stacklevel=4,
    )


def _reached(solution: Solution) -> str:
    c = solution.certificate
    if c is None:
        return "no bound of the gap is known"
    return (
        f"the relative gap reached is {c.relative:.2g} ({'proven' if c.rigorous else 'estimated'})"
    )
