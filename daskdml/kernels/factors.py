"""Factors of rating blocks: normal equations of rows, their solutions, sweeps of SGD, predictions.

A row of factors is ``(w_1 ... w_k, b)``: factors, and the bias, which stays 0 where the model has
none; SGD keeps more behind them. Prediction of user u for item i: ``mean + b_u + b_i + w_u . w_i``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numba as nb
import numpy as np

from daskdml.kernels.prefetch import AHEAD, prefetch_row

# Divisions by zero give infinities, which the loop over sweeps reports; checks would cost a branch.
_compiled = partial(nb.njit, cache=True, nogil=True, fastmath=True, error_model="numpy")

_LANE = 8  # columns of a normal matrix that are computed together: one 256-bit register of float32
_GATHER = 1024  # ratings of a row whose factors conjugate gradients keep side by side
_BATCH_BYTES = 1 << 20  # of normal matrices at work at a time: they stay in the second-level cache


@dataclass(frozen=True)
class Normals:
    """Normal equations of some rows: ``A[r] x = b[r]``, lower triangles, without the penalty.

    Parameters
    ----------
    A : ndarray of shape (n, m, stride)
        ``m`` unknowns a row; the stride is padded.
    b : ndarray of shape (n, m)
    const : ndarray of shape (n,), float64
        Of the row's objective: ``x' A x - 2 b x + const``.
    count : ndarray of shape (n,), int64
        Ratings.
    """

    A: np.ndarray
    b: np.ndarray
    const: np.ndarray
    count: np.ndarray

    @classmethod
    def zeros(cls, n: int, m: int, dtype: np.dtype[Any]) -> Normals:
        """Equations of no ratings."""
        A, b = np.zeros((n, m, padded(m)), dtype), np.zeros((n, m), dtype)
        return cls(A, b, np.zeros(n), np.zeros(n, np.int64))

    def begin(self, n: int, base: np.ndarray | None = None) -> Normals:
        """The first n equations, formed anew; `base` (m, m) is what each matrix begins with."""
        of = Normals(self.A[:n], self.b[:n], self.const[:n], self.count[:n])
        for array in (of.A, of.b, of.const, of.count):
            array[:] = 0
        if base is not None:
            of.A[:, :, : len(base)] = base
        return of


def padded(m: int) -> int:
    """The next multiple of the lane width.

    Examples
    --------
    >>> padded(33), padded(40)
    (40, 40)
    """
    return -(-m // _LANE) * _LANE


def normals_nbytes(m: int, itemsize: int) -> int:
    """Bytes of one row's equation."""
    return (m * padded(m) + m) * itemsize + 16


