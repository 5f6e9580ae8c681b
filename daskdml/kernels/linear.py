"""The one place where X meets a loss: a block of rows -> the statistics of a linear model.

A linear model's scores are ``z = b + ((x - center) / scale) . w``.  The shift and the scale are an
exact change of variables (`Coordinates`), not a change of the problem: they keep sums well
conditioned when columns differ by orders of magnitude or have a large mean.

Every sum is taken in float64 whatever the dtype of ``X``; rows are read in slabs that stay in
cache, so that float32 data is never copied to float64 whole.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from daskdml.kernels.block import Block
from daskdml.kernels.compiled import REDUCTIONS, kernel
from daskdml.kernels.losses import Loss, Multinomial, curvature, value, value_and_slope
from daskdml.kernels.products import SLAB, apart, padded, scratch, softmax_rows, standardise

SLAB_ROWS = 1024


@dataclass(frozen=True)
class Coordinates:
    """Shift and scale of the features: ``(x - center) / scale``.

    Parameters
    ----------
    center, scale : ndarray of shape (d,), float64

    Examples
    --------
    >>> import numpy as np
    >>> c = Coordinates(center=np.array([2.0]), scale=np.array([4.0]))
    >>> coef, intercept = c.to_original(np.array([[8.0]]), np.array([1.0]))
    >>> coef, intercept
    (array([[2.]]), array([-3.]))
    """

    center: np.ndarray
    scale: np.ndarray

    @classmethod
    def identity(cls, d: int) -> Coordinates:
        """Coordinates that leave the features as they are."""
        return cls(np.zeros(d), np.ones(d))

    def to_original(self, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (K, d) and intercepts (K,) on the features as they are stored."""
        coef = w / self.scale
        return coef, b - coef @ self.center

    def from_original(self, coef: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of `to_original`."""
        return coef * self.scale, b + coef @ self.center


@dataclass(frozen=True)
class Moments:
    """Number of rows, column means and sums of squared deviations (Chan et al. 1983).

    Parameters
    ----------
    n : float
    mean, m2 : ndarray of shape (d,), float64
    """

    n: float
    mean: np.ndarray
    m2: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        return Moments(n, mean, self.m2 + other.m2 + delta**2 * (self.n * other.n / n))

    def coordinates(self, center: bool) -> Coordinates:
        """Standardising coordinates; a column that is constant here keeps its scale."""
        second = self.m2 / self.n + (0.0 if center else self.mean**2)
        scale = np.sqrt(second)
        tiny = np.abs(self.mean) * 1e-12
        scale = np.where(
            (scale > tiny) & np.isfinite(scale), scale, np.maximum(np.abs(self.mean), 1e-300)
        )
        scale = np.where(scale > 1e-290, scale, 1.0)
        return Coordinates(self.mean if center else np.zeros_like(self.mean), scale)


@dataclass(frozen=True)
class LinearStats:
    """Sums over rows of a linear model's loss and its derivatives; they add.

    Parameters
    ----------
    n : float
        Rows.
    weight : float
        Sum of the rows' weights.
    loss : float
        Sum of weight * loss.
    slope : float
        Sum of weight * abs(slope), summed over outputs: the scale of the gradient's round-off.
    rising, falling : ndarray of shape (P,)
        The gradient's part from rows of positive and of negative slope; ``P = K * (d + 1)``
        parameters in the order (output, feature), each output's intercept last. For K > 1 the
        whole gradient is in `rising`.
    rising_weight, falling_weight : float
        Sums of weight * slope over the same rows (K = 1).
    rising_dual, falling_dual : float
        Sums of weight * conjugate(slope) over the same rows (K = 1).
    row_norm2 : float
        Largest squared norm of a row in the model's coordinates, the intercept's 1 included.
    line : ndarray of shape (n_steps,)
        Sum of weight * loss at each step length tried along the direction, over some of the rows.
    line_weight : float
        Sum of those rows' weights.
    hessian : ndarray of shape (P, P) or None
        Sum of weight * Hessian of the loss over some of the rows.
    hessian_weight : float
        Sum of those rows' weights.
    """

    n: float
    weight: float
    loss: float
    slope: float
    rising: np.ndarray
    falling: np.ndarray
    rising_weight: float
    falling_weight: float
    rising_dual: float
    falling_dual: float
    row_norm2: float
    line: np.ndarray
    line_weight: float
    hessian: np.ndarray | None
    hessian_weight: float = 0.0

    @property
    def gradient(self) -> np.ndarray:
        """Sum of weight * gradient of the loss, shape (P,)."""
        return self.rising + self.falling

    def __add__(self, other: LinearStats) -> LinearStats:
        out: dict[str, Any] = {}
        for f in fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            out[f.name] = max(a, b) if f.name == "row_norm2" else (None if a is None else a + b)
        return LinearStats(**out)


@kernel(fastmath=REDUCTIONS)
def _scores(X, center, v, b, z):  # type: ignore[no-untyped-def]
    """z[i] = b + (x[i] - center) . v, in float64."""
    n, d = X.shape
    for i in range(n):
        s = 0.0
        for j in range(d):
            s += (np.float64(X[i, j]) - center[j]) * v[j]
        z[i] = b + s


@kernel(fastmath=REDUCTIONS)
def _scores_and_norm2(X, center, inverse, w, b, z):  # type: ignore[no-untyped-def]
    """z[i] = b + x~[i] . w with x~ = (x - center) * inverse; returns the largest |x~[i]|^2."""
    n, d = X.shape
    largest = 0.0
    for i in range(n):
        s, q = 0.0, 0.0
        for j in range(d):
            t = (np.float64(X[i, j]) - center[j]) * inverse[j]
            s += t * w[j]
            q += t * t
        z[i] = b + s
        largest = max(largest, q)
    return largest


@kernel(fastmath=REDUCTIONS)
def _add_rows(X, center, c, rows, g):  # type: ignore[no-untyped-def]
    """g += sum over i in rows of c[i] * (x[i] - center); returns the sum of those c."""
    n, d = rows.shape[0], X.shape[1]
    total = 0.0
    k = 0
    while k + 4 <= n:
        i0, i1, i2, i3 = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        c0, c1, c2, c3 = c[i0], c[i1], c[i2], c[i3]
        for j in range(d):
            m = center[j]  # taken off each: off their sum, a large mean would cancel
            g[j] += (
                c0 * (np.float64(X[i0, j]) - m)
                + c1 * (np.float64(X[i1, j]) - m)
                + c2 * (np.float64(X[i2, j]) - m)
                + c3 * (np.float64(X[i3, j]) - m)
            )
        total += c0 + c1 + c2 + c3
        k += 4
    while k < n:
        i = rows[k]
        for j in range(d):
            g[j] += c[i] * (np.float64(X[i, j]) - center[j])
        total += c[i]
        k += 1
    return total


@kernel()
def _slopes(code, param, y, z, s, c, rows, sums):  # type: ignore[no-untyped-def]
    """Weighted slopes c; rows that rise first in `rows`, then those that fall.

    Adds to sums = (weight, loss, |slope|, dual of the rising, dual of the falling) and returns how
    many rows rise.
    """
    n = z.shape[0]
    rise, fall = 0, n
    for i in range(n):
        loss, a = value_and_slope(code, param, y[i], z[i])
        dual = s[i] * (a * z[i] - loss)
        c[i] = s[i] * a
        sums[0] += s[i]
        sums[1] += s[i] * loss
        if a >= 0.0:
            rows[rise] = i
            rise += 1
            sums[2] += c[i]
            sums[3] += dual
        else:
            fall -= 1
            rows[fall] = i
            sums[2] -= c[i]
            sums[4] += dual
    return rise


@kernel()
def _losses(code, param, y, z, s):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(z.shape[0]):
        total += s[i] * value(code, param, y[i], z[i])
    return total


@kernel()
def _curved_rows(code, param, X, center, inverse, y, z, s, out):  # type: ignore[no-untyped-def]
    """out[i] = sqrt(s * curvature) * ((x - center) * inverse, 1)."""
    n, d = X.shape
    for i in range(n):
        r = np.sqrt(s[i] * curvature(code, param, y[i], z[i]))
        for j in range(d):
            out[i, j] = r * ((np.float64(X[i, j]) - center[j]) * inverse[j])
        out[i, d] = r


@kernel()
def _column_moments(X, shift, total, square):  # type: ignore[no-untyped-def]
    n, d = X.shape
    for i in range(n):
        for j in range(d):
            t = np.float64(X[i, j]) - shift[j]
            total[j] += t
            square[j] += t * t


def moments(block: Block) -> Moments:
    """Means and squared deviations of a block's columns, shifted by its first row.

    Examples
    --------
    >>> import numpy as np
    >>> moments(Block(np.array([[1.0], [3.0]]), None, None)).mean
    array([2.])
    """
    X = block.X
    n, d = X.shape
    shift = X[0].astype(np.float64)
    total, square = np.zeros(d), np.zeros(d)
    _column_moments(X, shift, total, square)
    return Moments(float(n), shift + total / n, np.maximum(square - total**2 / n, 0.0))


def scores(X: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """Scores of a linear model on rows as they are stored.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    coef : ndarray of shape (K, d)
    intercept : ndarray of shape (K,)

    Returns
    -------
    ndarray of shape (n, K), float64

    Examples
    --------
    >>> import numpy as np
    >>> scores(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])
    """
    z = np.empty((X.shape[0], coef.shape[0]))
    center = np.zeros(X.shape[1])
    for k in range(coef.shape[0]):
        _scores(X, center, np.ascontiguousarray(coef[k], dtype=np.float64), intercept[k], z[:, k])
    return z


@dataclass(frozen=True)
class LinearPass:
    """What one pass computes of a linear model at one point; call it on a prepared block.

    Parameters
    ----------
    loss : Loss
    coordinates : Coordinates
    theta : ndarray of shape (K, d + 1), float64
        Coefficients in `coordinates`, each output's intercept last.
    direction : ndarray of shape (K, d + 1) or None
        A direction along which the loss is also taken.
    steps : tuple of float
        ``theta + step * direction`` are the further points of the line.
    hessian_dtype : numpy dtype or None
        None: no Hessian. float32: products of rows in float32 (float32 data only), their slabs'
        sums in float64. float64: all in float64.
    hessian_every : int
        Take the Hessian over every so many slabs of `SLAB_ROWS` rows: with rows in plenty, a part
        of them knows it well enough, and bounds it from below.
    line_every : int
        Take the line over every so many slabs of rows: part of many tells which step is best.
    exact : bool
        Whether products of rows with several outputs are taken in float64, as they are beside a
        Hessian and with one output, and not in the rows' dtype.
    """

    loss: Loss | Multinomial
    coordinates: Coordinates
    theta: np.ndarray
    direction: np.ndarray | None = None
    steps: tuple[float, ...] = ()
    hessian_dtype: type | None = None
    hessian_every: int = 1
    line_every: int = 1
    exact: bool = False

    def __call__(self, X: np.ndarray, y: np.ndarray, s: np.ndarray) -> LinearStats:
        """Statistics of rows X (n, d), encoded targets y (n,) and weights s (n,)."""
        if isinstance(self.loss, Multinomial):
            return self._many_outputs(X, y, s)
        return self._one_output(X, y, s)

    def _one_output(self, X: np.ndarray, y: np.ndarray, s: np.ndarray) -> LinearStats:
        assert isinstance(self.loss, Loss)
        code, param = self.loss.code, self.loss.param
        center, inverse = self.coordinates.center, 1.0 / self.coordinates.scale
        d = X.shape[1]
        w, b = self.theta[0, :d], self.theta[0, d]
        rising, falling, sums = np.zeros(d + 1), np.zeros(d + 1), np.zeros(5)
        line = np.zeros(len(self.steps))
        hessian = None if self.hessian_dtype is None else np.zeros((d + 1, d + 1))
        curved = np.empty((SLAB_ROWS, d + 1), self.hessian_dtype) if hessian is not None else None
        z, c = np.empty(SLAB_ROWS), np.empty(SLAB_ROWS)
        order = np.empty(SLAB_ROWS, np.int64)
        weights, largest, in_hessian, in_line = np.zeros(2), 0.0, 0.0, 0.0
        for slab, start in enumerate(range(0, X.shape[0], SLAB_ROWS)):
            Xs, ys, ss = (a[start : start + SLAB_ROWS] for a in (X, y, s))
            m = Xs.shape[0]
            largest = max(largest, _scores_and_norm2(Xs, center, inverse, w, b, z))
            rise = _slopes(code, param, ys, z[:m], ss, c, order, sums)
            weights[0] += _add_rows(Xs, center, c, order[:rise], rising)
            weights[1] += _add_rows(Xs, center, c, order[rise:m], falling)
            if curved is not None and hessian is not None and slab % self.hessian_every == 0:
                _curved_rows(code, param, Xs, center, inverse, ys, z[:m], ss, curved)
                hessian += curved[:m].T @ curved[:m]
                in_hessian += float(ss.sum())
            if self.direction is not None and self.steps and slab % self.line_every == 0:
                in_line += float(ss.sum())
                _scores(Xs, center, self.direction[0, :d] * inverse, self.direction[0, d], c)
                for k, t in enumerate(self.steps):
                    line[k] += _losses(code, param, ys, z[:m] + t * c[:m], ss)
        rising[:d] *= inverse
        falling[:d] *= inverse
        rising[d], falling[d] = weights
        return LinearStats(
            float(X.shape[0]), sums[0], sums[1], sums[2], rising, falling, weights[0], weights[1],
            sums[3], sums[4], largest + 1.0, line, in_line, hessian, in_hessian,
        )  # fmt: skip

    def _many_outputs(self, X: np.ndarray, y: np.ndarray, s: np.ndarray) -> LinearStats:
        loss = self.loss
        assert isinstance(loss, Multinomial)
        center, inverse = self.coordinates.center, 1.0 / self.coordinates.scale
        d, K = X.shape[1], self.theta.shape[0]
        P = K * (d + 1)
        # Beside a Hessian, float64 scores and gradients cost nothing, and certificates need them.
        exact = self.exact or self.hessian_dtype is not None
        dtype = np.dtype(np.float64) if exact else X.dtype
        T, (Z, A, G) = apart((SLAB, d + 1), dtype), scratch(K, d + 1, dtype)
        gradient, line, sums = np.zeros((K, d + 1)), np.zeros(len(self.steps)), np.zeros(3)
        theta = padded(self.theta, dtype)
        along = theta if self.direction is None else padded(self.direction, dtype)
        steps = np.array(self.steps)
        largest = softmax_rows(
            X, y, s, center, inverse, theta, along, steps, self.line_every, T, Z, A, G, gradient,
            line, sums,
        )  # fmt: skip
        hessian, in_hessian = None, 0.0
        if self.hessian_dtype is not None:
            hessian, in_hessian = self._softmax_hessian(loss, X, s)
        zero = np.zeros(P)
        return LinearStats(
            float(X.shape[0]), float(s.sum()), sums[0], sums[1], gradient.ravel(), zero, 0.0, 0.0,
            0.0, 0.0, largest, line, sums[2], hessian, in_hessian,
        )  # fmt: skip

    def _softmax_hessian(
        self, loss: Multinomial, X: np.ndarray, s: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Sum of weight * Hessian over some slabs, shape (P, P), and those rows' weight."""
        center, inverse = self.coordinates.center, 1.0 / self.coordinates.scale
        d, K = X.shape[1], self.theta.shape[0]
        P = K * (d + 1)
        hessian, weight = np.zeros((K, d + 1, K, d + 1)), 0.0
        T, wide = np.empty((SLAB_ROWS, d + 1)), np.empty((SLAB_ROWS, K, d + 1), self.hessian_dtype)
        for start in range(0, X.shape[0], SLAB_ROWS * self.hessian_every):
            Xs, ss = X[start : start + SLAB_ROWS], s[start : start + SLAB_ROWS]
            m = Xs.shape[0]
            weight += float(ss.sum())
            standardise(Xs, 0, m, center, inverse, T)
            p = loss.probabilities(T[:m] @ self.theta.T)
            np.multiply((np.sqrt(ss)[:, None] * p)[:, :, None], T[:m, None, :], out=wide[:m])
            flat = wide[:m].reshape(m, P)
            product = (flat.T @ flat).reshape(K, d + 1, K, d + 1)
            for k in range(K):  # p (1 - p), not p - p^2, which cancels where p is near 1
                r = np.sqrt(ss * p[:, k] * (1.0 - p[:, k]))[:, None] * T[:m]
                r = r.astype(self.hessian_dtype, copy=False)
                product[k, :, k, :] = -(r.T @ r)
            hessian -= product
        return hessian.reshape(P, P), weight
