"""ALS equals a dense reference sweep by sweep; DSGD equals serial SGD."""

import time
from dataclasses import replace

import numpy as np
import pytest

from daskdml import Engine
from daskdml.engine.memory import Needs
from daskdml.engine.run import Inline, Threads
from daskdml.engine.sweeps import Sweeps, cut_tiles
from daskdml.io import convert_ratings
from daskdml.kernels.factors import sgd_block
from daskdml.solvers.als import ALS
from daskdml.solvers.base import running
from daskdml.solvers.dsgd import DSGD, EXTRA, WithSums
from daskdml.solvers.factorization import (
    Descent,
    ErrorsOf,
    FirstFactors,
    Model,
    Stopping,
    factorize,
)
from tests.solvers.dense_als import dense_parts, gradient, half_step, objective

PLAIN = Model(4, 0.0, 0.05, 1.0, True, False, False, 1.0, 0, np.dtype(np.float64))
KINDS = {
    "explicit": PLAIN,
    "no biases": replace(PLAIN, biases=False),
    "no scaling": replace(PLAIN, power=0.0, reg=0.5),
    "root": replace(PLAIN, power=0.5, reg=0.2),
    "nonnegative": replace(PLAIN, nonnegative=True),
    "nonnegative, no biases": replace(PLAIN, nonnegative=True, biases=False),
    "implicit": replace(PLAIN, biases=False, implicit=True, alpha=3.0),
    "implicit, no scaling": replace(PLAIN, biases=False, implicit=True, power=0.0),
    "implicit, nonnegative": replace(PLAIN, biases=False, implicit=True, nonnegative=True),
}


def made(folder, dtype=np.float64, grid=(3, 2)):
    """Ratings of 40 users for 30 items, a third of all pairs."""
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((40, 30)) < 0.33)
    data = (users * 7, items, np.round(1 + 4 * rng.random(len(users)), 1))
    return convert_ratings(data, folder / "r.zarr", dtype=dtype, grid=grid)


def run(ratings, model, solver, sweeps, tiles, runner=None, tol=0.0, pieces=None):
    """Fit from the model's first factors; gives history, first and last factors, by side."""
    cut = {"user": cut_tiles(ratings.users.bounds, tiles, pieces),
           "item": cut_tiles(ratings.items.bounds, tiles, pieces)}  # fmt: skip
    width = model.width + EXTRA * solver.paired
    with (
        Sweeps(Engine(runner), ratings, cut, width, Needs(), None, solver.paired) as data,
        running(data, "test", time.perf_counter()) as fit,
    ):
        start = []
        for side, walk in enumerate(("user", "item")):
            first = FirstFactors(model, side)
            if solver.paired:
                first = WithSums(first, ratings, walk, model.power)
            start.append(data.make(walk, first, "first"))
        first = [data.fetch(side).copy() for side in start]
        found = factorize(model, solver, data, fit, Stopping(sweeps, tol), Descent(*start))
        fit.solution = found
        return fit.history, first, [data.fetch(side) for side in found.state.answer], found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_als_equals_the_dense_reference(kind, dtype, tmp_path):
    """Factors, objective and gradient equal those of dense float64 algebra after each sweep."""
    ratings = made(tmp_path, dtype)
    mean = 0.0 if KINDS[kind].implicit else ratings.mean()
    model = replace(KINDS[kind], mean=mean, dtype=np.dtype(dtype))
    R, known = dense_parts(ratings)
    close = 1e-9 if dtype == np.float64 else 1e-5
    for sweeps in (1, 2, 4):
        history, (U, V), found, _ = run(ratings, model, ALS(), sweeps, 2)
        U, V = U.astype(float), V.astype(float)
        for t in range(sweeps):
            half_step(model, R, known, U, V)
            g = gradient(model, R, known, U, V) if sweeps == 2 and dtype == np.float64 else None
            half_step(model, R.T, known.T, V, U)
            f = objective(model, R, known, U, V)
            assert history[t].objective == pytest.approx(f, rel=close)
            if g is not None:
                assert history[t].gradient == pytest.approx(g, rel=1e-5)
        for ours, theirs in zip(found, (U, V), strict=True):
            assert np.abs(ours - theirs).max() <= close * max(1, np.abs(theirs).max()) * 10


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_conjugate_gradients_equal_the_dense_ones(dtype, tmp_path):
    """A few steps give what NumPy's conjugate gradients give, and many the exact solution."""
    ratings = made(tmp_path, dtype)
    model = replace(KINDS["implicit"], dtype=np.dtype(dtype), cg_steps=2)
    R, known = dense_parts(ratings)
    history, (U, V), found, _ = run(ratings, model, ALS(), 2, 2)
    U, V = U.astype(float), V.astype(float)
    for t in range(2):
        for X, Y, r, have in ((U, V, R, known), (V, U, R.T, known.T)):
            k = model.k
            for row in range(len(X)):
                c = 1 + model.alpha * r[row]
                F, lam = Y[:, :k], model.reg * have[row].sum() ** model.power
                A, x = (F * c[:, None]).T @ F + lam * np.eye(k), X[row, :k]
                residual = F.T @ (c * have[row]) - A @ x
                p = residual.copy()
                for _ in range(model.cg_steps):
                    step = residual @ residual / (p @ A @ p)
                    x += step * p
                    after = residual - step * A @ p
                    p = after + after @ after / (residual @ residual) * p
                    residual = after
        f = objective(model, R, known, U, V)
        assert history[t].objective == pytest.approx(f, rel=1e-9 if dtype == np.float64 else 1e-5)
    close = 1e-9 if dtype == np.float64 else 1e-4
    assert np.abs(found[0] - U).max() < close and np.abs(found[1] - V).max() < close
    exact = run(ratings, replace(model, cg_steps=0), ALS(), 2, 2)[2]
    many = run(ratings, replace(model, cg_steps=50), ALS(), 2, 2)[2]
    assert np.abs(exact[0] - many[0]).max() < close


