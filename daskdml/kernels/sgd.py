"""Stochastic gradient descent of linear models, one row at a time, over one dense block.

The algorithm is scikit-learn's ``SGDClassifier`` / ``SGDRegressor`` [1]_, row for row: with the
same order of rows the coefficients are the same up to round-off. The iterate is kept as a scaled
vector, ``w = scale * v``, so that weight decay costs one multiplication a row [2]_; the average of
the iterates is kept as ``(m + a v) / b`` for the same reason [2]_; L1 is the cumulative penalty of
[3]_. All of it is in the state, so consecutive blocks give the bits of one block made of them.

All one-versus-rest problems of a multi-class model are swept together: a row is read once.

References
----------
.. [1] scikit-learn developers, "Stochastic Gradient Descent", user guide, section 1.5.
.. [2] L. Bottou, "Stochastic gradient descent tricks", in Neural Networks: Tricks of the Trade,
   2012.
.. [3] Y. Tsuruoka, J. Tsujii, S. Ananiadou, "Stochastic gradient descent training for
   L1-regularized log-linear models with cumulative penalty", ACL 2009.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numba import njit

from daskdml.kernels.losses import EPSILON_INSENSITIVE, HINGE, Loss, slope, value

CONSTANT, OPTIMAL, INVSCALING, ADAPTIVE, PA1, PA2 = 1, 2, 3, 4, 5, 6
LEARNING_RATES = {
    "constant": CONSTANT,
    "optimal": OPTIMAL,
    "invscaling": INVSCALING,
    "adaptive": ADAPTIVE,
    "pa1": PA1,
    "pa2": PA2,
}
PENALTIES = ("l2", "l1", "elasticnet", None)

LARGEST_SLOPE = 1e12
SMALLEST_SCALE = 1e-9
TILE = 64
REDUCTIONS = {"reassoc", "contract", "nsz", "arcp"}


@dataclass(frozen=True)
class SGDConfig:
    """What one fit of SGD minimises, and how it steps.

    The objective is ``mean_i loss(y_i, w.x_i + b) + alpha * penalty(w)``.

    Parameters
    ----------
    loss : Loss
        A scalar loss; a classification loss is fitted one class versus the rest.
    penalty : {"l2", "l1", "elasticnet"} or None
        The penalty of the coefficients; intercepts are free.
    alpha : float
        Strength of the penalty.
    l1_ratio : float in [0, 1]
        Share of L1 in "elasticnet".
    fit_intercept : bool
        Whether to fit an intercept.
    learning_rate : {"constant", "optimal", "invscaling", "adaptive", "pa1", "pa2"}
        Schedule of the step size, as in scikit-learn. "adaptive" steps by ``state.eta``, which
        the caller lowers.
    eta0 : float
        Initial step size; the aggressiveness C of "pa1" and "pa2".
    power_t : float
        Exponent of "invscaling".
    average : bool or int
        Average the iterates from this row on; True is 1, False is never.
    class_weights : tuple of float or None
        Weight of every class (two for a binary model); None weighs each class 1.
    n_models : int
        One-versus-rest problems: the number of classes, or 1 for two classes and for regression.

    Raises
    ------
    ValueError
        If an option is unknown or does not go with another.

    Examples
    --------
    >>> from daskdml.kernels.losses import Hinge
    >>> SGDConfig(Hinge(), penalty="l1").learning_rate
    'optimal'
    """

    loss: Loss
    penalty: str | None = "l2"
    alpha: float = 1e-4
    l1_ratio: float = 0.15
    fit_intercept: bool = True
    learning_rate: str = "optimal"
    eta0: float = 0.01
    power_t: float = 0.5
    average: bool | int = False
    class_weights: tuple[float, ...] | None = None
    n_models: int = 1

    def __post_init__(self) -> None:
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty is {self.penalty!r}, but must be one of {PENALTIES}.")
        if self.learning_rate not in LEARNING_RATES:
            raise ValueError(
                f"learning_rate is {self.learning_rate!r}, but must be one of "
                f"{tuple(LEARNING_RATES)}."
            )
        if not 0.0 <= self.l1_ratio <= 1.0:
            raise ValueError(f"l1_ratio is {self.l1_ratio!r}, but must be a number in [0, 1].")
        if not (self.alpha >= 0.0 and self.eta0 > 0.0 and self.average >= 0):
            raise ValueError(
                f"SGD needs alpha >= 0, eta0 > 0 and average >= 0, but got alpha={self.alpha!r}, "
                f"eta0={self.eta0!r}, average={self.average!r}."
            )
        if self.learning_rate == "optimal" and self.alpha == 0.0:
            raise ValueError(
                "learning_rate='optimal' computes its steps from alpha, which is 0; choose "
                "alpha > 0 or another learning rate."
            )
        passive = self.learning_rate in ("pa1", "pa2")
        if passive and self.loss.code not in (HINGE, EPSILON_INSENSITIVE):
            raise ValueError(
                f"learning_rate={self.learning_rate!r} needs the hinge or the epsilon-insensitive "
                f"loss, but got {self.loss!r}; choose one of these losses or another rate."
            )
        weights = self.class_weights
        if weights is not None and len(weights) != max(self.n_models, 2):
            raise ValueError(
                f"class_weights has {len(weights)} entries, but needs {max(self.n_models, 2)}: "
                f"one for every class."
            )

    @property
    def decay(self) -> float:
        """Strength of the squared penalty: alpha times the share of L2."""
        share = {"l2": 1.0, "elasticnet": 1.0 - self.l1_ratio}
        return self.alpha * share.get(str(self.penalty), 0.0)

    @property
    def shrink(self) -> float:
        """Strength of the absolute penalty: alpha times the share of L1."""
        share = {"l1": 1.0, "elasticnet": self.l1_ratio}
        return self.alpha * share.get(str(self.penalty), 0.0)

    @property
    def optimal_start(self) -> float:
        """Rows that "optimal" pretends to have seen: the first step is ``alpha**-0.25`` [2]_."""
        return 1.0 / (self.alpha**0.75) if self.learning_rate == "optimal" else 0.0

    def init(self, n_features: int) -> SGDState:
        """State at zero coefficients, before the first row."""
        k, shape = self.n_models, (self.n_models, n_features)
        averages = Averages(np.zeros(shape), np.zeros(k), np.zeros(k), np.ones(k))
        return SGDState(
            vectors=np.zeros(shape),
            scale=np.ones(k),
            intercept=np.zeros(k),
            averages=averages if self.average else None,
            cumulative=Cumulative(np.zeros(k), np.zeros(shape)) if self.shrink else None,
            eta=np.full(k, float(self.eta0)),
            active=np.ones(k, dtype=bool),
            objective_sum=np.zeros(k),
            t=1.0,
        )


@dataclass(frozen=True, eq=False)
class Averages:
    """Running average of the iterates: coefficients ``(vectors + a * v) / b``.

    Parameters
    ----------
    vectors : ndarray of shape (K, d), float64
    intercept : ndarray of shape (K,), float64
        Averaged intercepts.
    a, b : ndarray of shape (K,), float64
        Weight of the state's own vectors, and the divisor.
    """

    vectors: np.ndarray
    intercept: np.ndarray
    a: np.ndarray
    b: np.ndarray


@dataclass(frozen=True, eq=False)
class Cumulative:
    """L1 penalty that each coefficient could have got so far, and has got.

    Parameters
    ----------
    total : ndarray of shape (K,), float64
    applied : ndarray of shape (K, d), float64
    """

    total: np.ndarray
    applied: np.ndarray


@dataclass(frozen=True, eq=False)
class SGDState:
    """Where SGD is after some rows; kernels return a new one and change none.

    Parameters
    ----------
    vectors, scale : ndarray of shape (K, d) and (K,), float64
        Coefficients are ``scale * vectors``.
    intercept : ndarray of shape (K,), float64
    averages : Averages or None
        None unless the configuration averages.
    cumulative : Cumulative or None
        None unless the penalty has an L1 part.
    eta : ndarray of shape (K,), float64
        Step size of the schedules "constant" and "adaptive".
    active : ndarray of shape (K,), bool
        Problems still being fitted; the others stay as they are.
    objective_sum : ndarray of shape (K,), float64
        Sum over the rows, since `with_epoch_started`, of the loss of each row before its update
        plus the penalty at that time (no sample weights; no penalty under "pa1" and "pa2").
    t : float
        Rows seen, plus 1.
    """

    vectors: np.ndarray
    scale: np.ndarray
    intercept: np.ndarray
    averages: Averages | None
    cumulative: Cumulative | None
    eta: np.ndarray
    active: np.ndarray
    objective_sum: np.ndarray
    t: float

    @property
    def coef(self) -> np.ndarray:
        """Coefficients of the last iterate, float64 of shape (K, d)."""
        return self.vectors * self.scale[:, None]

    @property
    def average_coef(self) -> np.ndarray | None:
        """Coefficients averaged over the iterates, float64 of shape (K, d); None without."""
        m = self.averages
        if m is None:
            return None
        return (m.vectors + m.a[:, None] * self.vectors) / m.b[:, None]

    def solution(self, config: SGDConfig) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (K, d) and intercepts (K,) to predict with: averages once there are any."""
        average = self.average_coef
        if average is not None and self.averages is not None and config.average <= self.t - 1:
            return average, self.averages.intercept
        return self.coef, self.intercept

    def folded(self) -> SGDState:
        """The same iterate with unit scale and plain averages, so that states can be averaged."""
        average, k = self.average_coef, self.scale.size
        averages = self.averages
        if averages is not None and average is not None:
            averages = Averages(average, averages.intercept, np.zeros(k), np.ones(k))
        return replace(self, vectors=self.coef, scale=np.ones(k), averages=averages)

    def with_epoch_started(self) -> SGDState:
        """The same state with `objective_sum` at zero."""
        return replace(self, objective_sum=np.zeros_like(self.objective_sum))


