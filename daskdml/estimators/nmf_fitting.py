"""From NMF's parameters to a solver's run. Imported by `fit` alone: it needs Dask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from daskdml.engine.memory import Needs
from daskdml.engine.run import Engine
from daskdml.estimators.fitting import resume, run_attributes
from daskdml.io.sources import AnySource
from daskdml.kernels.nmf import totals
from daskdml.solvers.base import Report, minimise, running, warn_unless_converged
from daskdml.solvers.nmf import AlternatingLeastSquares, Factorization, Point
from daskdml.solvers.rehearsal import rehearse_nmf


@dataclass(frozen=True)
class Penalties:
    """Factors of the sums and of half of the squares of W and of H."""

    l1_W: float
    l2_W: float
    l1_H: float
    l2_H: float


def find_factors(
    source: AnySource, K: int, penalties: Penalties, init: str, seed: int, tol: float,
    max_iter: int, began: float, parameters: dict[str, Any],
) -> tuple[Point, dict[str, Any]]:  # fmt: skip
    """H with its objective, and the attributes that tell of the run.

    Parameters
    ----------
    source : Source
    K : int
        Components.
    penalties : Penalties
    init, seed, tol
        Of `AlternatingLeastSquares`.
    max_iter : int
    began : float
        When `fit` was called, by ``time.perf_counter()``.
    parameters : dict
        Of the estimator.
    """
    with Engine.current().open(source, Needs()) as data, running(data, "nmf", began) as run:
        solver = AlternatingLeastSquares(tol, init, seed)
        problem = Factorization(K, 0.0, 0.0, **vars(penalties))
        data.require(solver.needs(problem, data), partial(rehearse_nmf, source.dtype))
        saved = resume(run, parameters, seed=seed)
        found, spent = data.map_reduce(totals, "nmf-totals", parts=("X",))
        data.journal.keep()
        if saved is None:
            run.note(Report("nmf-totals", spent, None, None, np.zeros(0)))
        mean = found.total / (found.n * source.n_features)
        tiny = max(np.finfo(np.float64).eps * found.power, problem.tiny)
        problem = Factorization(K, found.power, mean, **vars(penalties), tiny=tiny)
        solution = minimise(problem, solver, run, 0.0, max_iter, saved=saved)
    warn_unless_converged(solution, tol, ConvergenceWarning)
    state = solution.state
    told = run_attributes(run, data, solution)
    del told["certificate_"]  # none is known
    told["stationarity_"] = state.best.gradient / state.first if state.first > 0 else 0.0
    return state.best, told
