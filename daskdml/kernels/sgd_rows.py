"""The compiled sweep behind `daskdml.kernels.sgd`: row after row, through each problem."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from daskdml.kernels.compiled import REDUCTIONS, inlined, kernel
from daskdml.kernels.losses import HINGE, slope, value
from daskdml.kernels.prefetch import AHEAD, prefetch_row

CONSTANT, OPTIMAL, INVSCALING, ADAPTIVE, PA1, PA2 = 1, 2, 3, 4, 5, 6
LARGEST_SLOPE = 1e12  # steeper slopes are cut, as in scikit-learn
SMALLEST_SCALE = 1e-9  # a smaller scale is multiplied into its vector
TILE = 64  # rows that stay in cache while every problem sweeps them


class Rule(NamedTuple):
    """The configuration, in numbers that compiled code reads."""

    loss: int
    param: float
    rate: int
    eta0: float
    power_t: float
    alpha: float
    optimal_start: float
    decay: float
    shrink: float
    average: int
    fit_intercept: bool
    classify: bool


# Columns of the kernel's scalars, one row for every problem.
SCALE, INTERCEPT, MEAN_INTERCEPT, MEAN_A, MEAN_B, TOTAL, ETA, OBJECTIVE, WEIGHT_NEG, WEIGHT_POS = (
    range(10)
)


class Work(NamedTuple):
    """The state, copied, for compiled code to write to."""

    v: np.ndarray
    mean: np.ndarray
    applied: np.ndarray
    scalars: np.ndarray
    active: np.ndarray


@inlined(fastmath=REDUCTIONS)
def _dot(X: np.ndarray, row: int, v: np.ndarray) -> float:
    total = 0.0
    for j in range(v.size):
        total += v[j] * X[row, j]
    return total


@inlined(fastmath=REDUCTIONS)
def _square_norm(X: np.ndarray, row: int) -> float:
    total = 0.0
    for j in range(X.shape[1]):
        x = np.float64(X[row, j])
        total += x * x
    return total


@inlined(fastmath=REDUCTIONS)
def _add(v: np.ndarray, c: float, X: np.ndarray, row: int) -> float:
    """Add c times the row to v; return the new squared norm."""
    square = 0.0
    for j in range(v.size):
        new = v[j] + c * X[row, j]
        v[j] = new
        square += new * new
    return square


@inlined(fastmath=REDUCTIONS)
def _norms(v: np.ndarray) -> tuple[float, float]:
    """Squared and absolute norm."""
    square, absolute = 0.0, 0.0
    for j in range(v.size):
        square += v[j] * v[j]
        absolute += abs(v[j])
    return square, absolute


@inlined(fastmath=REDUCTIONS)
def _follow(mean: np.ndarray, c: float, X: np.ndarray, row: int) -> None:
    """Take c times the row from the mean."""
    for j in range(mean.size):
        mean[j] -= c * X[row, j]


@inlined()
def _fold(v: np.ndarray, scale: float, mean: np.ndarray, a: float, b: float) -> None:
    """Multiply a vanishing scale into its vector, after the average took its share."""
    for j in range(mean.size):
        mean[j] = (mean[j] + a * v[j]) / b
    for j in range(v.size):
        v[j] *= scale


@inlined()
def _truncate(
    v: np.ndarray, scale: float, total: float, applied: np.ndarray, mean: np.ndarray, a: float
) -> None:
    """Pull each coefficient towards zero, never past it, by the penalty it still owes.

    The mean makes up for the move: past iterates have had their say.
    """
    for j in range(v.size):
        old, got = v[j], applied[j]
        if old > 0.0:
            v[j] = max(0.0, old - (total + got) / scale)
        elif old < 0.0:
            v[j] = min(0.0, old + (total - got) / scale)
        applied[j] = got + scale * (v[j] - old)
        if mean.size > 0:
            mean[j] -= a * (v[j] - old)


@inlined()
def _step_size(rule: Rule, eta: float, t: float) -> float:
    if rule.rate == OPTIMAL:
        return 1.0 / (rule.alpha * (rule.optimal_start + t - 1.0))
    if rule.rate == INVSCALING:
        return rule.eta0 / math.pow(t, rule.power_t)
    return eta


@inlined()
def _update(rule: Rule, y: float, p: float, eta: float, norm: float) -> float:
    """Multiple of the row to add: down the slope, or as far as the row's loss asks."""
    if rule.rate < PA1:
        g = slope(rule.loss, rule.param, y, p)
        return -eta * min(max(g, -LARGEST_SLOPE), LARGEST_SLOPE)
    gap = value(rule.loss, rule.param, y, p)
    if rule.rate == PA1:
        step = min(rule.eta0, gap / norm)
    else:
        step = gap / (norm + 0.5 / rule.eta0)
    if rule.loss == HINGE:
        return step * y
    return -step if y < p else step