class _Rule(NamedTuple):
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
SCALE, INTERCEPT, MEAN_INTERCEPT, A, B, TOTAL, ETA, OBJECTIVE, WEIGHT_NEG, WEIGHT_POS = range(10)


class _Work(NamedTuple):
    """The state, copied, for compiled code to write to."""

    v: np.ndarray
    mean: np.ndarray
    applied: np.ndarray
    scalars: np.ndarray
    active: np.ndarray


def sgd_block(
    state: SGDState,
    config: SGDConfig,
    X: np.ndarray,
    y: np.ndarray,
    sample_weight: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> SGDState:
    """One sweep of SGD over the rows of a block.

    Parameters
    ----------
    state : SGDState
        Where to start; ``config.init(d)`` at first.
    config : SGDConfig
        What to minimise and how.
    X : ndarray of shape (n, d), C-contiguous
        Rows, read in their own dtype; arithmetic is float64.
    y : ndarray of shape (n,)
        Class indices 0..K-1 for a classification loss (0 or 1 when there is one problem), else
        real targets.
    sample_weight : ndarray of shape (n,), optional
        Multiplies the step of each row.
    order : ndarray of int of shape (m,), optional
        Rows to visit, in this order; None visits all, first to last.

    Returns
    -------
    SGDState
        The state after the last row. Problems that are not `active` keep their coefficients.

    Raises
    ------
    ValueError
        If the coefficients overflow, or if shapes do not agree.

    Notes
    -----
    Two consecutive calls on the halves of a block give the coefficients of one call on the
    block, bit for bit.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml.kernels.losses import Logistic
    >>> X, y = np.array([[1.0], [-1.0], [2.0], [-2.0]]), np.array([1, 0, 1, 0])
    >>> config = SGDConfig(Logistic(), alpha=0.01)
    >>> state = sgd_block(config.init(1), config, X, y)
    >>> bool(state.coef[0, 0] > 0), state.t
    (True, 5.0)
    """
    n, d = X.shape
    if state.vectors.shape != (config.n_models, d) or y.shape != (n,):
        raise ValueError(
            f"SGD needs coefficients of shape {(config.n_models, d)} and {n} targets for this "
            f"block, but got {state.vectors.shape} and {y.shape}; start from config.init({d})."
        )
    order = np.arange(n) if order is None else np.ascontiguousarray(order, dtype=np.int64)
    if order.size and not (0 <= order.min() and order.max() < n):
        raise ValueError(f"order visits rows outside 0..{n - 1}; pass row numbers of this block.")
    if sample_weight is None:
        sample_weight = np.ones(1)
    work = _open(state, config)
    rows = (X, np.asarray(y, np.float64), np.asarray(sample_weight, np.float64), order)
    t = _sweep(_rule(config), work, *rows, float(state.t))
    if not (np.isfinite(work.v).all() and np.isfinite(work.scalars).all()):
        raise ValueError(
            "SGD overflowed: the coefficients are no longer finite; scale the features to unit "
            "variance or choose a smaller eta0."
        )
    return _close(state, work, t)


def _rule(config: SGDConfig) -> _Rule:
    return _Rule(
        config.loss.code,
        config.loss.param,
        LEARNING_RATES[config.learning_rate],
        float(config.eta0),
        float(config.power_t),
        float(config.alpha),
        config.optimal_start,
        config.decay,
        config.shrink,
        int(config.average),
        bool(config.fit_intercept),
        config.loss.is_classification,
    )


def _open(state: SGDState, config: SGDConfig) -> _Work:
    """Copy the state for the kernel; parts that the state lacks become empty arrays."""
    k = config.n_models
    scalars = np.zeros((k, 10))
    scalars[:, SCALE] = state.scale
    scalars[:, INTERCEPT] = state.intercept
    scalars[:, ETA] = state.eta
    scalars[:, OBJECTIVE] = state.objective_sum
    scalars[:, WEIGHT_NEG : WEIGHT_POS + 1] = 1.0
    if config.class_weights is not None:
        scalars[:, WEIGHT_POS] = config.class_weights if k > 1 else config.class_weights[1]
        scalars[:, WEIGHT_NEG] = 1.0 if k > 1 else config.class_weights[0]
    mean = applied = np.zeros((k, 0))
    if state.averages is not None:
        m, mean = state.averages, state.averages.vectors.copy()
        scalars[:, MEAN_INTERCEPT], scalars[:, A], scalars[:, B] = m.intercept, m.a, m.b
    if state.cumulative is not None:
        applied = state.cumulative.applied.copy()
        scalars[:, TOTAL] = state.cumulative.total
    return _Work(state.vectors.copy(), mean, applied, scalars, state.active)


def _close(state: SGDState, work: _Work, t: float) -> SGDState:
    averages, cumulative = state.averages, state.cumulative
    columns = work.scalars.T.copy()
    if averages is not None:
        averages = Averages(work.mean, columns[MEAN_INTERCEPT], columns[A], columns[B])
    if cumulative is not None:
        cumulative = Cumulative(columns[TOTAL], work.applied)
    return replace(
        state,
        vectors=work.v,
        scale=columns[SCALE],
        intercept=columns[INTERCEPT],
        averages=averages,
        cumulative=cumulative,
        objective_sum=columns[OBJECTIVE],
        t=t,
    )


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REDUCTIONS)
def _dot(X, row, v):
    total = 0.0
    for j in range(v.size):
        total += v[j] * X[row, j]
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REDUCTIONS)
def _square_norm(X, row):
    total = 0.0
    for j in range(X.shape[1]):
        x = np.float64(X[row, j])
        total += x * x
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REDUCTIONS)
def _add(v, c, X, row):
    """Add c times the row to v; return the new squared norm."""
    square = 0.0
    for j in range(v.size):
        new = v[j] + c * X[row, j]
        v[j] = new
        square += new * new
    return square


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REDUCTIONS)
def _norms(v):
    """Squared and absolute norm."""
    square, absolute = 0.0, 0.0
    for j in range(v.size):
        square += v[j] * v[j]
        absolute += abs(v[j])
    return square, absolute


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REDUCTIONS)
def _follow(mean, c, X, row):
    """Take c times the row from the mean."""
    for j in range(mean.size):
        mean[j] -= c * X[row, j]


