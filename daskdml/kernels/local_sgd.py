"""Local SGD for the warm start of logistic regression: one pass, no step size to tune.

Rows are standardised as they are read, so that one step size suits every column, and each step is
the first-order form of an implicit one [1]_, ``eta / (1 + eta * curvature * |x|^2)``: however long
a row is, it cannot throw the iterate out. The step size falls as ``1 / sqrt(t)`` and the iterates
are averaged [2]_; the average and the penalty have their turn every few rows.

References
----------
.. [1] P. Toulis, E. M. Airoldi, "Asymptotic and finite-sample properties of estimators based on
   stochastic gradients", Annals of Statistics 45(4), 2017.
.. [2] B. T. Polyak, A. B. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM
   Journal on Control and Optimization 30(4), 1992.
"""

from __future__ import annotations

import math

import numpy as np

from daskdml.kernels.apart import MARGIN, copy_apart
from daskdml.kernels.compiled import REDUCTIONS, inlined, kernel
from daskdml.kernels.losses import softmax
from daskdml.kernels.prefetch import AHEAD, prefetch_row
from daskdml.kernels.visits import visits

STRIDE = 16  # rows of one step size; then the penalty and the average have their turn
STEP = 2.0  # first step, in units of 1 / (squared norm of a usual row * largest curvature)
SETTLE = 10.0  # rows for every column until the step size has fallen by sqrt(2)


def logistic_sgd_block(
    w: np.ndarray,
    X: np.ndarray,
    y: np.ndarray,
    center: np.ndarray,
    inv_scale: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    order: np.ndarray | None = None,
    l2: float = 0.0,
    fit_intercept: bool = True,
    rows_before: int = 0,
    average_from: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One sweep of averaged SGD for binary logistic regression over a block.

    As `softmax_sgd_block`, for two classes and one vector of coefficients.

    Parameters
    ----------
    w : ndarray of shape (d + 1,), float64
        Where to start: coefficients of the standardised columns, then the intercept.
    X, y, center, inv_scale, sample_weight, order, l2, fit_intercept, rows_before, average_from
        As in `softmax_sgd_block`; `y` is 0 or 1.

    Returns
    -------
    last, mean : ndarray of shape (d + 1,), float64
        The last iterate and the mean of the iterates.

    Raises
    ------
    ValueError
        If shapes do not agree.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[3.0], [1.0], [3.5], [0.5]])
    >>> y = np.array([1, 0, 1, 0])
    >>> last, mean = logistic_sgd_block(np.zeros(2), X, y, np.array([2.0]), np.array([0.8]))
    >>> bool(mean[0] > 0)
    True
    """
    last, mean = softmax_sgd_block(
        w[None, :],
        X,
        y,
        center,
        inv_scale,
        sample_weight=sample_weight,
        order=order,
        l2=l2,
        fit_intercept=fit_intercept,
        rows_before=rows_before,
        average_from=average_from,
    )
    return last[0], mean[0]


def softmax_sgd_block(
    W: np.ndarray,
    X: np.ndarray,
    y: np.ndarray,
    center: np.ndarray,
    inv_scale: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    order: np.ndarray | None = None,
    l2: float = 0.0,
    fit_intercept: bool = True,
    rows_before: int = 0,
    average_from: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One sweep of averaged SGD for multinomial logistic regression over a block.

    The objective is the weighted mean loss plus ``l2 / 2`` times the squared norm of the
    coefficients of the columns as stored, ``W[:, :-1] * inv_scale``.

    Parameters
    ----------
    W : ndarray of shape (K, d + 1), float64
        Where to start: coefficients of the standardised columns, then the intercept.
    X : ndarray of shape (n, d), C-contiguous
        Rows, read in their own dtype and standardised on the fly in float64.
    y : ndarray of int of shape (n,)
        Class indices 0..K-1.
    center, inv_scale : ndarray of shape (d,)
        Rows become ``(x - center) * inv_scale``: the columns' means and the reciprocals of their
        standard deviations, 0 for a constant column.
    sample_weight : ndarray of shape (n,), optional
        Weights of the rows, about 1 on average over the data set.
    order : ndarray of int of shape (m,), optional
        Rows to visit, in this order; None visits all, first to last.
    l2 : float
        Strength of the penalty.
    fit_intercept : bool
        Whether the intercept moves.
    rows_before : int
        Rows that this replica has visited before; the step size goes on falling from there.
    average_from : int, optional
        Average the iterates from this visited row of the block on, at least the last one; None
        averages half of them. Of several blocks, average the later ones whole, with 0, and
        weigh their means by their rows.

    Returns
    -------
    last : ndarray of shape (K, d + 1), float64
        The last iterate, from where the next block goes on.
    mean : ndarray of shape (K, d + 1), float64
        The mean of the iterates: the better answer.

    Raises
    ------
    ValueError
        If shapes do not agree, or if rows or classes do not exist.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.eye(3), np.arange(3)
    >>> last, mean = softmax_sgd_block(np.zeros((3, 4)), X, y, np.full(3, 1 / 3), np.full(3, 2.0))
    >>> mean[:, :3].argmax(axis=1)
    array([0, 1, 2])
    """
    n, d = X.shape
    k = W.shape[0]
    if (W.shape, y.shape, center.shape, inv_scale.shape) != ((k, d + 1), (n,), (d,), (d,)):
        raise ValueError(
            f"Local SGD needs W of shape (K, {d + 1}), {n} targets and the center and scale of {d} "
            f"columns for this block, but got {W.shape}, {y.shape}, {center.shape} and "
            f"{inv_scale.shape}; pass arrays of these shapes."
        )
    y = np.ascontiguousarray(y, dtype=np.int64)
    if n and not (y.min() >= 0 and y.max() < max(k, 2)):
        raise ValueError(
            f"Local SGD got class indices {y.min()}..{y.max()}, but coefficients for {max(k, 2)} "
            f"classes; encode the labels as 0..{max(k, 2) - 1}."
        )
    order, weight = visits(n, order, sample_weight)
    start = order.size // 2 if average_from is None else min(average_from, order.size - 1)
    curvature, columns = (0.25 if k == 1 else 0.5), np.count_nonzero(inv_scale) + 1
    last, mean = copy_apart(W), copy_apart(W)
    first_step, tau = STEP / (curvature * columns), SETTLE * columns
    decay = np.append(l2 * np.square(inv_scale, dtype=np.float64), 0.0)
    shift, factor = np.asarray(center, np.float64), np.asarray(inv_scale, np.float64)
    rows = (X, y, weight, order, shift, factor)
    one = 1.0 if fit_intercept else 0.0
    _sweep(last, mean, *rows, one, decay, curvature, first_step, tau, float(rows_before), start)
    return last, mean