@inlined()
def _rows(
    rule: Rule,
    v: np.ndarray,
    mean: np.ndarray,
    applied: np.ndarray,
    s: np.ndarray,
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    order: np.ndarray,
    first: int,
    last: int,
    ahead: bool,
    t: float,
) -> float:
    """Sweep one problem over the rows order[first:last]; return the new t."""
    scale, intercept, a, b, total = s[SCALE], s[INTERCEPT], s[MEAN_A], s[MEAN_B], s[TOTAL]
    mean_intercept, objective = s[MEAN_INTERCEPT], s[OBJECTIVE]
    square, absolute = _norms(v)
    square, absolute = square * scale * scale, absolute * scale
    eta, norm = s[ETA], 0.0
    for i in range(first, last):
        row = order[i]
        if ahead and i + AHEAD < order.size:
            prefetch_row(X, order[i + AHEAD])
        p = _dot(X, row, v) * scale + intercept
        objective += value(rule.loss, rule.param, y[i - first], p)
        if rule.rate >= PA1:
            norm = _square_norm(X, row)
            if norm == 0.0 and rule.rate == PA1:
                continue
        else:
            objective += 0.5 * rule.decay * square + rule.shrink * absolute
        eta = _step_size(rule, eta, t)
        if rule.decay > 0.0:
            shrunk = max(0.0, 1.0 - eta * rule.decay)
            scale, absolute = scale * shrunk, absolute * shrunk
            square *= shrunk * shrunk
            if scale < SMALLEST_SCALE:
                _fold(v, scale, mean, a, b)
                scale, a, b = 1.0, 0.0, 1.0
        inverse = 1.0 / scale
        update = _update(rule, y[i - first], p, eta, norm) * weight[i - first]
        if update != 0.0:
            square = _add(v, update * inverse, X, row) * scale * scale
            if rule.fit_intercept:
                intercept += update
        if rule.shrink > 0.0:
            total += rule.shrink * eta
            _truncate(v, scale, total, applied, mean, a)
            square, absolute = _norms(v)
            square, absolute = square * scale * scale, absolute * scale
        if 0 < rule.average <= t:
            count = t - rule.average + 1.0
            if update != 0.0:
                _follow(mean, a * update * inverse, X, row)
            if count > 1.0:
                b /= 1.0 - 1.0 / count
            a += b * scale / count
            mean_intercept += (intercept - mean_intercept) / count
        t += 1.0
    s[SCALE], s[INTERCEPT], s[MEAN_A], s[MEAN_B], s[TOTAL] = scale, intercept, a, b, total
    s[MEAN_INTERCEPT], s[OBJECTIVE] = mean_intercept, objective
    return t


@kernel()
def sweep(
    rule: Rule,
    work: Work,
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    order: np.ndarray,
    t: float,
) -> float:
    """Visit a few rows at a time with every problem, so that rows stay in cache."""
    n_models = work.v.shape[0]
    targets, weights = np.empty(TILE), np.empty(TILE)
    for first in range(0, order.size, TILE):
        last, end, ahead = min(first + TILE, order.size), t, True
        for k in range(n_models):
            if not work.active[k]:
                continue
            s = work.scalars[k]
            for i in range(first, last):
                row = order[i]
                target = y[row]
                if rule.classify:
                    target = 1.0 if target == (k if n_models > 1 else 1) else -1.0
                targets[i - first] = target
                weights[i - first] = weight[row] * s[WEIGHT_POS if target > 0.0 else WEIGHT_NEG]
            end = _rows(
                rule,
                work.v[k],
                work.mean[k],
                work.applied[k],
                s,
                X,
                targets,
                weights,
                order,
                first,
                last,
                ahead,
                t,
            )
            ahead = False
        t = end
    return t
