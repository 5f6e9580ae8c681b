"""Alternating least squares on dense float64 matrices, row by row: slow and plain."""

from __future__ import annotations

import numpy as np
from scipy.optimize import lsq_linear


def dense_parts(ratings):
    """Ratings (n, m), 0 where there are none, and where there are some."""
    R, known = np.zeros(ratings.shape), np.zeros(ratings.shape, bool)
    for i, j in np.ndindex(ratings.grid):
        block, _ = ratings.read("user", i, j)
        users, items = ratings.pairs("user", i, j, block)
        R[users, items], known[users, items] = block.values, True
    return R, known


def objective(model, R, known, U, V):
    """f of `daskdml.solvers.factorization`."""
    k = model.k
    P = U[:, :k] @ V[:, :k].T
    if model.implicit:
        f = ((1 + model.alpha * R) * (known - P) ** 2).sum()
    else:
        P = P + model.mean + U[:, k:] + V[:, k:].T
        f = ((R - P)[known] ** 2).sum()
    for W, counts in ((U, known.sum(1)), (V, known.sum(0))):
        f += model.reg * (np.where(counts > 0, counts**model.power, 0) @ (W**2).sum(axis=1))
    return f


def half_step(model, R, known, U, V):
    """Overwrite U by the minimiser of f over it."""
    k, m = model.k, model.unknowns
    for row in range(len(U)):
        have = known[row]
        U[row] = 0
        if not have.any():
            continue
        if model.implicit:
            F, c = V[:, :k], 1 + model.alpha * R[row]
            A, b = (F * c[:, None]).T @ F, F.T @ (c * have)
        else:
            F = np.c_[V[have, :k], np.ones(have.sum())][:, :m]
            t = R[row, have] - model.mean - V[have, k] * model.biases
            A, b = F.T @ F, F.T @ t
        A = A + model.reg * have.sum() ** model.power * np.eye(m)
        if model.nonnegative:
            L = np.linalg.cholesky(A)
            least = np.where(np.arange(m) < k, 0, -np.inf)
            y = np.linalg.solve(L, b)
            U[row, :m] = lsq_linear(L.T, y, (least, np.inf), method="bvls", tol=1e-14).x
        else:
            U[row, :m] = np.linalg.solve(A, b)


def gradient(model, R, known, U, V):
    """Norm of the gradient of f in V by differences, projected where V may not be negative."""
    total, eps = 0.0, 1e-6
    for row in range(len(V)):
        for a in range(model.unknowns):
            ahead, back = V.copy(), V.copy()
            ahead[row, a] += eps
            back[row, a] -= eps
            g = (objective(model, R, known, U, ahead) - objective(model, R, known, U, back)) / (
                2 * eps
            )
            if not (model.nonnegative and a < model.k and V[row, a] <= 0 and g > 0):
                total += g * g
    return np.sqrt(total)