@pytest.mark.parametrize("kind", ["explicit", "implicit", "nonnegative"])
def test_gradient_norms_fall_to_the_tolerance(kind, tmp_path):
    """ALS goes on until the gradient is a small share of the first, and f falls all the way."""
    ratings = made(tmp_path)
    mean = 0.0 if kind == "implicit" else ratings.mean()
    model = replace(KINDS[kind], mean=mean, reg=0.2)
    history, _, _, found = run(ratings, model, ALS(), 3000, 2, tol=1e-6)
    assert found.converged and history[-1].gradient <= 1e-6 * max(h.gradient for h in history)
    f = np.array([record.objective for record in history])
    assert (np.diff(f) <= 1e-9 * f[0]).all()


def test_tiles_do_not_change_als(tmp_path):
    """However the model is cut into tiles, each row's equations are summed in the same order."""
    ratings = made(tmp_path, grid=(4, 4))
    model = replace(PLAIN, mean=ratings.mean())
    a, b = (run(ratings, model, ALS(), 3, n)[2] for n in (1, 4))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def serial(ratings, model, rate, sweeps, U, V, piece):
    """One loop over pieces of blocks, in the order of the strata, with AdaGrad's step sizes."""
    k = model.k
    n = ratings.grid[0] // piece
    R, known = dense_parts(ratings)
    bounds = ratings.users.bounds[::piece], ratings.items.bounds[::piece]
    for t in range(1, sweeps + 1):
        for shift in range(n):
            for i in range(n):
                j = (i + shift) % n
                rows = np.arange(bounds[0][i], bounds[0][i + 1])
                drawn = np.random.default_rng([model.seed, 2, t, i * piece, j * piece])
                for row in drawn.permutation(rows):
                    columns = slice(bounds[1][j], bounds[1][j + 1])
                    for item in np.flatnonzero(known[row, columns]) + bounds[1][j]:
                        u, v = U[row], V[item]
                        e = R[row, item] - model.mean - u[:k] @ v[:k] - u[k] - v[k]
                        steps = []
                        for own, other in ((u, v), (v, u)):
                            reg = model.reg * own[k + 3]
                            steps.append((e * other[:k] - reg * own[:k], e - reg * own[k]))
                        for own, (g, h) in zip((u, v), steps, strict=True):
                            own[:k] += rate / np.sqrt(own[k + 1]) * g
                            own[k] += rate / np.sqrt(own[k + 2]) * h
                            own[k + 1] += (g @ g) / k
                            own[k + 2] += h * h
                            if model.nonnegative:
                                own[:k] = np.maximum(own[:k], 0)