@njit(cache=True, nogil=True, error_model="numpy")
def _fold(v, scale, mean, a, b):
    """Multiply a vanishing scale into its vector, after the average took its share."""
    for j in range(mean.size):
        mean[j] = (mean[j] + a * v[j]) / b
    for j in range(v.size):
        v[j] *= scale


@njit(cache=True, nogil=True, error_model="numpy")
def _truncate(v, scale, total, applied):
    """Pull each coefficient towards zero, never past it, by the penalty it still owes."""
    for j in range(v.size):
        old, got = v[j], applied[j]
        if old > 0.0:
            v[j] = max(0.0, old - (total + got) / scale)
        elif old < 0.0:
            v[j] = min(0.0, old + (total - got) / scale)
        applied[j] = got + scale * (v[j] - old)


@njit(cache=True, nogil=True, error_model="numpy")
def _step_size(rule, eta, t):
    if rule.rate == OPTIMAL:
        return 1.0 / (rule.alpha * (rule.optimal_start + t - 1.0))
    if rule.rate == INVSCALING:
        return rule.eta0 / math.pow(t, rule.power_t)
    return eta


@njit(cache=True, nogil=True, error_model="numpy")
def _update(rule, y, p, eta, norm):
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


@njit(cache=True, nogil=True, error_model="numpy")
def _rows(rule, v, mean, applied, s, X, y, weight, order, t):
    """Sweep one problem over the rows in `order`; return the new t."""
    scale, intercept, a, b, total = s[SCALE], s[INTERCEPT], s[A], s[B], s[TOTAL]
    mean_intercept, objective = s[MEAN_INTERCEPT], s[OBJECTIVE]
    square, absolute = _norms(v)
    square, absolute = square * scale * scale, absolute * scale
    eta, norm = s[ETA], 0.0
    for i in range(order.size):
        row = order[i]
        p = _dot(X, row, v) * scale + intercept
        objective += value(rule.loss, rule.param, y[i], p)
        if rule.rate >= PA1:
            norm = _square_norm(X, row)
            if norm == 0.0 and rule.rate == PA1:
                continue
        else:
            objective += 0.5 * rule.decay * square + rule.shrink * absolute
        eta = _step_size(rule, eta, t)
        update = _update(rule, y[i], p, eta, norm) * weight[i]
        if rule.decay > 0.0:
            shrunk = max(0.0, 1.0 - eta * rule.decay)
            scale, absolute = scale * shrunk, absolute * shrunk
            square *= shrunk * shrunk
            if scale < SMALLEST_SCALE:
                _fold(v, scale, mean, a, b)
                scale, a, b = 1.0, 0.0, 1.0
        if update != 0.0:
            square = _add(v, update / scale, X, row) * scale * scale
            if rule.shrink > 0.0:
                absolute = _norms(v)[1] * scale
            if rule.fit_intercept:
                intercept += update
        if 0 < rule.average <= t:
            count = t - rule.average + 1.0
            if update != 0.0:
                _follow(mean, a * update / scale, X, row)
            if count > 1.0:
                b /= 1.0 - 1.0 / count
            a += b * scale / count
            mean_intercept += (intercept - mean_intercept) / count
        if rule.shrink > 0.0:
            total += rule.shrink * eta
            _truncate(v, scale, total, applied)
        t += 1.0
    s[SCALE], s[INTERCEPT], s[A], s[B], s[TOTAL] = scale, intercept, a, b, total
    s[MEAN_INTERCEPT], s[OBJECTIVE] = mean_intercept, objective
    return t


@njit(cache=True, nogil=True, error_model="numpy")
def _sweep(rule, work, X, y, weight, order, t):
    """Visit a few rows at a time with every problem, so that rows stay in cache."""
    n_models = work.v.shape[0]
    targets, weights = np.empty(TILE), np.empty(TILE)
    for first in range(0, order.size, TILE):
        rows = order[first : first + TILE]
        end = t
        for k in range(n_models):
            if not work.active[k]:
                continue
            s = work.scalars[k]
            for i in range(rows.size):
                row = rows[i]
                targets[i] = y[row]
                if rule.classify:
                    targets[i] = 1.0 if y[row] == (k if n_models > 1 else 1) else -1.0
                weights[i] = s[WEIGHT_POS] if targets[i] > 0.0 else s[WEIGHT_NEG]
                weights[i] *= weight[row] if weight.size > 1 else weight[0]
            end = _rows(
                rule, work.v[k], work.mean[k], work.applied[k], s, X, targets, weights, rows, t
            )
        t = end
    return t
