"""Block Krylov: leading eigenvectors, and bounds that hold against eigenvalues known exactly."""

from __future__ import annotations

import time

import numpy as np
import pytest

import daskdml.solvers.krylov
from daskdml.engine.memory import Needs
from daskdml.engine.run import Engine, Inline
from daskdml.io.sources import as_source
from daskdml.solvers.base import minimise, running
from daskdml.solvers.krylov import BlockKrylov, Leading

RNG = np.random.default_rng(0)
ROUND_OFF = 1e-12
ROWS = {
    "low rank": RNG.standard_normal((600, 5)) @ RNG.standard_normal((5, 60)) + 3,
    "isotropic": RNG.standard_normal((2000, 200)),
    "ties": RNG.standard_normal((2000, 100)) * np.repeat([5.0, 1.0], [30, 70]),
    "power law": RNG.standard_normal((500, 400)) * np.arange(1.0, 401) ** -0.7,
    "fast decay": RNG.standard_normal((500, 300)) * 0.8 ** np.arange(300),
    "few rows": RNG.standard_normal((15, 40)),
    "constant": np.ones((20, 10)),
}


def fitted(X, problem, solver, tol=1e-6):
    """The solution, and the certificate after each pass."""
    certificates, step = [], solver.step

    class Watched:
        start = solver.start

        def step(self, *args):
            state, report = step(*args)
            certificates.append(report.certificate)
            return state, report

    source = as_source(X, None, None)
    with (
        Engine(Inline()).open(source, Needs()) as data,
        running(data, "leading", time.perf_counter()) as run,
    ):
        return minimise(problem, Watched(), run, tol, 60), certificates


def spectrum(X, centred):
    """All eigenvalues, falling, and the matrix."""
    rows = X.astype("f8") - (X.mean(axis=0) if centred else 0)
    C = rows.T @ rows
    return np.linalg.eigvalsh(C)[::-1], C


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_the_gap_holds(name, centred, seed):
    """A proven gap is never below the truth, an estimate not once it is small; tol is reached."""
    X, k = ROWS[name], 7
    exact, C = spectrum(X, centred)
    best = exact[:k].sum()
    solution, certificates = fitted(X, Leading(k, centred), BlockKrylov(5, None, seed))
    for c in certificates:
        missed = best + c.objective
        if c.rigorous or c.relative < 1e-3:
            assert missed <= c.gap + ROUND_OFF * exact.sum()
    assert solution.converged and certificates[-1].relative <= 1e-6
    V = solution.state.vectors(k)
    np.testing.assert_allclose(V @ V.T, np.eye(k), atol=1e-10)
    captured = float(np.trace(V @ C @ V.T))
    assert captured == pytest.approx(-certificates[-1].objective, rel=1e-9, abs=1e-9)
    assert best - captured <= 1e-6 * captured + ROUND_OFF


@pytest.mark.parametrize("name", ["low rank", "fast decay", "few rows", "constant"])
def test_what_little_is_left_proves_the_gap(name):
    """Where the basis holds nearly all variance, the gap is proven."""
    _, certificates = fitted(ROWS[name], Leading(7, True), BlockKrylov(5, None, 0), 1e-9)
    assert certificates[-1].rigorous


def test_a_basis_that_shrinks(monkeypatch):
    """Where the basis may hold three blocks only, it converges all the same."""
    monkeypatch.setattr(daskdml.solvers.krylov, "BLOCKS", 3)
    X, k = ROWS["isotropic"], 7
    exact, _ = spectrum(X, True)
    solution, certificates = fitted(X, Leading(k, True), BlockKrylov(5, None, 0))
    assert solution.converged and solution.state.passes > 6
    assert solution.state.Q.shape[1] <= 5 * 12
    missed = exact[:k].sum() + certificates[-1].objective
    assert -ROUND_OFF <= missed / exact[:k].sum() <= certificates[-1].relative <= 1e-6


def test_so_many_passes():
    """A number of power iterations is kept, and makes one pass more than that."""
    solution, certificates = fitted(ROWS["isotropic"], Leading(7, True), BlockKrylov(5, 2, 0), 0.0)
    assert len(certificates) == 3 and solution.converged


def test_float32():
    """Rows in float32 leave an error of their round-off, and the bound holds but for that."""
    X = (ROWS["power law"] + 10).astype("f4")
    exact, _ = spectrum(X, True)
    solution, certificates = fitted(X, Leading(7, True), BlockKrylov(5, None, 0), 1e-6)
    assert solution.converged
    missed = exact[:7].sum() + certificates[-1].objective
    assert abs(missed) <= certificates[-1].gap + 1e-6 * exact.sum()
