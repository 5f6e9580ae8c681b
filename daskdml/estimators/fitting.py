"""From an estimator's parameters to a solver's run. Imported by `fit` alone: it needs Dask."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from daskdml import __version__
from daskdml.diagnostics.history import History
from daskdml.engine.checkpoint import recall
from daskdml.engine.memory import Needs
from daskdml.engine.opened import Opened
from daskdml.engine.run import Engine
from daskdml.engine.survey import NUMERICAL, build
from daskdml.io.sources import AnySource
from daskdml.io.states import digest
from daskdml.kernels.linear import Coordinates
from daskdml.kernels.losses import Loss, Multinomial
from daskdml.kernels.targets import LabelSummary, Targets
from daskdml.solvers.base import (
    Problem,
    RunOf,
    Saved,
    Solution,
    minimise,
    running,
    warn_unless_converged,
)
from daskdml.solvers.certificates import TINY
from daskdml.solvers.choice import choose_solver
from daskdml.solvers.local_sgd import LocalSGD, Replicas
from daskdml.solvers.newton import Newton
from daskdml.solvers.problems import find_coordinates, sample_groups, scan_targets
from daskdml.solvers.rehearsal import rehearse_linear


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
    solver : {"auto", "newton", "lbfgs", "sgd"}
    tol, max_iter : float, int
    fit_intercept : bool
    began : float
        When `fit` was called, by ``time.perf_counter()``.
    parameters : dict
        Of the estimator.
    start : callable or None
        `Problem` -> parameters (K, d + 1) in its coordinates, for a warm start.
    replicas : Replicas or None
        Of local SGD, for "sgd".
    """

    label: str
    classification: bool
    describe: Callable[[LabelSummary], tuple[Loss | Multinomial, Targets, float]]
    solver: str
    tol: float
    max_iter: int
    fit_intercept: bool
    began: float
    parameters: dict[str, Any]
    start: Callable[[Problem], np.ndarray] | None = None
    replicas: Replicas | None = None


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves behind."""

    coef: np.ndarray
    intercept: np.ndarray
    solution: Solution
    attributes: dict[str, Any]


def resume(
    run: RunOf[Any], parameters: Mapping[str, Any], there: Collection[str] = (), **more: Any
) -> Saved | None:
    """Where an earlier call of a fit stood, or None: what its result depends on is compared.

    Parameters
    ----------
    run : Run
    parameters : mapping
        Of the estimator; ``random_state`` is left out, for what was drawn by it counts.
    there : collection of str
        Names of what lies elsewhere, for states that rely on it.
    **more
        What else the result depends on: numbers, or what `digest` tells apart.
    """
    if run.checkpoints is None:
        return None
    given = {name: value for name, value in parameters.items() if name != "random_state"} | more
    facts = {name: _plain(value) for name, value in given.items()}
    n, d = run.data.shape
    told = {"version": __version__, "estimator": run.label, "shape": f"{n} x {d}"}
    told |= {name: version for name, version in build().items() if name in NUMERICAL}
    return run.resume(told | facts | {"data": run.data.identity(run.label)}, there)


def _plain(value: Any) -> Any:
    """A parameter as JSON has it; what is long is told by its digest."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    return digest(value) if isinstance(value, (np.ndarray, tuple)) else repr(value)


def fit_seed(random_state: Any) -> int:
    """A seed from what the user gave; the one that was drawn before where a fit goes on."""
    place = Engine.current().checkpoint
    if place is not None and not isinstance(random_state, Integral):
        seed = recall(place, "seed")
        if isinstance(seed, int):
            return seed
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def warm_from(estimator: Any, known: Any) -> Any:
    """What a warm start begins from: `known`, the last fit's.

    Or what an interrupted fit began from: the same call again is the same fit, and goes on from the
    checkpoint that it left.
    """
    place = Engine.current().checkpoint
    url, began_from = getattr(estimator, "_interrupted", (None, None))
    return began_from if place is not None and place.url == url else known


def remember_start(estimator: Any, began_from: Any, interrupted: bool) -> None:
    """Keep what a fit began from where it was interrupted and a checkpoint has it."""
    estimator.__dict__.pop("_interrupted", None)
    place = Engine.current().checkpoint
    if interrupted and place is not None:
        estimator._interrupted = place.url, began_from


def fit_linear(source: AnySource, task: Task) -> Fitted:
    """Plan, scan the targets, find coordinates, minimise."""
    engine = Engine.current()
    with (
        engine.open(source, Needs()) as data,
        running(data, task.label, task.began) as run,
    ):
        seed = None if task.replicas is None else task.replicas.seed
        saved = resume(run, task.parameters, seed=seed)
        found = scan_targets(data, task.classification, task.label)
        loss, targets, l2 = task.describe(found)
        d = source.n_features
        outputs = len(targets.classes) if isinstance(loss, Multinomial) else 1  # type: ignore[arg-type]
        as_stored = Coordinates.identity(d)
        # The loss of a model that knows nothing.
        blind = 0.5 * found.power / float(found.weights.sum())
        if task.classification:
            blind = float(np.log(len(targets.classes)))  # type: ignore[arg-type]
        tiny = max(np.finfo(np.float64).eps * blind, TINY)
        factors = 1.0 if targets.class_weight is None else targets.class_weight
        mean_weight = float(np.sum(found.weights * factors)) / source.n_rows
        problem = Problem(
            loss, targets, l2, d, outputs, task.fit_intercept, as_stored, tiny, mean_weight, blind
        )
        sample = sample_groups(data.groups)
        name = "auto" if task.replicas is not None else task.solver
        solver = choose_solver(name, problem, sample, data.groups, source.dtype.itemsize)
        if task.replicas is not None:
            solver = LocalSGD(solver, task.replicas, task.tol, task.max_iter)
        newton = isinstance(solver, Newton)
        rehearse = partial(rehearse_linear, problem, source.dtype, newton)
        data.require(solver.needs(problem, data), rehearse)
        coordinates = find_coordinates(
            data, sample or data.groups[:1], task.fit_intercept, task.label
        )
        data.journal.keep()
        problem = replace(problem, coordinates=coordinates)
        start = task.start(problem) if task.start is not None else None
        solution = minimise(problem, solver, run, task.tol, task.max_iter, start, saved)
    attributes = run_attributes(run, data, solution)
    if isinstance(solver, LocalSGD):
        attributes["n_replicas_"] = solver.n_replicas(data)
    warn_unless_converged(solution, task.tol, ConvergenceWarning)
    coef, intercept = coordinates.to_original(solution.theta[:, :d], solution.theta[:, d])
    if not task.fit_intercept:
        intercept = np.zeros_like(intercept)
    return Fitted(coef, intercept, solution, attributes)


def run_attributes(run: RunOf[Any], data: Opened, solution: Solution) -> dict[str, Any]:
    """The fitted attributes that tell of the run."""
    return {
        "certificate_": solution.certificate,
        **sweep_attributes(run, data, solution),
    }


def sweep_attributes(run: RunOf[Any], data: Opened, solution: Solution) -> dict[str, Any]:
    """Those of a run that has no certificate."""
    return {
        "history_": History(run.history),
        "n_iter_": solution.n_iter,
        **pass_attributes(data),
    }


def pass_attributes(data: Opened) -> dict[str, Any]:
    """The fitted attributes that tell of passes over the rows."""
    return {
        "n_passes_": data.totals.rows / data.n_rows,
        "bytes_read_": data.totals.nbytes,
        "plan_": data.plan,
        "peak_memory_": data.peaks,
    }
