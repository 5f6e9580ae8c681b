"""Nonnegative least squares for each row, and the sums that a factorization's other side needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskdml.kernels.block import Block
from daskdml.kernels.compiled import inlined, kernel
from daskdml.kernels.targets import check_nonnegative, check_rows

SLAB_ROWS = 256  # rows whose coefficients are solved for at a time
SWEEPS = 1000
RESOLVED = 1e-12  # of what the first step gains: the least that a sweep must gain to go on
SINGULAR = 1e-10  # of a pivot's diagonal: smaller ones are round-off


@inlined()
def _polish(G, c, w, g, L, index):  # type: ignore[no-untyped-def]
    """Solve on the support of w exactly; whether that is the optimum, in w and g then."""
    K, m = w.size, 0
    for k in range(K):
        if w[k] > 0.0:
            index[m] = k
            m += 1
    for a in range(m):
        for b in range(a + 1):
            v = G[index[a], index[b]]
            for r in range(b):
                v -= L[a, r] * L[b, r]
            if a == b:
                if v <= SINGULAR * G[index[a], index[a]]:
                    return False
                L[a, a] = np.sqrt(v)
            else:
                L[a, b] = v / L[b, b]
    z = g  # scratch: g is made anew below, or by the caller
    for a in range(m):
        v = c[index[a]]
        for r in range(a):
            v -= L[a, r] * z[r]
        z[a] = v / L[a, a]
    for a in range(m - 1, -1, -1):
        v = z[a]
        for r in range(a + 1, m):
            v -= L[r, a] * z[r]
        z[a] = v / L[a, a]
        if z[a] <= 0.0:
            return False
    for a in range(m):
        w[index[a]] = z[a]
    return True


@inlined()
def _gradient(G, c, w, g):  # type: ignore[no-untyped-def]
    """g = G w - c."""
    K = w.size
    for j in range(K):
        g[j] = -c[j]
    for k in range(K):
        if w[k] != 0.0:
            for j in range(K):
                g[j] += w[k] * G[k, j]


@kernel()
def nonnegative_rows(G: np.ndarray, C: np.ndarray, W: np.ndarray) -> None:
    """Each row w of W: minimise ``w G w' / 2 - c w'`` over ``w >= 0`` from where it is.

    Coordinate descent [1]_ [2]_ finds which coefficients are not 0; once a sweep leaves these as
    they are, their equations are solved exactly, and if nothing else would then gain by moving, the
    row is done.

    Parameters
    ----------
    G : ndarray of shape (K, K), float64
        Positive semidefinite; a coefficient of diagonal 0 stays as it is, unless c says 0.
    C, W : ndarrays of shape (n, K), float64

    References
    ----------
    .. [1] Cichocki, Phan, "Fast local algorithms for large scale nonnegative matrix and tensor
       factorizations", IEICE Transactions on Fundamentals E92-A, 2009.
    .. [2] Hsieh, Dhillon, "Fast coordinate descent methods with variable selection for
       non-negative matrix factorization", KDD 2011.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.zeros((1, 2))
    >>> nonnegative_rows(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[2.0, -1.0]]), W)
    >>> W
    array([[1., 0.]])
    """
    n, K = W.shape
    g, before, L = np.empty(K), np.empty(K), np.empty((K, K))
    index = np.empty(K, np.int64)
    for i in range(n):
        w, c = W[i], C[i]
        largest = 0.0
        for k in range(K):
            if G[k, k] > 0.0:
                largest = max(largest, c[k] * c[k] / G[k, k])
            elif c[k] < 0.0:
                w[k] = 0.0
        _gradient(G, c, w, g)
        for _ in range(SWEEPS):
            gain, moved = 0.0, False
            for k in range(K):
                if G[k, k] <= 0.0:
                    continue
                new = max(w[k] - g[k] / G[k, k], 0.0)
                step = new - w[k]
                if step != 0.0:
                    moved = moved or (w[k] > 0.0) != (new > 0.0)
                    w[k] = new
                    gain = max(gain, step * step * G[k, k])
                    for j in range(K):
                        g[j] += step * G[k, j]
            if gain <= RESOLVED * RESOLVED * largest:
                break
            if moved:
                continue
            before[:] = w
            if _polish(G, c, w, g, L, index):
                _gradient(G, c, w, g)
                done = True
                for k in range(K):
                    if w[k] == 0.0 and G[k, k] > 0.0:
                        gained = g[k] * g[k] / G[k, k]
                        if g[k] < 0.0 and gained > RESOLVED * RESOLVED * largest:
                            done = False
                if done:
                    break
            else:
                w[:] = before
                _gradient(G, c, w, g)


@dataclass(frozen=True)
class Factored:
    """Sums over rows X and their coefficients W; they add.

    Parameters
    ----------
    squares : ndarray of shape (K, K)
        ``W'W``.
    products : ndarray of shape (K, d)
        ``W'X``.
    coefficients : ndarray of shape (K,)
        Column sums of W.
    along : float
        Sum of ``W * (X H')``.
    """

    squares: np.ndarray
    products: np.ndarray
    coefficients: np.ndarray
    along: float

    def __add__(self, other: Factored) -> Factored:
        return Factored(
            self.squares + other.squares,
            self.products + other.products,
            self.coefficients + other.coefficients,
            self.along + other.along,
        )


@dataclass(frozen=True)
class Coefficients:
    """Rows X (n, d) -> the W (n, K) >= 0 of least ``|X - WH|^2 / 2`` and penalties.

    Parameters
    ----------
    H : ndarray of shape (K, d), float64
        Nonnegative.
    l1, l2 : float
        Factors of the sum of W, and of half the sum of its squares.

    Examples
    --------
    >>> import numpy as np
    >>> Coefficients(np.array([[1.0, 1.0], [0.0, 1.0]]))(np.array([[2.0, 5.0], [1.0, 0.0]]))
    array([[2. , 3. ],
           [0.5, 0. ]])
    """

    H: np.ndarray
    l1: float = 0.0
    l2: float = 0.0

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Coefficients of rows X; a `DataError` names the first value that cannot be."""
        check_nonnegative(X)
        H, G = self.H.astype(X.dtype), self.gram()
        W = np.zeros((len(X), len(H)))
        for start in range(0, len(X), SLAB_ROWS):
            stop = start + SLAB_ROWS
            self.solve(G, (X[start:stop] @ H.T).astype(np.float64), W[start:stop])
        return W

    def gram(self) -> np.ndarray:
        """``HH'`` and the penalty's l2."""
        return self.H @ self.H.T + self.l2 * np.eye(len(self.H))

    def solve(self, G: np.ndarray, products: np.ndarray, W: np.ndarray) -> None:
        """Put coefficients into W (n, K), 0 so far, from `gram` and the products ``XH'``."""
        nonnegative_rows(G, products - self.l1, W)


@dataclass(frozen=True)
class FactorRows:
    """Block -> `Factored`, with the coefficients of its rows, which are not kept."""

    rows: Coefficients

    def __call__(self, block: Block) -> Factored:
        """Sums of a block, whose rows are multiplied in their dtype and summed in float64."""
        X, (K, d) = block.X, self.rows.H.shape
        H, G = self.rows.H.astype(X.dtype), self.rows.gram()
        squares, products, coefficients, along = (
            np.zeros((K, K)),
            np.zeros((K, d)),
            np.zeros(K),
            0.0,
        )
        for start in range(0, len(X), SLAB_ROWS):
            slab = X[start : start + SLAB_ROWS]
            inner, W = (slab @ H.T).astype(np.float64), np.zeros((len(slab), K))
            self.rows.solve(G, inner, W)
            squares += W.T @ W
            products += W.astype(X.dtype).T @ slab
            coefficients += W.sum(axis=0)
            along += float(np.sum(W * inner))
        return Factored(squares, products, coefficients, along)


@dataclass(frozen=True)
class Totals:
    """Sum and sum of squares of all values of rows; they add.

    Parameters
    ----------
    n : int
        Rows.
    total, power : float
    """

    n: int
    total: float
    power: float

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.n + other.n, self.total + other.total, self.power + other.power)


