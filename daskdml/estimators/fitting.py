"""From an estimator's parameters to a solver's run. Imported by `fit` alone: it needs Dask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from daskdml.diagnostics.history import History
from daskdml.engine.memory import Needs
from daskdml.engine.run import Data, Engine
from daskdml.events import FitStart
from daskdml.io.sources import Source
from daskdml.kernels.linear import SLAB_ROWS
from daskdml.kernels.losses import Loss, Multinomial
from daskdml.kernels.targets import LabelSummary, Targets
from daskdml.solvers.base import Problem, Run, Solution, Solver, minimise, warn_unless_converged
from daskdml.solvers.problems import find_coordinates, sample_groups, scan_targets


@dataclass(frozen=True)
class Task:
    """What to fit, in an estimator's terms.

    Parameters
    ----------
    label : str
        Name on the dashboard.
    classification : bool
    describe : callable
        `LabelSummary` -> (loss, targets, l2): what depends on the labels.
    solver : callable
        (problem size P, sample groups) -> Solver.
    tol, max_iter : float, int
    fit_intercept : bool
    start : callable or None
        `Problem` -> parameters (K, d + 1) in its coordinates, for a warm start.
    """

    label: str
    classification: bool
    describe: Callable[[LabelSummary], tuple[Loss | Multinomial, Targets, float]]
    solver: Callable[[Problem, tuple[Any, ...]], Solver]
    tol: float
    max_iter: int
    fit_intercept: bool
    start: Callable[[Problem], np.ndarray] | None = None


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves behind."""

    coef: np.ndarray
    intercept: np.ndarray
    solution: Solution
    attributes: dict[str, Any]


def fit_linear(source: Source, task: Task) -> Fitted:
    """Plan, scan the targets, find coordinates, minimise."""
    engine = Engine.current()
    with engine.open(source, Needs()) as data:
        engine.tell(
            FitStart(
                task.label, data.plan, source.n_rows, source.n_features, data.runner.dashboard_link
            )
        )
        run = Run(data, task.label)
        loss, targets, l2 = task.describe(scan_targets(data, task.classification, task.label))
        outputs = len(targets.classes) if isinstance(loss, Multinomial) else 1  # type: ignore[arg-type]
        data.require(hessian_needs(outputs * (source.n_features + 1), source.dtype))
        sample = sample_groups(data.groups)
        coordinates = find_coordinates(
            data, sample or data.groups[:1], task.fit_intercept, task.label
        )
        problem = Problem(
            loss, targets, l2, source.n_features, outputs, task.fit_intercept, coordinates
        )
        start = task.start(problem) if task.start is not None else None
        solver = task.solver(problem, () if start is not None else sample)
        solution = minimise(problem, solver, run, task.tol, task.max_iter, start)
    attributes = run_attributes(run, data, solution)
    warn_unless_converged(solution, task.tol, ConvergenceWarning)
    d = source.n_features
    coef, intercept = coordinates.to_original(solution.theta[:, :d], solution.theta[:, d])
    if not task.fit_intercept:
        intercept = np.zeros_like(intercept)
    return Fitted(coef, intercept, solution, attributes)


def hessian_needs(P: int, dtype: Any) -> Needs:
    """Bytes of a Newton pass: slabs of rows, their product and the sum of products."""
    item = np.dtype(dtype).itemsize
    return Needs(work=2 * SLAB_ROWS * P * max(item, 8) + 3 * P * P * 8, part=P * P * 8)


def run_attributes(run: Run, data: Data, solution: Solution) -> dict[str, Any]:
    """The fitted attributes that tell of the run."""
    return {
        "certificate_": solution.certificate,
        "history_": History(run.history),
        "n_iter_": solution.n_iter,
        "n_passes_": data.totals.rows / data.n_rows,
        "bytes_read_": data.totals.nbytes,
        "plan_": data.plan,
        "peak_memory_": data.peaks,
    }
