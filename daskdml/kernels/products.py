"""Products of rows with few outputs, and softmax statistics fused with them, slab by slab.

A general matrix product is built for matrices that are large both ways; with ten outputs it spends
most of its time on packing the rows. Here a few rows and two outputs at a time share their loads,
and a slab of standardised rows stays in cache from its scores to its gradient.
"""

from __future__ import annotations

import numpy as np

from daskdml.kernels.apart import MARGIN
from daskdml.kernels.compiled import REDUCTIONS, inlined, kernel
from daskdml.kernels.losses import curvature, softmax

SLAB = 64  # rows that stay in cache between their scores and their gradient; a multiple of 8


def apart(shape: tuple[int, int], dtype: np.dtype | type) -> np.ndarray:
    """Zeros with a margin around them, as `copy_apart` has it."""
    size = shape[0] * shape[1]
    return np.zeros(size + 2 * MARGIN, dtype)[MARGIN : MARGIN + size].reshape(shape)


def even(K: int) -> int:
    """The even number of outputs that the compiled products take for K."""
    return K + K % 2


def scratch(K: int, D: int, dtype: np.dtype | type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the compiled products of a slab's D columns write to: Z and A (SLAB, K) and G (K, D)."""
    of_rows = (SLAB, even(K))
    return apart(of_rows, dtype), apart(of_rows, dtype), apart((even(K), D), dtype)


def padded(theta: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Parameters (K, d + 1) in a dtype, with an output of zeros where K is odd."""
    out = apart((even(len(theta)), theta.shape[1]), dtype)
    out[: len(theta)] = theta
    return out


@inlined(fastmath=REDUCTIONS)
def _scores(T: np.ndarray, W: np.ndarray, Z: np.ndarray) -> None:
    """Z = T @ W.T for a multiple of 4 rows and an even number of outputs, in T's dtype."""
    zero = T[0, 0] * 0
    for i in range(0, T.shape[0], 4):
        for k in range(0, W.shape[0], 2):
            a00, a01, a10, a11 = zero, zero, zero, zero
            a20, a21, a30, a31 = zero, zero, zero, zero
            for j in range(T.shape[1]):
                w0, w1 = W[k, j], W[k + 1, j]
                t0, t1, t2, t3 = T[i, j], T[i + 1, j], T[i + 2, j], T[i + 3, j]
                a00 += t0 * w0
                a01 += t0 * w1
                a10 += t1 * w0
                a11 += t1 * w1
                a20 += t2 * w0
                a21 += t2 * w1
                a30 += t3 * w0
                a31 += t3 * w1
            Z[i, k], Z[i, k + 1], Z[i + 1, k], Z[i + 1, k + 1] = a00, a01, a10, a11
            Z[i + 2, k], Z[i + 2, k + 1], Z[i + 3, k], Z[i + 3, k + 1] = a20, a21, a30, a31


@inlined(fastmath=REDUCTIONS)
def _add_products(C: np.ndarray, T: np.ndarray, G: np.ndarray) -> None:
    """G += C.T @ T for a multiple of 8 rows and an even number of outputs, in T's dtype."""
    for i in range(0, T.shape[0], 8):
        for k in range(0, G.shape[0], 2):
            a0, a1, a2, a3 = C[i, k], C[i + 1, k], C[i + 2, k], C[i + 3, k]
            a4, a5, a6, a7 = C[i + 4, k], C[i + 5, k], C[i + 6, k], C[i + 7, k]
            b0, b1, b2, b3 = C[i, k + 1], C[i + 1, k + 1], C[i + 2, k + 1], C[i + 3, k + 1]
            b4, b5, b6, b7 = C[i + 4, k + 1], C[i + 5, k + 1], C[i + 6, k + 1], C[i + 7, k + 1]
            for j in range(T.shape[1]):
                t0, t1, t2, t3 = T[i, j], T[i + 1, j], T[i + 2, j], T[i + 3, j]
                t4, t5, t6, t7 = T[i + 4, j], T[i + 5, j], T[i + 6, j], T[i + 7, j]
                G[k, j] += (
                    a0 * t0 + a1 * t1 + a2 * t2 + a3 * t3 + a4 * t4 + a5 * t5 + a6 * t6 + a7 * t7
                )
                G[k + 1, j] += (
                    b0 * t0 + b1 * t1 + b2 * t2 + b3 * t3 + b4 * t4 + b5 * t5 + b6 * t6 + b7 * t7
                )


@inlined()
def _flush(G: np.ndarray, total: np.ndarray) -> None:
    """Move a slab's products to their float64 sums."""
    for k in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[k, j] += G[k, j]
    G[:] = 0


@inlined(fastmath=REDUCTIONS)
def standardise(X, start, stop, center, inverse, T):  # type: ignore[no-untyped-def]
    """T[:stop - start] = ((x - center) * inverse, 1); returns the largest squared norm of a row."""
    largest, d = 0.0, X.shape[1]
    for i in range(start, stop):
        q = 0.0
        for j in range(d):
            t = (np.float64(X[i, j]) - center[j]) * inverse[j]
            T[i - start, j] = t
            q += t * t
        T[i - start, d] = 1.0
        largest = max(largest, q + 1.0)
    return largest


@kernel()
def softmax_rows(  # type: ignore[no-untyped-def]
    X, y, s, center, inverse, W, along, steps, every, T, Z, A, G, gradient, line, sums
):
    """Loss, gradient, line and norms of rows X for the coefficients W, in T's dtype.

    The line is taken over every so many slabs. `T` (SLAB, d + 1), `Z`, `A` (SLAB, even(K)) and `G`
    (even(K), d + 1) are scratch; `gradient` (K, d + 1), `line` and sums (of losses, of absolute
    slopes, of the line's weights) are float64 and added to. Returns the largest squared norm of a
    row.
    """
    K = gradient.shape[0]
    z, p = np.empty(K), np.empty(K)
    largest = 0.0
    for start in range(0, X.shape[0], SLAB):
        stop = min(start + SLAB, X.shape[0])
        m = stop - start
        T[m:] = 0
        A[m:] = 0
        largest = max(largest, standardise(X, start, stop, center, inverse, T))
        _scores(T, W, Z)
        for i in range(m):
            for k in range(K):
                z[k] = Z[i, k]
            si, yi = s[start + i], y[start + i]
            sums[0] += si * (softmax(z, p) - z[yi])
            p[yi] -= 1.0
            for k in range(K):
                sums[1] += si * abs(p[k])
                A[i, k] = si * p[k]
        _add_products(A, T, G)
        _flush(G, gradient)
        if line.size > 0 and start % (SLAB * every) == 0:
            # The slopes' places take the scores along the direction.
            _scores(T, along, A)
            for i in range(m):
                sums[2] += s[start + i]
                for at in range(line.size):
                    for k in range(K):
                        z[k] = np.float64(Z[i, k]) + steps[at] * A[i, k]
                    line[at] += s[start + i] * (softmax(z, p) - z[y[start + i]])
    return largest


@kernel()
def curved_rows(code, param, X, y, s, center, inverse, W, V, T, Z, A, G, total, mean):  # type: ignore[no-untyped-def]
    """total += sum over rows of s * C u t' with u = V t and C the curvature of the row's loss.

    C is ``diag(p) - p p'`` for more than one output, else that of the loss called `code`; the sum
    of s * diag(C) is added to `mean` (K,). Scratch is as in `softmax_rows`.
    """
    K = total.shape[0]
    z, p = np.empty(K), np.empty(K)
    for start in range(0, X.shape[0], SLAB):
        stop = min(start + SLAB, X.shape[0])
        m = stop - start
        T[m:] = 0
        standardise(X, start, stop, center, inverse, T)
        _scores(T, W, Z)
        _scores(T, V, A)
        for i in range(m):
            si = s[start + i]
            if K == 1:
                c = si * curvature(code, param, y[start + i], np.float64(Z[i, 0]))
                mean[0] += c
                A[i, 0] *= c
                continue
            for k in range(K):
                z[k] = Z[i, k]
            softmax(z, p)
            u = 0.0
            for k in range(K):
                u += p[k] * A[i, k]
            for k in range(K):
                mean[k] += si * p[k] * (1.0 - p[k])
                A[i, k] = si * p[k] * (A[i, k] - u)
        A[m:] = 0
        _add_products(A, T, G)
        _flush(G, total)