def totals(block: Block) -> Totals:
    """`Totals` of a block; a `DataError` names its first negative value, NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> totals(Block(np.array([[1.0, 2.0], [0.0, 3.0]]), None, None))
    Totals(n=2, total=6.0, power=14.0)
    """
    X = block.X
    check_nonnegative(X)
    total = power = 0.0
    for start in range(0, len(X), SLAB_ROWS):
        slab = X[start : start + SLAB_ROWS]
        total += float(slab.sum(axis=1, dtype=np.float64).sum())
        power += float(np.einsum("ij,ij->i", slab, slab).sum(dtype=np.float64))
    if not np.isfinite(power):
        check_rows(X)
    return Totals(len(X), total, power)


@dataclass(frozen=True)
class SignedNorms:
    """Block -> squared norms of the positive and the negative parts of ``XV'``, shape (2, K).

    Parameters
    ----------
    V : ndarray of shape (K, d), float64
    """

    V: np.ndarray

    def __call__(self, block: Block) -> np.ndarray:
        """Squared norms over the rows of a block."""
        X, V = block.X, self.V.astype(block.X.dtype)
        norms = np.zeros((2, len(V)))
        for start in range(0, len(X), SLAB_ROWS):
            U = (X[start : start + SLAB_ROWS] @ V.T).astype(np.float64)
            norms[0] += np.sum(np.maximum(U, 0.0) ** 2, axis=0)
            norms[1] += np.sum(np.minimum(U, 0.0) ** 2, axis=0)
        return norms
