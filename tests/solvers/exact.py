"""Objectives and optima in 60 decimal digits: what certificates are held against."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

DIGITS = 60


def decimals(a: Any) -> np.ndarray:
    """Give an array of floats as exact decimals."""
    a = np.asarray(a, dtype=np.float64)
    out = np.empty(a.shape, dtype=object)
    out.flat = [Decimal(float(v)) for v in a.flat]
    return out


def _exp(z: np.ndarray) -> np.ndarray:
    out = np.empty(z.shape, dtype=object)
    out.flat = [v.exp() for v in z.flat]
    return out


def _solve(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Solve ``A x = b`` for a semidefinite A by elimination; x is 0 where A is flat."""
    A, b, n = A.copy(), b.copy(), len(b)
    flat = np.diag(A) * Decimal(10) ** -30
    live = np.zeros(n, dtype=bool)
    for k in range(n):
        live[k] = A[k, k] > flat[k]
        if live[k]:
            factors = A[k + 1 :, k] / A[k, k]
            A[k + 1 :, k:] -= factors[:, None] * A[k, k:]
            b[k + 1 :] -= factors * b[k]
    x = decimals(np.zeros(n))
    for k in reversed(np.flatnonzero(live)):
        x[k] = (b[k] - (A[k, k + 1 :] * x[k + 1 :]).sum()) / A[k, k]
    return x


@dataclass
class Exact:
    """``(1/S) sum_i s_i loss(y_i, x_i . w + b) + (l2/2) |w|^2`` of float data, in decimals.

    `kind` is "squared", "logistic" (y in -1, 1) or "multinomial" (y in 0..K-1).
    """

    kind: str
    X: np.ndarray
    y: np.ndarray
    s: np.ndarray
    l2: float
    fit_intercept: bool = True

    def __post_init__(self) -> None:
        with localcontext() as context:
            context.prec = DIGITS
            n = len(self.X)
            self.K = int(self.y.max()) + 1 if self.kind == "multinomial" else 1
            self.T = np.column_stack([decimals(self.X), decimals(np.ones(n))])
            self.t = decimals(self.y)
            s = decimals(self.s)
            self.p = s / s.sum()
            pen = decimals(np.full(self.T.shape[1], 1.0)) * Decimal(self.l2)
            pen[-1] = Decimal(0)
            self.pen = np.tile(pen, self.K)

    def _loss(self, theta: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        """f's loss, slopes (n, K) and curvatures (n, K, K)."""
        z = self.T @ theta.reshape(self.K, -1).T
        n, one = len(z), Decimal(1)
        if self.kind == "squared":
            r = z[:, 0] - self.t
            return (self.p * r * r).sum() / 2, r[:, None], decimals(np.ones((n, 1, 1)))
        if self.kind == "logistic":
            m = z[:, 0] * self.t
            e = _exp(-abs(m))
            log = np.array([(one + v).ln() for v in e], dtype=object)
            q = np.where(m > 0, e, one) / (one + e)  # 1 / (1 + exp(m))
            loss = (self.p * (log + np.where(m > 0, Decimal(0), -m))).sum()
            return loss, (-self.t * q)[:, None], (q * (one - q))[:, None, None]
        top = z.max(axis=1)
        e = _exp(z - top[:, None])
        total = e.sum(axis=1)
        q = e / total[:, None]
        log = top + np.array([v.ln() for v in total], dtype=object)
        label = self.y.astype(int)
        loss = (self.p * (log - z[np.arange(n), label])).sum()
        slope = q.copy()
        slope[np.arange(n), label] -= one
        curve = -q[:, :, None] * q[:, None, :]
        curve[:, np.arange(self.K), np.arange(self.K)] += q
        return loss, slope, curve

    def value(self, theta: np.ndarray) -> Decimal:
        """f at float or decimal parameters, shape (K, d + 1), the intercept last."""
        with localcontext() as context:
            context.prec = DIGITS
            theta = theta if theta.dtype == object else decimals(theta)
            return self._loss(theta.ravel())[0] + (self.pen * theta.ravel() ** 2).sum() / 2

    def standard(self) -> tuple[Exact, np.ndarray]:
        """The same objective in features of unit size (about their mean, with an intercept).

        Returns
        -------
        same : Exact
        back : ndarray of shape (d + 1, d + 1)
            ``T = T of same @ back``.
        """
        with localcontext() as context:
            context.prec = DIGITS
            n, D = self.T.shape
            back = decimals(np.eye(D))
            T = self.T.copy()
            for j in range(D - 1):
                if self.fit_intercept:
                    back[-1, j] = T[:, j].sum() / n
                    T[:, j] = T[:, j] - back[-1, j]
                size = max(abs(v) for v in T[:, j])
                back[j, j] = size if size else Decimal(1)
                T[:, j] = T[:, j] / back[j, j]
            same = copy(self)
            same.T = T
            same.pen = self.pen / np.tile(np.diag(back) ** 2, self.K)
        return same, back

    def optimum(self, start: np.ndarray) -> Decimal:
        """f* by damped Newton steps from `start` (K, d + 1), to about 1e-40 of f."""
        same, back = self.standard()
        with localcontext() as context:
            context.prec = DIGITS
            return same._descend((decimals(start) @ back.T).ravel())

    def _hessian(self, curve: np.ndarray) -> np.ndarray:
        C, width = self.p[:, None, None] * curve, self.T.shape[1]
        H = np.empty((self.K, width, self.K, width), dtype=object)
        for a in range(self.K):
            for b in range(self.K):
                H[a, :, b, :] = (C[:, a, b, None] * self.T).T @ self.T
        H = H.reshape(len(self.pen), len(self.pen))
        H[np.diag_indices(len(H))] += self.pen
        return H

    def _descend(self, theta: np.ndarray) -> Decimal:
        width = self.T.shape[1]
        free = [i for i in range(len(theta)) if self.fit_intercept or i % width != width - 1]
        for _ in range(400):
            loss, slope, curve = self._loss(theta)
            f = loss + (self.pen * theta**2).sum() / 2
            g = ((self.p[:, None] * slope).T @ self.T).ravel() + self.pen * theta
            d = -_solve(self._hessian(curve)[np.ix_(free, free)], g[free])
            decrease = -(g[free] @ d)
            if decrease <= f * Decimal(10) ** -40:
                return f - decrease
            base, step = theta, Decimal(1)
            while True:
                theta = base.copy()
                theta[free] += step * d
                if self.value(theta) <= f - step * decrease / 10:
                    break
                step /= 2
        raise AssertionError("no optimum found in 400 steps")
