"""From the parameters of a factorization to its run. Imported by `fit` alone: it needs Dask."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from daskdml.engine.factor_tasks import GATHER_BYTES
from daskdml.engine.memory import Needs
from daskdml.engine.run import Engine
from daskdml.engine.sweeps import Held, Sweeps, cut_tiles
from daskdml.estimators.fitting import resume, sweep_attributes
from daskdml.estimators.recommending import sorted_table
from daskdml.io.factors import FactorStore, FactorTable, StoredFactors
from daskdml.io.rating_store import Walk
from daskdml.io.ratings import Ratings
from daskdml.solvers.als import ALS, SolveRows
from daskdml.solvers.base import RunOf, Saved, Solution, running
from daskdml.solvers.dsgd import DSGD, EXTRA, Steps, WithSums
from daskdml.solvers.factorization import (
    Descent,
    ErrorsOf,
    FactorSolver,
    FirstFactors,
    KnownFactors,
    Model,
    Stopping,
    factorize,
    report_of,
)
from daskdml.solvers.rehearsal import rehearse_factors

TASK_RATINGS = 1_000_000  # of a tile of one side, at least, where the grid allows it
PAIR_RATINGS = 4_000_000  # of a tile of both sides
PIECE_RATINGS = 1_000_000  # of the blocks of such a tile that become one: finer ones cost more


@dataclass(frozen=True)
class FactorTask:
    """What to fit.

    Parameters
    ----------
    model : Model
    solver : {"als", "sgd"}
    stop : Stopping
    began : float
        When `fit` was called, by ``time.perf_counter()``.
    validation : Ratings or None
        Held out for early stopping.
    learning_rate, staleness, n_replicas
        Of "sgd".
    url, options
        Where factors are to be kept, or None.
    known : tuple of FactorTable or None
        Users and items of an earlier fit, to start from.
    parameters : dict or None
        What the result depends on, beside the ratings; None for a part of a fit.
    """

    model: Model
    solver: str
    stop: Stopping
    began: float
    validation: Ratings | None
    learning_rate: float
    staleness: int
    n_replicas: int | None
    url: str | os.PathLike[str] | None
    options: Any
    known: tuple[FactorTable, FactorTable] | None
    parameters: dict[str, Any] | None


def fit_factors(
    ratings: Ratings, task: FactorTask
) -> tuple[tuple[FactorTable, FactorTable], dict[str, Any], bool]:
    """Plan, make first factors, sweep.

    Gives the tables of users and items, attributes, and whether the user interrupted.
    """
    engine, model, paired = Engine.current(), task.model, task.solver == "sgd"
    store = None if task.url is None else FactorStore.at(task.url, task.options)
    tiles, replicas = _tiles(ratings, task.n_replicas, paired, store is not None)
    gram = np.zeros((model.k, model.k)) if model.implicit else None
    rule = Steps(model, task.learning_rate) if paired else SolveRows(model, gram)
    rehearse = partial(rehearse_factors, model, (rule, ErrorsOf(model.k, model.mean)))
    width = model.width + EXTRA * paired
    copies = engine.checkpoint is not None and store is None
    needs = _needs(ratings, model, tiles, width, paired, store is not None, copies)
    whole = task.parameters is not None
    with (
        Sweeps(engine, ratings, tiles, width, needs, store, paired, rehearse) as data,
        running(data, f"factorization-{task.solver}", task.began, resumable=whole) as run,
    ):
        there: list[str] = []
        if store is not None and run.checkpoints is not None:
            data.checkpointed, there = run.checkpoints.names, store.names()
        saved = resume(run, task.parameters, there, seed=model.seed) if task.parameters else None
        if store is not None:
            store.begin(None if run.checkpoints is None else run.checkpoints.mark, saved is None)
            data.adopt()
        try:
            solution = _factorize(data, run, task, saved)
        except BaseException:
            if store is not None and run.checkpoints is None:
                store.discard()
            raise
        users, items = solution.state.answer
        now = solution.state
        run.finish(replace(solution, state=now.written(data)), report_of(now), now.names)
        run.close()
        data.settle(users, items)
        tables = _table(data, "user", users, model.width), _table(data, "item", items, model.width)
    last = run.history[-1]
    attributes = {
        "stop_reason_": solution.reason,
        "objective_": last.objective,
        "gradient_norm_": last.gradient,
        "n_replicas_": replicas,
        **sweep_attributes(run, data, solution),
    }
    return tables, attributes, solution.interrupted


def _factorize(data: Sweeps, run: RunOf[Sweeps], task: FactorTask, saved: Saved | None) -> Solution:
    """Sweep, from first factors or from where an earlier call stood."""
    stop, rule = task.stop, task.solver == "sgd"
    if saved is not None and saved.ended is not None:
        now = saved.state.held(data)
        return Solution(np.empty(0), None, *saved.ended, saved.n_iter, now)
    if task.validation is not None:
        stop = replace(stop, validate=partial(_rmse, data, task.model, task.validation))
    solver: FactorSolver = DSGD(task.learning_rate, task.staleness) if rule else ALS()
    if saved is not None:
        start, n_iter = saved.state.held(data), saved.n_iter
        if start.best is not None:
            data.spare(*start.best)
    else:
        start, n_iter = Descent(*_start(data, task)), 0
    return factorize(task.model, solver, data, run, stop, start, n_iter)


def _tiles(
    ratings: Ratings, n_replicas: int | None, paired: bool, in_store: bool
) -> tuple[dict[Walk, list[Any]], int | None]:
    """Tiles of users and items: by the number of ratings alone, not by the cluster.

    Factors in a store are worked on a block at a time.
    """
    p, q = ratings.grid
    users, items = ratings.bounds("user"), ratings.bounds("item")
    if not paired:
        n = max(p, q) if in_store else max(2, ratings.n_stored // TASK_RATINGS)
        return {"user": cut_tiles(users, n), "item": cut_tiles(items, n)}, None
    if n_replicas is not None and n_replicas > min(p, q):
        raise ValueError(
            f"n_replicas={n_replicas} is more than the grid of {p} x {q} blocks has; convert the "
            f"ratings with grid=({n_replicas}, {n_replicas}), or ask for fewer replicas"
        )
    most = min(p, q)
    n = most if in_store else min(most, max(2, math.isqrt(ratings.n_stored // PAIR_RATINGS)))
    n = n_replicas or n
    pieces = max(1, math.isqrt(ratings.n_stored // (n * n * PIECE_RATINGS)))
    return {"user": cut_tiles(users, n, pieces), "item": cut_tiles(items, n, pieces)}, n


def _needs(
    ratings: Ratings, model: Model, tiles: dict[Walk, list[Any]], width: int, paired: bool,
    in_store: bool, copied: bool,
) -> Needs:  # fmt: skip
    """Bytes of factors and equations that a worker process holds; `copied` into checkpoints."""
    row = width * model.dtype.itemsize
    largest = [max(t.rows for t in side) * row for side in tiles.values()]
    equations = 0 if paired else ALS().needs(model).work
    if in_store:
        most = max(ratings.nnz.sum(axis=0).max(), ratings.nnz.sum(axis=1).max())
        gathered = 0 if paired else min(GATHER_BYTES, min(max(ratings.shape), int(most)) * row)
        return Needs(work=5 * sum(largest) + equations + gathered)
    # Newest and next factors of both sides may all be in one process, and a copy being written.
    held = (3 + 2 * copied) * sum(ratings.shape) * row
    return Needs(work=3 * sum(largest) + equations, held=held)


def _start(data: Sweeps, task: FactorTask) -> tuple[Held, Held]:
    """First factors of users and items."""
    made = []
    scale = _first_scale(task)
    sides: tuple[Walk, Walk] = ("user", "item")
    for number, walk in enumerate(sides):
        init: Any = FirstFactors(task.model, number, scale)
        if task.known is not None:
            side = data.ratings.side(walk)
            table = task.known[number]
            init = KnownFactors(init, table, table.side.find(side.ids), side.bounds)
        if task.solver == "sgd":
            init = WithSums(init, data.ratings, walk, task.model.power)
        made.append(data.make(walk, init, f"{walk}-factors"))
    return made[0], made[1]


def _first_scale(task: FactorTask) -> float:
    """Standard deviation of the first factors' products.

    From a small one, strong factors grow before weak ones, which fit noise: the test error falls
    lower (docs/benchmarks.md). Nonnegative factors are better off with larger ones.
    """
    if task.solver == "sgd":
        return 0.01
    return 0.1 if task.model.implicit or task.model.nonnegative else 1e-6


def _rmse(data: Sweeps, model: Model, held_out: Ratings, users: Held, items: Held) -> float:
    found, totals = data.score(ErrorsOf(model.k, model.mean), users, items, "validation", held_out)
    data.end_pass("validation", totals)
    return float(found.rmse)


def _table(data: Sweeps, walk: Walk, held: Held, columns: int) -> FactorTable:
    side = data.ratings.side(walk)
    if held.name is None or data.store is None:
        rows = data.fetch(held)[:, :columns]
        return sorted_table(FactorTable(side, rows, columns))
    sizes = tuple(np.diff(side.bounds).tolist())
    stored = StoredFactors(data.store, held.name, 0, sizes, data.width)
    data.store.note(**{walk: held.name})
    return FactorTable(side, stored, columns)
