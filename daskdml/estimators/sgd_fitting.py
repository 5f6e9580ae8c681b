"""From an SGD estimator's parameters to a run. Imported by `fit` alone: it needs Dask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from daskdml.engine.memory import Needs
from daskdml.engine.run import Data, Engine
from daskdml.estimators.fitting import resume, run_attributes
from daskdml.io.sources import AnySource
from daskdml.kernels.linear import Coordinates
from daskdml.kernels.sgd import SGDConfig, SGDState
from daskdml.kernels.targets import LabelSummary, Targets
from daskdml.solvers.base import Problem, Solution, minimise, running
from daskdml.solvers.problems import scan_targets
from daskdml.solvers.rehearsal import rehearse_sgd
from daskdml.solvers.sgd import SGD


@dataclass(frozen=True)
class SGDTask:
    """What to fit, in an estimator's terms.

    Parameters
    ----------
    label : str
        Name on the dashboard.
    scan : bool
        Whether the labels have to be found out.
    describe : callable
        `LabelSummary` or None -> (config, targets).
    n_replicas : int or None
        None takes as many as there are compute slots, and groups of rows.
    options : dict
        Further parameters of `SGD`.
    began : float
        When `fit` was called, by ``time.perf_counter()``.
    parameters : dict
        What the result depends on, beside the data and options; None for a part of a fit.
    start : callable
        Config -> parameters (K, d + 1) to start from, or None.
    """

    label: str
    scan: bool
    describe: Callable[[LabelSummary | None], tuple[SGDConfig, Targets]]
    n_replicas: int | None
    options: dict[str, Any]
    began: float
    parameters: dict[str, Any] | None
    start: Callable[[SGDConfig], np.ndarray | None]


@dataclass(frozen=True)
class SGDFitted:
    """What a fit leaves behind."""

    coef: np.ndarray
    intercept: np.ndarray
    state: SGDState
    solution: Solution
    attributes: dict[str, Any]


def fit_sgd(source: AnySource, task: SGDTask) -> SGDFitted:
    """Plan, scan the labels where they are unknown, run the epochs."""
    engine, d = Engine.current(), source.n_features
    options = task.options
    again = options.get("certify") or options.get("held_share")
    once = options.get("max_iter") == 1 and not again
    with (
        engine.open(source, Needs(), once) as data,
        running(data, task.label, task.began, resumable=task.parameters is not None) as run,
    ):
        saved, n_replicas = None, task.n_replicas or _replicas(data)
        if task.parameters is not None:
            if task.n_replicas is None and run.checkpoints is not None:
                n_replicas = run.checkpoints.recall("n_replicas") or n_replicas
            more = {"seed": options["seed"], "n_replicas": n_replicas}
            saved = resume(run, task.parameters | more)
        found = scan_targets(data, True, task.label) if task.scan else None
        data.journal.keep()
        config, targets = task.describe(found)
        solver = SGD(config, n_replicas, **task.options)
        problem = Problem(
            config.loss, targets, config.decay, d, config.n_models, config.fit_intercept,
            Coordinates.identity(d),
        )  # fmt: skip
        rehearse = partial(rehearse_sgd, config, targets, source.dtype)
        data.require(solver.needs(problem, data), rehearse)
        never = -1.0  # SGD stops by a criterion of its own
        start = task.start(config)
        solution = minimise(problem, solver, run, never, solver.max_iter, start, saved)
    attributes = run_attributes(run, data, solution)
    if not solver.certify:
        del attributes["certificate_"]
    attributes["n_replicas_"] = n_replicas
    theta = solution.theta
    state = solution.state.states[-1]
    return SGDFitted(theta[:, :d].copy(), theta[:, d].copy(), state, solution, attributes)


def _replicas(data: Data) -> int:
    slots = sum(w.threads for w in data.runner.workers())
    return max(1, min(slots, len(data.groups)))
