"""Products of the Hessian with a vector, its blocks, and conjugate gradients.

The Hessian is never formed: for K outputs and d features a product with it costs what two passes
over the rows' scores cost. Its blocks are, over few rows, to precondition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from daskdml.kernels.linear import Coordinates
from daskdml.kernels.losses import Loss, Multinomial
from daskdml.kernels.products import SLAB, apart, curved_rows, padded, scratch, standardise

GRAM_SLAB = 256  # rows of one product with themselves
ENOUGH = 0.1  # of the decrement: what an iteration may still add when the solution is good enough
ITERATIONS = 100


@dataclass(frozen=True)
class Curved:
    """Sums over rows of weight * Hessian of the loss, times a vector; they add.

    Parameters
    ----------
    weight : float
        Sum of the rows' weights.
    total : ndarray of shape (K, d + 1)
        Sum of the products.
    curvatures : ndarray of shape (K,)
        Sum of weight * the loss's second derivative in each score.
    """

    weight: float
    total: np.ndarray
    curvatures: np.ndarray

    def __add__(self, other: Curved) -> Curved:
        curvatures = self.curvatures + other.curvatures
        return Curved(self.weight + other.weight, self.total + other.total, curvatures)

    @property
    def mean_total(self) -> np.ndarray:
        """Mean of the products, shape (K, d + 1)."""
        return self.total / self.weight

    @property
    def mean_curvatures(self) -> np.ndarray:
        """Mean of the second derivatives, shape (K,)."""
        return self.curvatures / self.weight


@dataclass(frozen=True)
class HessianProduct:
    """Rows -> `Curved`, at one point and for one vector.

    Parameters
    ----------
    loss : Loss or Multinomial
        With a curvature.
    coordinates : Coordinates
    theta, vector : ndarrays of shape (K, d + 1), float64
        Where the Hessian is taken, and what it is multiplied with.
    """

    loss: Loss | Multinomial
    coordinates: Coordinates
    theta: np.ndarray
    vector: np.ndarray

    def __call__(self, X: np.ndarray, y: np.ndarray, s: np.ndarray) -> Curved:
        """Sums of a block with rows X (n, d), encoded targets y (n,) and weights s (n,)."""
        (K, D), loss = self.theta.shape, self.loss
        code, param = (-1, 0.0) if isinstance(loss, Multinomial) else (loss.code, loss.param)
        center, inverse = self.coordinates.center, 1.0 / self.coordinates.scale
        total, mean = np.zeros((K, D)), np.zeros(K)
        T, (Z, A, G) = apart((SLAB, D), X.dtype), scratch(K, D, X.dtype)
        W, V = padded(self.theta, X.dtype), padded(self.vector, X.dtype)
        curved_rows(code, param, X, y, s, center, inverse, W, V, T, Z, A, G, total, mean)
        return Curved(float(s.sum()), total, mean)


@dataclass(frozen=True)
class Gram:
    """Rows -> the sum of curvature * x x' over some of them, its upper triangle row by row.

    The Hessian of all outputs is near block-diagonal, and its blocks near multiples of one another
    where rows are as uncertain of one output as of the next [1]_.

    Parameters
    ----------
    loss, coordinates, theta
        As in `HessianProduct`.
    output : int or None
        Whose block to sum; None for the sum of all.
    every : int
        Take every so many slabs of `GRAM_SLAB` rows.

    References
    ----------
    .. [1] Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate
       curvature", ICML 2015.
    """

    loss: Loss | Multinomial
    coordinates: Coordinates
    theta: np.ndarray
    output: int | None = None
    every: int = 1

    def __call__(self, X: np.ndarray, y: np.ndarray, s: np.ndarray) -> Triangle:
        """Sum of the curvatures of rows X (n, d), targets y (n,) and weights s (n,)."""
        D, weight = self.theta.shape[1], 0.0
        out, T = np.zeros((D, D)), np.empty((GRAM_SLAB, D), X.dtype)
        center, inverse = self.coordinates.center, 1.0 / self.coordinates.scale
        theta = self.theta.T.astype(X.dtype)
        for start in range(0, X.shape[0], GRAM_SLAB * self.every):
            stop = min(start + GRAM_SLAB, X.shape[0])
            standardise(X, start, stop, center, inverse, T)
            rows, ss = T[: stop - start], s[start:stop]
            z = (rows @ theta).astype(np.float64)
            if isinstance(self.loss, Multinomial):
                p = self.loss.probabilities(z)
                curved = p * (1.0 - p)
                c = curved.sum(axis=1) if self.output is None else curved[:, self.output]
            else:
                c = self.loss.curvature(y[start:stop], z[:, 0])
            rows *= np.sqrt(ss * c)[:, None].astype(X.dtype)
            out += rows.T @ rows
            weight += float(ss.sum())
        return Triangle(weight, out[np.triu_indices(D)])


@dataclass(frozen=True)
class Triangle:
    """A sum over rows of a symmetric matrix, and of their weights; they add.

    Parameters
    ----------
    weight : float
    upper : ndarray of shape (D * (D + 1) / 2,)
    """

    weight: float
    upper: np.ndarray

    def __add__(self, other: Triangle) -> Triangle:
        return Triangle(self.weight + other.weight, self.upper + other.upper)

    @property
    def mean(self) -> np.ndarray:
        """The whole matrix over the weight, shape (D, D)."""
        D = (math.isqrt(8 * len(self.upper) + 1) - 1) // 2
        out = np.zeros((D, D))
        out[np.triu_indices(D)] = self.upper / self.weight
        return out + np.triu(out, 1).T


def conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray],
    b: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, int, bool]:
    """Preconditioned conjugate gradients for ``A x = b`` [1]_.

    What matters to a minimisation is the decrement ``b . x``, not the residual. So iterations end
    once one of them, times their number, adds less than `ENOUGH` of it [2]_, and what the residual
    r still hides, at most ``r . M r`` over the least eigenvalue of ``M A`` for the preconditioner
    M, is no more than that; of the eigenvalue, the least Ritz value tells [3]_.

    Parameters
    ----------
    product : callable
        Array of b's shape -> the positive definite operator's product with it.
    b : ndarray
    precondition : callable
        Array of b's shape -> an approximate solution for it as the right-hand side; linear,
        symmetric and positive definite.

    Returns
    -------
    x : ndarray
    n_iter : int
    settled : bool
        Whether the iterations ended as said, and not by their number or by round-off.

    References
    ----------
    .. [1] Nocedal, Wright, "Numerical Optimization", 2006, algorithm 5.3.
    .. [2] Nash, Sofer, "Assessing a search direction within a truncated-Newton method", Oper. Res.
       Lett. 9, 1990.
    .. [3] Golub, Meurant, "Matrices, Moments and Quadrature with Applications", 2010, chapter 12.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.diag([1.0, 2.0])
    >>> conjugate_gradients(lambda v: A @ v, np.array([1.0, 1.0]), lambda r: r)
    (array([1. , 0.5]), 2, True)
    """
    x, r = np.zeros_like(b), b.copy()
    q = precondition(r)
    d, rq = q.copy(), float(np.sum(r * q))
    decrement, alphas, betas = 0.0, [], [0.0]
    for i in range(1, ITERATIONS + 1):
        if rq <= 0:
            return x, i - 1, rq == 0
        Ad = product(d)
        curvature = float(np.sum(d * Ad))
        if not curvature > 0:
            break
        alpha = rq / curvature
        x += alpha * d
        added = alpha * rq
        decrement += added
        r -= alpha * Ad
        q = precondition(r)
        rq, before = float(np.sum(r * q)), rq
        alphas.append(alpha)
        known = i * added <= ENOUGH * decrement
        if known and rq <= ENOUGH * decrement * _least_ritz(alphas, betas):
            return x, i, True
        betas.append(rq / before)
        d = q + betas[-1] * d
    return x, i, False


def _least_ritz(alphas: list[float], betas: list[float]) -> float:
    """Least eigenvalue of Lanczos's tridiagonal matrix, from the steps of conjugate gradients."""
    a, b = np.array(alphas), np.array(betas)
    main = 1.0 / a + np.append(0.0, b[1:] / a[:-1])
    return float(
        eigvalsh_tridiagonal(main, np.sqrt(b[1:]) / a[:-1], select="i", select_range=(0, 0))[0]
    )
