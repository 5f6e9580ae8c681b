"""Leading eigenpairs of rows' products, by two routes. Imported by `fit` alone: it needs Dask."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from daskdml.engine.memory import Needs
from daskdml.engine.run import Engine
from daskdml.estimators.fitting import pass_attributes, resume, run_attributes
from daskdml.io.sources import AnySource
from daskdml.kernels.covariance import SCATTER_SLAB, Spectrum, scatter, spectrum
from daskdml.solvers.base import Report, Solution, minimise, running, warn_unless_converged
from daskdml.solvers.krylov import PASSES, BlockKrylov, Leading

EXACT = "one pass tells all"


def find_spectrum(
    source: AnySource, label: str, centred: bool, k: int | None, began: float,
    parameters: dict[str, Any],
) -> tuple[Spectrum, dict[str, Any]]:  # fmt: skip
    """The k leading eigenpairs (None: all) from one pass, and the attributes that tell of it."""
    d = source.n_features
    needs = Needs(SCATTER_SLAB * d * source.dtype.itemsize + 4 * d * d * 8, d * d * 8)
    with (
        Engine.current().open(source, needs, once=True) as data,
        running(data, label, began) as run,
    ):
        saved = resume(run, parameters)
        if saved is None:
            name = f"{label}-covariance"
            found, totals = data.map_reduce(scatter, name, parts=("X",))
            report = Report(name, totals, None, None, np.empty(0))
            run.note(report)
            run.save(found, report, 1, (EXACT, True))
        else:
            found = saved.state
        run.solution = Solution(np.empty(0), None, EXACT, True, 1, None)
    told = {"certificate_": None, "history_": None, **pass_attributes(data)}
    return spectrum(found, centred, d if k is None else k), told


def find_leading(
    source: AnySource, label: str, centred: bool, k: int, oversamples: int, n_iter: int | None,
    seed: int, tol: float, began: float, parameters: dict[str, Any],
) -> tuple[Spectrum, dict[str, Any]]:  # fmt: skip
    """The k leading eigenpairs from a few passes, without the matrix.

    Parameters
    ----------
    source, label, centred, k
        As for `find_spectrum`.
    oversamples, n_iter, seed
        Of `BlockKrylov`.
    tol : float
        Certified relative gap at which passes end, where `n_iter` is None.
    began : float
        When `fit` was called, by ``time.perf_counter()``.
    parameters : dict
        Of the estimator.
    """
    problem, solver = Leading(k, centred), BlockKrylov(oversamples, n_iter, seed)
    with Engine.current().open(source, Needs()) as data, running(data, label, began) as run:
        data.require(solver.needs(problem, data))
        saved = resume(run, parameters, seed=seed)
        goal, most = (tol, PASSES) if n_iter is None else (0.0, n_iter + 1)
        solution = minimise(problem, solver, run, goal, most, saved=saved)
    warn_unless_converged(solution, tol, ConvergenceWarning)
    b = solution.state
    values = np.maximum(b.values[:k], 0.0)
    found = Spectrum(b.n, b.mean, values, b.vectors(k), b.total, b.spread)
    told = run_attributes(run, data, solution) | {"certificate_": b.certificate}
    return found, told
