"""Factors of rating blocks: normal equations of rows, their solutions, sweeps of SGD, predictions.

A row of factors is ``(w_1 ... w_k, b)``: factors, and the bias, which stays 0 where the model has
none; SGD keeps more behind them. Prediction of user u for item i: ``mean + b_u + b_i + w_u . w_i``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdml.kernels.compiled import inlined, kernel
from daskdml.kernels.lanes import LANES, add, fma, fnma, load, mul, rsqrt, splat, store
from daskdml.kernels.prefetch import AHEAD, prefetch_row

_CHUNK_BYTES = 16_384  # of the factors that are gathered to form a row's matrix
_GATHER = 1024  # ratings of a row whose factors conjugate gradients keep side by side
_BATCH_BYTES = 1 << 20  # of normal matrices at work at a time: they stay in the second-level cache


@dataclass(frozen=True)
class Normals:
    """Normal equations of some rows: ``A[r] x = b[r]``, lower triangles, without the penalty.

    Parameters
    ----------
    A : ndarray of shape (n, width, width)
        The first m rows and columns are those of the m unknowns.
    b : ndarray of shape (n, width)
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
        width = padded(m)
        A, b = np.zeros((n, width, width), dtype), np.zeros((n, width), dtype)
        return cls(A, b, np.zeros(n), np.zeros(n, np.int64))

    def begin(self, n: int, base: np.ndarray | None = None) -> Normals:
        """The first n equations, formed anew; `base` (k, k) is what each matrix begins with."""
        of = Normals(self.A[:n], self.b[:n], self.const[:n], self.count[:n])
        for array in (of.A, of.b, of.const, of.count):
            array[:] = 0
        if base is not None:
            of.A[:, : len(base), : len(base)] = base
        return of


