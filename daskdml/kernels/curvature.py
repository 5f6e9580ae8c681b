"""Newton's equation on the rows of one block, solved by conjugate gradients.

The block's Hessian is never formed: for K outputs and d features a product with it costs what two
passes over the block's scores cost. Averaged over blocks, the solutions precondition a method on
all rows [1]_.

References
----------
.. [1] Wang, Roosta, Xu, Mahoney, "GIANT: Globally Improved Approximate Newton Method for
   Distributed Optimization", NeurIPS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskdml.kernels.linear import Coordinates, standard_rows
from daskdml.kernels.losses import Loss, Multinomial
from daskdml.kernels.products import SLAB, apart, curved_product, scratch

RESIDUAL = 0.1  # relative, at which the solution is good enough to precondition
ITERATIONS = 40


@dataclass(frozen=True)
class Solutions:
    """Sum of blocks' solutions and how many there are; they add.

    Parameters
    ----------
    n : int
    total : ndarray of shape (K, d + 1)
    """

    n: int
    total: np.ndarray

    def __add__(self, other: Solutions) -> Solutions:
        return Solutions(self.n + other.n, self.total + other.total)

    @property
    def mean(self) -> np.ndarray:
        """The average, shape (K, d + 1)."""
        return self.total / self.n


@dataclass(frozen=True)
class LocalNewton:
    """Rows -> the solution v of ``(H + diag(penalty)) v = rhs`` with H of these rows alone.

    Parameters
    ----------
    loss : Loss or Multinomial
        With a curvature.
    coordinates : Coordinates
    theta, penalty, rhs : ndarrays of shape (K, d + 1), float64
        Where H is taken; factors of the squared parameters times 2; the right-hand side. An
        entry of `free` that is 0 holds its parameter fixed.
    free : ndarray of shape (K, d + 1), float64
        1 for parameters that move, else 0.
    """

    loss: Loss | Multinomial
    coordinates: Coordinates
    theta: np.ndarray
    penalty: np.ndarray
    rhs: np.ndarray
    free: np.ndarray

    def __call__(self, X: np.ndarray, y: np.ndarray, s: np.ndarray) -> Solutions:
        """Solution of a block with rows X (n, d), encoded targets y (n,) and weights s (n,)."""
        n, K = X.shape[0], self.theta.shape[0]
        padded = standard_rows(X, self.coordinates, multiple=SLAB)
        T = padded[:n]
        z = (T @ self.theta.T.astype(T.dtype)).astype(np.float64)
        weight = max(float(s.sum()), np.finfo(np.float64).tiny)
        share = s / weight
        if isinstance(self.loss, Multinomial):
            p = self.loss.probabilities(z)
            spread = p * (1.0 - p)
        else:
            p = spread = self.loss.curvature(y, z[:, 0])[:, None]
        curved = (spread * share[:, None]).T
        diagonal = self.penalty + _weighted_squares(T, curved)
        floor = 1e-9 * float(diagonal.max(initial=1e-300))
        damping = np.where(self.penalty > 0, 0.0, floor)  # where H may have no curvature at all

        Z, A, G = scratch(K, T.shape[1], T.dtype)
        W, HV = apart(G.shape, T.dtype), np.empty((K, T.shape[1]))

        def product(V: np.ndarray) -> np.ndarray:
            W[:K] = V
            curved_product(padded, p, share, W, Z, A, G, HV)
            return (HV + (self.penalty + damping) * V) * self.free

        return Solutions(1, conjugate_gradients(product, self.rhs * self.free, diagonal + floor))


def _weighted_squares(T: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c @ T**2, in slabs."""
    out = np.zeros((c.shape[0], T.shape[1]))
    for start in range(0, T.shape[0], 4 * SLAB):
        slab = T[start : start + 4 * SLAB]
        out += c[:, start : start + 4 * SLAB] @ np.square(slab, dtype=np.float64)
    return out


def conjugate_gradients(product, b: np.ndarray, diagonal: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Jacobi-preconditioned conjugate gradients, to a relative residual of `RESIDUAL`.

    Parameters
    ----------
    product : callable
        Array of b's shape -> the positive definite operator's product with it.
    b, diagonal : ndarrays of one shape
        Right-hand side; an approximation of the operator's diagonal.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.diag([1.0, 2.0])
    >>> conjugate_gradients(lambda v: A @ v, np.array([1.0, 1.0]), np.diag(A))
    array([1. , 0.5])
    """
    x, r = np.zeros_like(b), b.copy()
    q = r / diagonal
    d, rq = q.copy(), float(np.sum(r * q))
    goal = RESIDUAL**2 * rq
    for _ in range(ITERATIONS):
        if rq <= goal:
            break
        Ad = product(d)
        curvature = float(np.sum(d * Ad))
        if not curvature > 0:
            break
        alpha = rq / curvature
        x += alpha * d
        r -= alpha * Ad
        q = r / diagonal
        rq, before = float(np.sum(r * q)), rq
        d = q + (rq / before) * d
    return x