@pytest.mark.parametrize("kind", ["explicit", "root", "no scaling", "nonnegative"])
@pytest.mark.parametrize(("tiles", "pieces"), [(1, None), (4, None), (1, 2), (2, 1)])
def test_dsgd_equals_serial_sgd(kind, tiles, pieces, tmp_path):
    """Strata worked on at once, of blocks alone or together, give what one loop gives."""
    ratings = made(tmp_path, grid=(4, 4))
    model = replace(KINDS[kind], mean=ratings.mean())
    _, (U, V), found, _ = run(ratings, model, DSGD(0.1), 3, tiles, Threads(2), pieces=pieces)
    serial(ratings, model, 0.1, 3, U, V, 4 // (tiles * pieces) if pieces else 1)
    assert np.allclose(found[0], U, atol=1e-12) and np.allclose(found[1], V, atol=1e-12)


def test_staleness_changes_little(tmp_path):
    """Changes made from stale factors, and added to the newest, end near the serial fit."""
    ratings = made(tmp_path, grid=(4, 4))
    model = replace(PLAIN, mean=ratings.mean())
    rule = ErrorsOf(model.k, model.mean)
    reached = []
    for staleness in (0, 1, 2):
        _, _, (U, V), _ = run(ratings, model, DSGD(0.1, staleness), 20, 4, Inline())
        total = None
        for i, j in np.ndindex(ratings.grid):
            rows = slice(*ratings.users.bounds[i : i + 2])
            columns = slice(*ratings.items.bounds[j : j + 2])
            found = rule(U[rows], V[columns], ratings.read("user", i, j)[0])
            total = found if total is None else total + found
        reached.append(total.rmse)
    assert reached[1] != reached[0] and reached[2] != reached[1]
    assert max(reached) - min(reached) < 0.02 * reached[0]


def test_steps_that_are_too_long_are_told(tmp_path):
    """Factors that grow beyond all bounds end the fit with the cure."""
    ratings = made(tmp_path)
    model = replace(PLAIN, mean=ratings.mean())
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        run(ratings, model, DSGD(1e200), 5, 1)


def test_sgd_step_is_the_gradient():
    """A step follows the gradient of half of a rating's share of f, over the roots of the sums."""
    rng = np.random.default_rng(0)
    U, V = (np.append(rng.standard_normal(4), [4.0, 9.0, 0.5])[None] for _ in range(2))
    one, zero = np.array([0, 1], np.int32), np.zeros(1, np.int32)

    def f(u, v):
        e = 4.0 - 3.0 - u[:3] @ v[:3] - u[3] - v[3]
        return 0.5 * (e**2 + 0.5 * 0.1 * (u @ u + v @ v))

    u, v, eps = U[0, :4].copy(), V[0, :4].copy(), 1e-6
    steps = np.eye(4) * eps
    du = np.array([(f(u + s, v) - f(u - s, v)) / (2 * eps) for s in steps])
    dv = np.array([(f(u, v + s) - f(u, v - s)) / (2 * eps) for s in steps])
    sgd_block(one, zero, np.array([4.0]), zero, U, V, 3, 3.0, 1e-3, 0.1, True, False)
    root = np.array([2, 2, 2, 3])
    for before, after, g in ((u, U[0], du), (v, V[0], dv)):
        assert np.allclose((before - after[:4]) * root / 1e-3, g, atol=1e-6)
        assert np.allclose(after[4:], [4 + (g[:3] ** 2).mean(), 9 + g[3] ** 2, 0.5], atol=1e-6)
