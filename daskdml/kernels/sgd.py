"""Stochastic gradient descent of linear models, one row at a time, over one dense block.

The algorithm is scikit-learn's ``SGDClassifier`` / ``SGDRegressor`` [1]_, row for row: with the
same order of rows the coefficients are the same up to round-off. Two things differ: coefficients
are float64 whatever the rows are, and the average under an L1 penalty is the mean of the iterates.

The iterate is kept as a scaled vector, ``w = scale * v``, so that weight decay costs one
multiplication a row [2]_; the average of the iterates is kept as ``(m + a v) / b`` for the same
reason [2]_; L1 is the cumulative penalty of [3]_. All of it is in the state, so consecutive blocks
give the bits of one block made of them.

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

from dataclasses import dataclass, replace

import numpy as np

from daskdml.kernels.apart import copy_apart
from daskdml.kernels.losses import EPSILON_INSENSITIVE, HINGE, Loss
from daskdml.kernels.sgd_rows import (
    ADAPTIVE,
    CONSTANT,
    ETA,
    INTERCEPT,
    INVSCALING,
    MEAN_A,
    MEAN_B,
    MEAN_INTERCEPT,
    OBJECTIVE,
    OPTIMAL,
    PA1,
    PA2,
    SCALE,
    TOTAL,
    WEIGHT_NEG,
    WEIGHT_POS,
    Rule,
    Work,
    sweep,
)
from daskdml.kernels.visits import visits

LEARNING_RATES = {
    "constant": CONSTANT,
    "optimal": OPTIMAL,
    "invscaling": INVSCALING,
    "adaptive": ADAPTIVE,
    "pa1": PA1,
    "pa2": PA2,
}
PENALTIES = ("l2", "l1", "elasticnet", None)


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
        """Rows that "optimal" pretends to have seen: the first step is ``alpha**-0.25``."""
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
    order, weight = visits(n, order, sample_weight)
    work = _open(state, config)
    rows = (X, y if y.dtype == np.int8 else np.asarray(y, np.float64), weight, order)
    t = sweep(_rule(config), work, *rows, float(state.t))
    if not (np.isfinite(work.v).all() and np.isfinite(work.scalars).all()):
        raise ValueError(
            "SGD overflowed: the coefficients are no longer finite; scale the features to unit "
            "variance or choose a smaller eta0."
        )
    return _close(state, work, t)


def _rule(config: SGDConfig) -> Rule:
    return Rule(
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


def _open(state: SGDState, config: SGDConfig) -> Work:
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
        m, mean = state.averages, copy_apart(state.averages.vectors)
        scalars[:, MEAN_INTERCEPT], scalars[:, MEAN_A], scalars[:, MEAN_B] = m.intercept, m.a, m.b
    if state.cumulative is not None:
        applied = copy_apart(state.cumulative.applied)
        scalars[:, TOTAL] = state.cumulative.total
    return Work(copy_apart(state.vectors), mean, applied, scalars, state.active)


def _close(state: SGDState, work: Work, t: float) -> SGDState:
    averages, cumulative = state.averages, state.cumulative
    columns = work.scalars.T.copy()
    if averages is not None:
        averages = Averages(work.mean, columns[MEAN_INTERCEPT], columns[MEAN_A], columns[MEAN_B])
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