def batch_rows(m: int, itemsize: int) -> int:
    """Rows whose equations are formed together."""
    return max(8, _BATCH_BYTES // normals_nbytes(m, itemsize))


@_compiled()
def add_explicit(A, b, const, count, indptr, indices, values, V, mean, biases):  # type: ignore[no-untyped-def]
    """Add ratings ``r - mean - b_i`` with the features ``(w_i, 1)`` of the other side's rows.

    Four ratings at a time: a row of A is loaded and stored once for four fused multiply-adds, which
    makes the loop bound by arithmetic instead of by the cache.
    """
    m, k, stride = b.shape[1], V.shape[1] - 1, A.shape[2]
    F = np.zeros((4, stride), A.dtype)
    for row in range(len(b)):
        lo, hi = indptr[row], indptr[row + 1]
        count[row] += hi - lo
        total = 0.0
        for at in range(lo, hi, 4):
            have = min(4, hi - at)
            for n in range(at + AHEAD, min(at + AHEAD + 4, hi)):
                prefetch_row(V, indices[n])
            for n in range(have):
                v = V[indices[at + n]]
                t = values[at + n] - mean
                if biases:
                    t -= v[k]
                    F[n, k] = 1
                    b[row, k] += t
                total += np.float64(t) * np.float64(t)
                for a in range(k):
                    F[n, a] = v[a]
                    b[row, a] += t * v[a]
            _rank(A[row], F, F, m, have)
        const[row] += total


@_compiled()
def add_implicit(A, b, const, count, indptr, indices, values, V, alpha):  # type: ignore[no-untyped-def]
    """Add confidences ``1 + alpha r``, of which the 1 is in every row's base already."""
    m, k, stride = b.shape[1], V.shape[1] - 1, A.shape[2]
    F, G = np.zeros((4, stride), A.dtype), np.zeros((4, stride), A.dtype)
    for row in range(len(b)):
        lo, hi = indptr[row], indptr[row + 1]
        count[row] += hi - lo
        for at in range(lo, hi, 4):
            have = min(4, hi - at)
            for n in range(at + AHEAD, min(at + AHEAD + 4, hi)):
                prefetch_row(V, indices[n])
            for n in range(have):
                v = V[indices[at + n]]
                w = alpha * values[at + n]
                const[row] += 1.0 + w
                for a in range(k):
                    F[n, a] = v[a]
                    G[n, a] = w * v[a]
                    b[row, a] += v[a] + w * v[a]
            _rank(A[row], G, F, m, have)


@_compiled(inline="always")
def _rank(A, G, F, m, have):  # type: ignore[no-untyped-def]
    """Add up to four outer products ``g f'`` to a lower triangle."""
    if have == 4:
        f0, f1, f2, f3 = F[0], F[1], F[2], F[3]
        for a in range(m):
            c0, c1, c2, c3 = G[0, a], G[1, a], G[2, a], G[3, a]
            row = A[a]
            for d in range((a // 8 + 1) * 8):
                row[d] += c0 * f0[d] + c1 * f1[d] + c2 * f2[d] + c3 * f3[d]
    else:
        for n in range(have):
            f = F[n]
            for a in range(m):
                c = G[n, a]
                row = A[a]
                for d in range((a // 8 + 1) * 8):
                    row[d] += c * f[d]


@_compiled()
def solve_rows(A, b, count, reg, power, n_nonnegative, X, found):  # type: ignore[no-untyped-def]
    """Solve ``(A + reg I) x = b`` for each row, from its old x in X, which is overwritten.

    `found` (3, n) gets, in float64, the squared norm of each row's gradient at the old x; at the
    new one ``x' A x - 2 b x + reg |x|^2``, and its last term alone. `reg` counts
    ``count ** power`` times. The first `n_nonnegative` unknowns may not be negative. Rows without
    ratings become 0.
    """
    n, m = b.shape
    x = np.empty(m, X.dtype)
    old = np.empty(m, X.dtype)
    for row in range(n):
        if count[row] == 0:
            X[row, :m] = 0
            found[:, row] = 0
            continue
        lam = reg * np.float64(count[row]) ** power
        M = A[row]
        for a in range(m):
            M[a, a] += X.dtype.type(lam)
            old[a] = X[row, a]
        found[0, row] = _gradient(M, b[row], old, m, n_nonnegative)
        if n_nonnegative:
            _descend(M, b[row], old, x, m, n_nonnegative, 1000)
        else:
            _cholesky(M, b[row], x, m)
        value, square = 0.0, 0.0
        for a in range(m):
            value -= np.float64(b[row, a]) * np.float64(x[a])
            square += np.float64(x[a]) * np.float64(x[a])
            X[row, a] = x[a]
        found[1, row], found[2, row] = value, lam * square


@_compiled()
def _gradient(M, b, x, m, n_nonnegative):  # type: ignore[no-untyped-def]
    """Squared norm of ``2 (M x - b)``, projected where x may not be negative."""
    total = 0.0
    for a in range(m):
        g = -b[a]
        for d in range(a + 1):
            g += M[a, d] * x[d]
        for d in range(a + 1, m):
            g += M[d, a] * x[d]
        if not (a < n_nonnegative and x[a] <= 0 and g > 0):
            total += 4.0 * np.float64(g) * np.float64(g)
    return total


@_compiled()
def _cholesky(M, b, x, m):  # type: ignore[no-untyped-def]
    """Solve ``M x = b`` by factoring the lower triangle of M in place."""
    for j in range(m):
        row = M[j]
        for i in range(j):
            other = M[i]
            s = row[i]
            for t in range(i):
                s -= row[t] * other[t]
            row[i] = s * other[i]  # the diagonal holds its inverse
        s = row[j]
        for t in range(j):
            s -= row[t] * row[t]
        row[j] = 1 / np.sqrt(s)
    for j in range(m):
        s = b[j]
        for t in range(j):
            s -= M[j, t] * x[t]
        x[j] = s * M[j, j]
    for j in range(m - 1, -1, -1):
        s = x[j] * M[j, j]
        x[j] = s
        for t in range(j):
            x[t] -= s * M[j, t]


@_compiled()
def _descend(M, b, old, x, m, k, sweeps):  # type: ignore[no-untyped-def]
    """Minimise ``x' M x / 2 - b x`` over x whose first k are not negative, by coordinates.

    From the old x, until a sweep over the coordinates changes nothing that counts.
    """
    g = np.empty(m, b.dtype)  # M x - b
    scale = x.dtype.type(0)
    for a in range(m):
        x[a] = max(old[a], x.dtype.type(0)) if a < k else old[a]
    for a in range(m):
        s = -b[a]
        for d in range(a + 1):
            s += M[a, d] * x[d]
        for d in range(a + 1, m):
            s += M[d, a] * x[d]
        g[a] = s
        scale = max(scale, abs(b[a]))
    tiny = scale * (1e-6 if x.itemsize == 4 else 1e-13)
    for _ in range(sweeps):
        most = x.dtype.type(0)
        for a in range(m):
            new = x[a] - g[a] / M[a, a]
            if a < k and new < 0:
                new = x.dtype.type(0)
            step = new - x[a]
            if step != 0:
                x[a] = new
                for d in range(a + 1):
                    g[d] += step * M[a, d]
                for d in range(a + 1, m):
                    g[d] += step * M[d, a]
                most = max(most, abs(step) * M[a, a])
        if most <= tiny:
            break


@_compiled()
def cg_implicit(  # type: ignore[no-untyped-def]
    indptr, indices, values, V, base, alpha, reg, power, steps, X, found, const
):
    """Conjugate gradient steps for rows of implicit feedback, from the old rows in X.

    For ``(base + sum (c - 1) v v' + reg I) x = sum c v`` with c = 1 + alpha r, no matrix is formed:
    a product takes two loops over each rating's factors. Those of a row's ratings are gathered once
    (up to `_GATHER` of them), so that the steps read them in order from the second-level cache:
    with more users than that cache holds, this halves the time of a sweep. `found` and `const` as
    in `solve_rows` and `Normals`.
    """
    k = V.shape[1] - 1
    b, r = np.empty(k, X.dtype), np.empty(k, X.dtype)
    p, q = np.empty(k, X.dtype), np.empty(k, X.dtype)
    F, W = np.empty((_GATHER, k), X.dtype), np.empty(_GATHER, X.dtype)
    zero = alpha * 0
    for row in range(len(indptr) - 1):
        lo, hi = indptr[row], indptr[row + 1]
        if lo == hi:
            X[row, :k] = 0
            found[:, row] = 0
            continue
        x = X[row]
        lam = X.dtype.type(reg * np.float64(hi - lo) ** power)
        gathered = hi - lo <= _GATHER
        _times(base, x, lam, r, k)
        b[:] = 0
        for at in range(lo, hi):
            if at + AHEAD < hi:
                prefetch_row(V, indices[at + AHEAD])
            v, w = V[indices[at]], alpha * values[at]
            const[row] += np.float64(zero + 1 + w)
            f = F[at - lo if gathered else 0]
            s = zero
            for a in range(k):
                f[a] = v[a]
                s += v[a] * x[a]
            s *= w
            for a in range(k):
                r[a] += s * f[a]
                b[a] += (1 + w) * f[a]
            if gathered:
                W[at - lo] = w
        rr = zero
        for a in range(k):
            r[a] = b[a] - r[a]
            p[a] = r[a]
            rr += r[a] * r[a]
        found[0, row] = 4.0 * np.float64(rr)
        enough = rr * (1e-12 if X.itemsize == 4 else 1e-28)
        for _ in range(steps):
            if rr <= enough:
                break
            _times(base, p, lam, q, k)
            if gathered:
                for n in range(hi - lo):
                    f, s = F[n], zero
                    for a in range(k):
                        s += f[a] * p[a]
                    s *= W[n]
                    for a in range(k):
                        q[a] += s * f[a]
            else:
                for at in range(lo, hi):
                    if at + AHEAD < hi:
                        prefetch_row(V, indices[at + AHEAD])
                    v, s = V[indices[at]], zero
                    for a in range(k):
                        s += v[a] * p[a]
                    s *= alpha * values[at]
                    for a in range(k):
                        q[a] += s * v[a]
            pq = zero
            for a in range(k):
                pq += p[a] * q[a]
            step = rr / pq
            before, rr = rr, zero
            for a in range(k):
                x[a] += step * p[a]
                r[a] -= step * q[a]
                rr += r[a] * r[a]
            for a in range(k):
                p[a] = r[a] + rr / before * p[a]
        value, square = 0.0, 0.0
        for a in range(k):
            value -= np.float64(x[a]) * np.float64(b[a] + r[a])
            square += np.float64(x[a]) * np.float64(x[a])
        found[1, row], found[2, row] = value, lam * square


@_compiled()
def _times(base, x, lam, out, k):  # type: ignore[no-untyped-def]
    """``(base + lam I) x`` of a symmetric matrix."""
    for a in range(k):
        out[a] = lam * x[a]
    for a in range(k):
        row, c = base[a], x[a]
        for d in range(k):
            out[d] += c * row[d]


@_compiled()
def sgd_block(  # type: ignore[no-untyped-def]
    indptr, indices, values, order, U, V, k, mean, rate, reg, biases, nonnegative
):
    """Stochastic gradient steps for the ratings of a block, its rows in the order given.

    Rows are ``(w_1 ... w_k, b, G, H, c)``: G and H are the sums of the mean squared gradients of
    the factors and of squared gradients of the bias, by whose roots the rate is divided; ``reg c``
    is the penalty that each rating counts. Gives the sum of squared errors, each before its step.

    The gradient's square is reckoned from ``u . v``, ``|u|^2`` and ``|v|^2``, which one loop sums:
    so each rating takes two loops over the factors, which fast math puts into vector registers.
    The rows of one user stay in the first-level cache for all its ratings.
    """
    total = 0.0
    zero, one, share = rate * 0, rate / rate, rate / rate / k
    for n in range(len(order)):
        row = order[n]
        u = U[row]
        for at in range(indptr[row], indptr[row + 1]):
            v = V[indices[at]]
            uv, uu, vv = zero, zero, zero
            for a in range(k):
                uv += u[a] * v[a]
                uu += u[a] * u[a]
                vv += v[a] * v[a]
            e = values[at] - mean - uv
            if biases:
                e -= u[k] + v[k]
            total += np.float64(e) * np.float64(e)
            lu, lv = reg * u[k + 3], reg * v[k + 3]
            su, sv = rate / np.sqrt(u[k + 1]), rate / np.sqrt(v[k + 1])
            u[k + 1] += share * (e * e * vv - 2 * e * lu * uv + lu * lu * uu)
            v[k + 1] += share * (e * e * uu - 2 * e * lv * uv + lv * lv * vv)
            keep_u, keep_v = one - su * lu, one - sv * lv
            su, sv = su * e, sv * e
            for a in range(k):
                old = u[a]
                u[a] = keep_u * old + su * v[a]
                v[a] = keep_v * v[a] + sv * old
            if nonnegative:
                for a in range(k):
                    u[a] = max(u[a], zero)
                    v[a] = max(v[a], zero)
            if biases:
                gu, gv = e - lu * u[k], e - lv * v[k]
                u[k] += rate / np.sqrt(u[k + 2]) * gu
                v[k] += rate / np.sqrt(v[k + 2]) * gv
                u[k + 2] += gu * gu
                v[k + 2] += gv * gv
    return total


@_compiled()
def predict_block(indptr, indices, U, V, k, mean, out):  # type: ignore[no-untyped-def]
    """Predictions for the pairs of a block."""
    for row in range(len(indptr) - 1):
        u = U[row]
        for at in range(indptr[row], indptr[row + 1]):
            v = V[indices[at]]
            s = mean + u[k] + v[k]
            for a in range(k):
                s += u[a] * v[a]
            out[at] = s