@inlined(fastmath=REDUCTIONS)
def _standardise(
    X: np.ndarray, row: int, center: np.ndarray, inv_scale: np.ndarray, x: np.ndarray
) -> float:
    """Write the standardised row to all but the last entry of x; return x's squared norm."""
    total = 1.0
    for j in range(center.size):
        new = (X[row, j] - center[j]) * inv_scale[j]
        x[j] = new
        total += new * new
    return total


@inlined(fastmath=REDUCTIONS)
def _scores(W: np.ndarray, x: np.ndarray, z: np.ndarray) -> None:
    for k in range(W.shape[0]):
        total = 0.0
        for j in range(x.size):
            total += W[k, j] * x[j]
        z[k] = total


@inlined(fastmath=REDUCTIONS)
def _step(W: np.ndarray, eta: float, slopes: np.ndarray, x: np.ndarray) -> None:
    for k in range(W.shape[0]):
        c = eta * slopes[k]
        for j in range(x.size):
            W[k, j] -= c * x[j]


@inlined()
def _slopes(z: np.ndarray, y: int) -> None:
    """Turn one row's scores into slopes; a single score is that of class 1 against class 0."""
    if z.size == 1:
        z[0] = 1.0 / (1.0 + math.exp(-z[0])) - y
        return
    softmax(z, z)
    z[y] -= 1.0


@inlined()
def _shrink(W: np.ndarray, decay: np.ndarray, time: float) -> None:
    """Proximal step of the penalty, which no step size makes unstable."""
    for k in range(W.shape[0]):
        for j in range(decay.size):
            W[k, j] /= 1.0 + time * decay[j]


@inlined()
def _take_into(mean: np.ndarray, W: np.ndarray, count: int) -> None:
    """Make the mean that of one iterate more, the count-th."""
    for k in range(W.shape[0]):
        for j in range(W.shape[1]):
            mean[k, j] += (W[k, j] - mean[k, j]) / count


@kernel()
def _sweep(
    W: np.ndarray,
    mean: np.ndarray,
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    order: np.ndarray,
    center: np.ndarray,
    inv_scale: np.ndarray,
    one: float,
    decay: np.ndarray,
    curvature: float,
    first_step: float,
    tau: float,
    t: float,
    start: int,
) -> None:
    """Visit the rows in their order, STRIDE at a time; write the last iterate and the mean."""
    x = np.full(W.shape[1] + 2 * MARGIN, one)[MARGIN : MARGIN + W.shape[1]]
    z, count = np.empty(W.shape[0]), 0
    for first in range(0, order.size, STRIDE):
        last = min(first + STRIDE, order.size)
        eta = first_step / math.sqrt(1.0 + (t + first) / tau)
        for i in range(first, last):
            if i + AHEAD < order.size:
                prefetch_row(X, order[i + AHEAD])
            norm = _standardise(X, order[i], center, inv_scale, x)
            _scores(W, x, z)
            _slopes(z, y[order[i]])
            step = eta * weight[order[i]]
            _step(W, step / (1.0 + step * curvature * norm), z, x)
        _shrink(W, decay, eta * (last - first))
        if last > start:
            count += 1
            _take_into(mean, W, count)
