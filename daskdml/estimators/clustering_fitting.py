"""From a clusterer's parameters to a run. Imported by `fit` alone: it needs Dask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from daskdml.engine.memory import Needs
from daskdml.engine.run import NOTHING, Engine
from daskdml.estimators.fitting import resume, run_attributes
from daskdml.io.sources import AnySource
from daskdml.kernels.kmeans import Centers, ClusterSums
from daskdml.solvers.base import Report, Run, Saved, Solution, interruption, running
from daskdml.solvers.kmeans import (
    Descent,
    Moving,
    PassRows,
    draw_sample,
    lloyd,
    pass_needs,
    rehearse,
    seeding_needs,
    seek_centers,
)
from daskdml.solvers.minibatch import MiniBatch, Walked


@dataclass(frozen=True, eq=False)
class ClusterTask:
    """What to fit, in an estimator's terms.

    Parameters
    ----------
    label : str
        Name on the dashboard.
    n_clusters : int
    init : {"k-means++", "random"} or ndarray of shape (n_clusters, d)
    n_init : int or "auto"
    seed : int
    began : float
        When `fit` was called, by ``time.perf_counter()``.
    parameters : dict
        Of the estimator.
    """

    label: str
    n_clusters: int
    init: str | np.ndarray
    n_init: int | str
    seed: int
    began: float
    parameters: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Clustered:
    """What a fit leaves behind."""

    centers: np.ndarray
    stats: ClusterSums
    attributes: dict[str, Any]
    state: Walked | None = None


@contextmanager
def _opened(
    source: AnySource, task: ClusterTask, batch_size: int = 0, part: bool = False,
    goes_on: bool = False,
) -> Iterator[tuple[Run, Saved | None]]:  # fmt: skip
    """A planned run over the rows, of which a batch is copied at a time; and where it stood."""
    held = pass_needs(task.n_clusters, source)
    batch = min(batch_size, source.n_rows) * source.row_nbytes
    held = replace(held, work=held.work + batch)
    if isinstance(task.init, str) and not goes_on:
        held = seeding_needs(task.n_clusters, source, held)
    engine = Engine.current()
    with (
        engine.open(source, Needs()) as data,
        running(data, task.label, task.began, resumable=not part) as run,
    ):
        data.require(held, partial(rehearse, source.dtype))
        yield run, None if part else resume(run, task.parameters, seed=task.seed)


def _start(run: Run, task: ClusterTask) -> Walked:
    """Centers to start from, and the weights of the rows they are known to be means of."""
    if not isinstance(task.init, str):
        return Walked(task.init, np.zeros(task.n_clusters))
    n_init = None if isinstance(task.n_init, str) else int(task.n_init)
    sample = draw_sample(run, task.n_clusters, task.seed)
    found = seek_centers(sample, task.n_clusters, task.init, n_init, task.seed)
    return Walked(found.centers, found.stats.weights)


def fit_kmeans(source: AnySource, task: ClusterTask, tol: float, max_iter: int) -> Clustered:
    """Centers from a sample, then Lloyd's algorithm over all rows."""
    with _opened(source, task) as (run, saved):
        if saved is not None and saved.ended is not None:
            found: Descent = saved.state
        else:
            start = Moving(_start(run, task).centers) if saved is None else saved.state
            found = lloyd(PassRows(run), start, tol, max_iter)
        best = Report(run.label, NOTHING, found.stats.inertia, None, found.centers)
        run.finish(found.solution, best)
    return Clustered(found.centers, found.stats, _attributes(run))


def fit_minibatch(source: AnySource, task: ClusterTask, solver: MiniBatch) -> Clustered:
    """Centers from a sample, then epochs of mini-batches, and a pass for the inertia."""
    with _opened(source, task, solver.batch_size) as (run, saved):
        found = solver(run, None if saved else _start(run, task), saved)
        found, stats = _with_inertia(run, found)
        state = found.state
        run.finish(found, Report(run.label, NOTHING, stats.inertia, None, state.centers))
    return Clustered(state.centers, stats, _attributes(run), state)


def _with_inertia(run: Run, found: Solution) -> tuple[Solution, ClusterSums]:
    """The sums of a last pass; where the user interrupts, what the last epoch saw."""
    state: Walked = found.state
    if not found.interrupted:  # else a pass would keep the user waiting
        try:
            return found, PassRows(run).sums(Centers(state.centers))
        except KeyboardInterrupt:
            why = interruption(found.n_iter)
            found = replace(found, reason=why, converged=False, interrupted=True)
    return found, ClusterSums(state.weights, np.zeros_like(state.centers), state.inertia)


def walk_once(
    source: AnySource, task: ClusterTask, solver: MiniBatch, state: Walked | None
) -> tuple[Walked, dict[str, Any]]:
    """One epoch of mini-batches, from `state` or from centers sought among these rows."""
    with _opened(source, task, solver.batch_size, True, state is not None) as (run, _):
        run.solution = solver(run, _start(run, task) if state is None else state)
    return run.solution.state, _attributes(run)


def _attributes(run: Run) -> dict[str, Any]:
    assert run.solution is not None
    attributes = run_attributes(run, run.data, run.solution)
    del attributes["certificate_"]
    return attributes