def padded(m: int) -> int:
    """The next multiple of the lanes.

    Examples
    --------
    >>> padded(33), padded(40)
    (40, 40)
    """
    return -(-m // LANES) * LANES


def normals_nbytes(m: int, itemsize: int) -> int:
    """Bytes of one row's equation."""
    return (padded(m) + 1) * padded(m) * itemsize + 16


def batch_rows(m: int, itemsize: int) -> int:
    """Rows whose equations are formed together: whole groups of lanes."""
    return padded(max(1, _BATCH_BYTES // normals_nbytes(m, itemsize)))


@kernel(fastmath=True)
def add_ratings(  # type: ignore[no-untyped-def]
    A, b, const, count, indptr, indices, values, V, mean, alpha, implicit, biases
):
    """Add ratings to the equations of their rows, given the other side's rows V.

    Explicit feedback: the target ``t = r - mean - b_i``, with the features ``(w_i, 1)`` or ``w_i``.
    Implicit feedback: the target 1 with confidence ``1 + alpha r``, of which the 1 is in every
    row's base already.

    The factors of some ratings at a time are gathered, so that they lie in the first-level cache
    while the matrix is formed: eight times eight of its numbers stay in registers for all of them
    (40 nanoseconds a rating at rank 32, of which 18 for the matrix and 15 for the gathering).
    """
    k = V.shape[1] - 1
    width = -(-k // LANES) * LANES
    chunk = max(16, _CHUNK_BYTES // (width * A.itemsize))
    F, T = np.zeros((chunk, width), A.dtype), np.zeros(chunk, A.dtype)
    G = np.zeros((chunk if implicit else 1, width), A.dtype)
    for row in range(len(b)):
        lo, hi = indptr[row], indptr[row + 1]
        count[row] += hi - lo
        M, total, targets = A[row], 0.0, mean * 0
        for begin in range(lo, hi, chunk):
            n = min(chunk, hi - begin)
            for at in range(n):
                if begin + at + AHEAD < hi:
                    prefetch_row(V, indices[begin + at + AHEAD])
                v, r = V[indices[begin + at]], values[begin + at]
                if implicit:
                    w = alpha * r
                    t = 1 + w
                    total += np.float64(t)
                    for a in range(k):
                        F[at, a] = v[a]
                        G[at, a] = w * v[a]
                else:
                    t = r - mean - v[k]
                    total += np.float64(t) * np.float64(t)
                    for a in range(k):
                        F[at, a] = v[a]
                T[at] = t
                targets += t
            for d in range(0, width, LANES):
                s = load(b, row, d)
                for at in range(n):
                    s = fma(splat(T[at]), load(F, at, d), s)
                store(b, row, d, s)
                if biases:
                    s = load(M, k, d)
                    for at in range(n):
                        s = add(s, load(F, at, d))
                    store(M, k, d, s)
            for a in range(0, width, LANES):
                for d in range(0, a + LANES, LANES):
                    _add_tile(M, G if implicit else F, F, n, a, d)
        const[row] += total
        if biases:
            b[row, k] += targets
            M[k, k] += hi - lo


@inlined(fastmath=True)
def _add_tile(A, G, F, n, a, d):  # type: ignore[no-untyped-def]
    """Add the outer products of n rows g and f to a tile of 8 x 8 numbers, from row a, column d."""
    s0, s1, s2, s3 = load(A, a, d), load(A, a + 1, d), load(A, a + 2, d), load(A, a + 3, d)
    s4, s5, s6, s7 = load(A, a + 4, d), load(A, a + 5, d), load(A, a + 6, d), load(A, a + 7, d)
    for at in range(n):
        f = load(F, at, d)
        s0 = fma(splat(G[at, a]), f, s0)
        s1 = fma(splat(G[at, a + 1]), f, s1)
        s2 = fma(splat(G[at, a + 2]), f, s2)
        s3 = fma(splat(G[at, a + 3]), f, s3)
        s4 = fma(splat(G[at, a + 4]), f, s4)
        s5 = fma(splat(G[at, a + 5]), f, s5)
        s6 = fma(splat(G[at, a + 6]), f, s6)
        s7 = fma(splat(G[at, a + 7]), f, s7)
    store(A, a, d, s0)
    store(A, a + 1, d, s1)
    store(A, a + 2, d, s2)
    store(A, a + 3, d, s3)
    store(A, a + 4, d, s4)
    store(A, a + 5, d, s5)
    store(A, a + 6, d, s6)
    store(A, a + 7, d, s7)


@kernel(fastmath=True)
def solve_rows(A, b, count, reg, power, m, X, found):  # type: ignore[no-untyped-def]
    """Solve ``(A + reg I) x = b`` for each row, from its old x in X, which is overwritten.

    `found` (3, n) gets, in float64, the squared norm of each row's gradient at the old x; at the
    new one ``x' A x - 2 b x + reg |x|^2``, and its last term alone. `reg` counts
    ``count ** power`` times. Rows without ratings become 0.

    Eight rows go through Cholesky's method together, each in its lane: loops over the unknowns of
    one row are too short to fill vector registers (0.9 instead of 3.3 microseconds a row of 33).
    """
    n = len(b)
    L, lam = np.zeros((m * (m + 1) // 2, LANES), X.dtype), np.zeros(LANES, X.dtype)
    old, r = np.zeros((m, LANES), X.dtype), np.zeros((m, LANES), X.dtype)
    x = np.zeros((m, LANES), X.dtype)
    for first in range(0, n, LANES):
        here = min(LANES, n - first)
        for lane in range(LANES):
            row = first + lane if lane < here else first
            lam[lane] = reg * np.float64(count[row]) ** power
            if count[row] == 0:
                lam[lane] = 1
            for a in range(m):
                start = a * (a + 1) // 2
                for d in range(a + 1):
                    L[start + d, lane] = A[row, a, d]
                L[start + a, lane] += lam[lane]
                old[a, lane] = X[row, a]
                r[a, lane] = b[row, a]
        _residual_lanes(L, old, r, m)
        _cholesky_lanes(L, m)
        _substitute_lanes(L, r, x, m)
        for lane in range(here):
            row = first + lane
            if count[row] == 0:
                X[row, :m] = 0
                found[:, row] = 0
                continue
            gradient, value, square = 0.0, 0.0, 0.0
            for a in range(m):
                new, left = np.float64(old[a, lane] + x[a, lane]), np.float64(r[a, lane])
                gradient += 4 * left * left
                value -= np.float64(b[row, a]) * new
                square += new * new
                X[row, a] = new
            found[0, row], found[1, row] = gradient, value
            found[2, row] = lam[lane] * square


@inlined(fastmath=True)
def _residual_lanes(L, x, r, m):  # type: ignore[no-untyped-def]
    """``r - A x`` in the place of r; A is in L, a lower triangle row by row."""
    for a in range(m):
        start = a * (a + 1) // 2
        here, s = load(x, a, 0), load(r, a, 0)
        for d in range(a):
            c = load(L, start + d, 0)
            s = fnma(c, load(x, d, 0), s)
            store(r, d, 0, fnma(c, here, load(r, d, 0)))
        store(r, a, 0, fnma(load(L, start + a, 0), here, s))


@inlined(fastmath=True)
def _cholesky_lanes(L, m):  # type: ignore[no-untyped-def]
    """Factor A in its place, column by column; the diagonal gets the inverse of the factor's.

    Four rows at a time, so that no sum waits for another one.
    """
    for i in range(m):
        top = i * (i + 1) // 2
        s = load(L, top + i, 0)
        for t in range(i):
            c = load(L, top + t, 0)
            s = fnma(c, c, s)
        inverse = rsqrt(s)
        store(L, top + i, 0, inverse)
        j = i + 1
        while j + 4 <= m:
            p0 = j * (j + 1) // 2
            p1 = p0 + j + 1
            p2 = p1 + j + 2
            p3 = p2 + j + 3
            s0, s1 = load(L, p0 + i, 0), load(L, p1 + i, 0)
            s2, s3 = load(L, p2 + i, 0), load(L, p3 + i, 0)
            for t in range(i):
                c = load(L, top + t, 0)
                s0, s1 = fnma(c, load(L, p0 + t, 0), s0), fnma(c, load(L, p1 + t, 0), s1)
                s2, s3 = fnma(c, load(L, p2 + t, 0), s2), fnma(c, load(L, p3 + t, 0), s3)
            store(L, p0 + i, 0, mul(s0, inverse))
            store(L, p1 + i, 0, mul(s1, inverse))
            store(L, p2 + i, 0, mul(s2, inverse))
            store(L, p3 + i, 0, mul(s3, inverse))
            j += 4
        for row in range(j, m):
            start = row * (row + 1) // 2
            s = load(L, start + i, 0)
            for t in range(i):
                s = fnma(load(L, top + t, 0), load(L, start + t, 0), s)
            store(L, start + i, 0, mul(s, inverse))


@inlined(fastmath=True)
def _substitute_lanes(L, b, x, m):  # type: ignore[no-untyped-def]
    """Solve ``L L' x = b``."""
    for j in range(m):
        start = j * (j + 1) // 2
        s = load(b, j, 0)
        for t in range(j):
            s = fnma(load(L, start + t, 0), load(x, t, 0), s)
        store(x, j, 0, mul(s, load(L, start + j, 0)))
    for j in range(m - 1, -1, -1):
        start = j * (j + 1) // 2
        s = mul(load(x, j, 0), load(L, start + j, 0))
        store(x, j, 0, s)
        for t in range(j):
            store(x, t, 0, fnma(s, load(L, start + t, 0), load(x, t, 0)))


@kernel(fastmath=True)
def descend_rows(A, b, count, reg, power, k, m, X, found):  # type: ignore[no-untyped-def]
    """As `solve_rows`, where the first k of m unknowns may not be negative."""
    x, old = np.empty(m, X.dtype), np.empty(m, X.dtype)
    for row in range(len(b)):
        if count[row] == 0:
            X[row, :m] = 0
            found[:, row] = 0
            continue
        lam = reg * np.float64(count[row]) ** power
        M = A[row]
        for a in range(m):
            M[a, a] += X.dtype.type(lam)
            old[a] = X[row, a]
        found[0, row] = _descend(M, b[row], old, x, m, k, 1000)
        value, square = 0.0, 0.0
        for a in range(m):
            value -= np.float64(b[row, a]) * np.float64(x[a])
            square += np.float64(x[a]) * np.float64(x[a])
            X[row, a] = x[a]
        found[1, row], found[2, row] = value, lam * square


@inlined(fastmath=True)
def _descend(M, b, old, x, m, k, sweeps):  # type: ignore[no-untyped-def]
    """Minimise ``x' M x / 2 - b x`` over x whose first k are not negative, by coordinates.

    From the old x, until a sweep over the coordinates changes nothing that counts. Gives the
    squared norm of the gradient ``2 (M x - b)`` at the old x, projected on what x may do.
    """
    gradient = 0.0
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
        if not (a < k and x[a] <= 0 and s > 0):
            gradient += 4.0 * np.float64(s) * np.float64(s)
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
    return gradient


@kernel(fastmath=True)
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


@inlined(fastmath=True)
def _times(base, x, lam, out, k):  # type: ignore[no-untyped-def]
    """``(base + lam I) x`` of a symmetric matrix."""
    for a in range(k):
        out[a] = lam * x[a]
    for a in range(k):
        row, c = base[a], x[a]
        for d in range(k):
            out[d] += c * row[d]


@kernel(fastmath=True)
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


@kernel(fastmath=True)
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
